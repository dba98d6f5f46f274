"""Say what days of operation come to: how to run the job, how sure that is, and what is next."""

from collections.abc import Sequence

import numpy as np

from moesim.operations.days_result import DaysResult
from moesim.operations.days_setting import TrainingDays
from moesim.operations.growth import GrownStage, saved_device_hours
from moesim.operations.plan_search import OperatedPoint
from moesim.operations.serving_days import ServingDays, ServingDaysResult
from moesim.operations.text import point_text
from moesim.report.answer import Answer

_ASSUMED = ("failures are drawn from published rates, not from your fleet's",)


def days_answer(setting: TrainingDays, results: Sequence[DaysResult]) -> Answer:
    """Return what days of training as planned come to."""
    policy, degree = setting.checkpoint, setting.replication.degree
    copies = "one copy" if degree == 1 else f"{degree or 'no'} copies"
    ratios = [result.ettr for result in results]
    mean = float(np.mean(ratios))
    causes: dict[str, float] = {}
    for result in results:
        for cause, seconds in result.down_s_by_cause.items():
            causes[cause] = causes.get(cause, 0.0) + seconds
    worst = max(causes, key=lambda name: causes[name], default="")
    return Answer(
        build=f"The plan as written ({policy.kind} checkpoints, "
        f"{setting.recovery.spare_nodes} spare nodes, {copies} of "
        f"experts) keeps {mean:.1%} of {setting.days:g} days as useful training.",
        confidence=_seeds(ratios, "ETTR") + " Step times are simulated; no failure of your cluster "
        "was measured.",
        next_step="Compare other ways with --search 100"
        + (f", and start with {worst}, which costs the most standstill." if worst else "."),
        assumptions=_ASSUMED,
    )


def search_answer(points: Sequence[OperatedPoint], written: OperatedPoint) -> Answer:
    """Return which way to run a job a search found, the best one first in ``points``."""
    best = points[0]
    text = point_text(best)
    gain = best.samples_per_device_hour / written.samples_per_device_hour - 1.0
    rates = [point.samples_per_device_hour for point in points[1:]]
    ties = sum(rate >= _least(best) for rate in rates)
    change = (
        "the plan as written is the best"
        if best is written
        else f"{gain:+.1%} samples a device-hour over the plan as written"
    )
    return Answer(
        build=f"{text[0].upper()}{text[1:]}; {change}.",
        confidence=f"{ties} of the {len(rates)} other ways come to as much as its worst seed. "
        f"{_seeds([result.ettr for result in best.results], 'ETTR')}",
        next_step="Raise --seeds until the ways separate, and put your fleet's failure rates into "
        "the plan.",
        assumptions=_ASSUMED,
    )


def serving_days_answer(setting: ServingDays, results: Sequence[ServingDaysResult]) -> Answer:
    """Return what days of serving with failures come to."""
    pool, ratios = setting.pool, [result.goodput_fraction for result in results]
    return Answer(
        build=f"{pool.served.name} on {pool.cluster.num_devices} ranks with "
        f"{pool.slots_per_rank} expert slots each keeps {float(np.mean(ratios)):.3%} of its "
        f"tokens over {setting.days:g} days; it needs at least {pool.fewest_ranks} ranks.",
        confidence=_seeds(ratios, "goodput") + " Steps are simulated; no failure of your cluster "
        "was measured.",
        next_step="Add expert slots (redundant experts) if ranks fail in pairs, and put your "
        "fleet's failure rates into the plan.",
        assumptions=_ASSUMED,
    )


def growth_answer(stages: Sequence[GrownStage]) -> Answer:
    """Return what a plan of growth comes to."""
    first, last = stages[0].row(), stages[-1].row()
    saved = saved_device_hours(stages)
    apart = float(first["loss_low"]) > float(last["loss_high"])
    return Answer(
        build=f"Grow from {first['num_experts']:,} experts on {first['devices']:,} devices to "
        f"{last['num_experts']:,} on {last['devices']:,}: that saves {saved:.1%} of the "
        "device-hours of the last stage from the beginning.",
        confidence="The loss of the last stage is "
        + ("lower for certain" if apart else "not lower for certain: the intervals overlap")
        + f" ({first['loss']:.3f} to {last['loss']:.3f}); the laws are extrapolated far beyond "
        "their runs, and nothing was measured.",
        next_step="Train the first two stages small, and refit the laws to them with "
        "`moesim quality fit`.",
    )


def _least(point: OperatedPoint) -> float:
    """Return the samples of a device-hour with the worst seed."""
    goodput = [result.goodput_samples_per_s for result in point.results]
    mean = float(np.mean(goodput))
    return point.samples_per_device_hour * (min(goodput) / mean if mean else 1.0)


def _seeds(values: Sequence[float], name: str) -> str:
    if len(values) == 1:
        return f"One seed was drawn, so nothing says how far {name} varies; --seeds 10 does."
    return f"{name} is {min(values):.4f} to {max(values):.4f} over {len(values)} seeds."


__all__ = ["days_answer", "growth_answer", "search_answer", "serving_days_answer"]
