"""Say what operations come to, line by line: (word, text)."""

from collections.abc import Sequence

import numpy as np

from moesim.operations.checkpoints import checkpoint_costs, ettr_of
from moesim.operations.days_result import DaysResult
from moesim.operations.days_setting import TrainingDays
from moesim.operations.failure_rates import DAY_S, HOUR_S, Cause, events_of
from moesim.operations.plan_search import OperatedPoint
from moesim.operations.replication import replication_costs
from moesim.operations.serving_days import ServingDays, ServingDaysResult
from moesim.units import GIB

Line = tuple[str, str]
#: causes that are told, those that come most often
_SHOWN = 6


def setting_lines(setting: TrainingDays) -> list[Line]:
    """Return what is simulated: the job, its checkpoints, its copies and its failures."""
    job, policy = setting.job, setting.checkpoint
    costs = checkpoint_costs(policy, job)
    lines = [
        (
            "job",
            f"{job.devices:,} devices, step {job.step_s:.3g} s, states: dense "
            f"{job.dense_bytes / GIB:,.0f} GiB, experts {job.expert_bytes / GIB:,.0f} GiB",
        ),
        (
            "checkpoint",
            f"{policy.kind}{', asynchronous' * policy.asynchronous}, every {costs.interval_steps} "
            f"steps ({costs.interval_steps * job.step_s:,.0f} s): {costs.written_bytes / GIB:,.0f} "
            f"GiB, stops {costs.block_s:.3g} s, lasts {costs.lasts_after_s:.3g} s later, read in "
            f"{costs.restore_s:.3g} s",
        ),
    ]
    if setting.replication.degree:
        copies = replication_costs(setting.replication, job)
        lag_s = setting.replication.interval_steps * job.step_s / 2 + copies.transfer_s
        lines.append(
            (
                "copies",
                f"{setting.replication.degree} of each expert on another "
                f"{setting.replication.where}, refreshed every "
                f"{setting.replication.interval_steps} steps in {copies.transfer_s:.3g} s "
                f"({copies.exposed_s:.3g} s exposed), {lag_s:.3g} s old on average, "
                f"{copies.memory_bytes / GIB:.2f} GiB a device",
            )
        )
    return [*lines, ("failures", failures_text(setting.causes, job.devices, setting.days))]


def failures_text(causes: Sequence[Cause], devices: int, days: float) -> str:
    """Return how many failures are expected, and of which causes."""
    expected = events_of(causes, devices, days)
    total = sum(expected.values())
    if not total:
        return f"none in {days:g} days"
    most = sorted(expected.items(), key=lambda one: -one[1])
    told = ", ".join(f"{name} {count:.3g}" for name, count in most[:_SHOWN])
    more = f" and {len(most) - _SHOWN} more causes" if len(most) > _SHOWN else ""
    return (
        f"{total:,.4g} expected in {days:g} days, one in {days * DAY_S / HOUR_S / total:.3g} h: "
        f"{told}{more}"
    )


def first_order_ettr(setting: TrainingDays) -> float | None:
    """Return the effective training time ratio to first order (see
    `moesim.operations.checkpoints.ettr_of`); None where it says nothing: without failures, with
    copies, or with causes that are hidden at first.
    """
    hidden = any(cause.silent or cause.slowdown > 1 for cause in setting.causes)
    rate = sum(cause.per_second(setting.job.devices) for cause in setting.causes)
    if hidden or setting.replication.degree or not rate:
        return None
    costs, recovery = checkpoint_costs(setting.checkpoint, setting.job), setting.recovery
    return ettr_of(
        block_s=costs.block_s,
        interval_s=costs.interval_steps * setting.job.step_s + costs.block_s,
        restart_s=recovery.detection_s + recovery.restart_s + costs.restore_s,
        mtbf_s=1.0 / rate,
    )


def days_lines(setting: TrainingDays, results: Sequence[DaysResult]) -> list[Line]:
    """Return what days of training came to: means over seeds."""

    def mean(key: str) -> float:
        return float(np.mean([getattr(result, key) for result in results]))

    ratios = [result.ettr for result in results]
    spread = f" ({min(ratios):.4f} to {max(ratios):.4f} over {len(results)} seeds)"
    first = first_order_ettr(setting)
    hours = setting.days * 24
    parts = {
        "useful": mean("ettr") * hours,
        "lost": mean("lost_steps") * setting.job.step_s / HOUR_S,
        "down": mean("down_s") / HOUR_S,
        "checkpoints": mean("checkpoint_s") / HOUR_S,
        "copies": mean("replication_s") / HOUR_S,
        "slower steps": mean("slow_s") / HOUR_S,
        "cut steps": mean("cut_s") / HOUR_S,
    }
    told = ", ".join(f"{name} {value:,.1f}" for name, value in parts.items() if value)
    lines = [
        (
            "ETTR",
            f"{mean('ettr'):.4f}{spread * (len(results) > 1)}"
            + (f"; {first:.4f} to first order" if first is not None else ""),
        ),
        ("goodput", f"{mean('goodput_samples_per_s'):,.4g} samples/s in the lineage"),
        ("hours", told),
        (
            "stops",
            f"{mean('interruptions'):,.4g}: {mean('rollbacks'):,.4g} rolled back, "
            f"{mean('failovers'):,.4g} failed over to copies",
        ),
        (
            "lost work",
            f"{mean('lost_steps'):,.4g} steps computed again; {mean('lost_updates'):,.4g} expert "
            f"updates lost for good ({100 * mean('lost_update_fraction'):.3g} % of all)",
        ),
    ]
    effect = results[0].loss_effect
    if effect is not None:
        lines.append(
            (
                "loss",
                f"+{effect[1]:.2g} nats from lost updates ({effect[0]:.2g} to {effect[2]:.2g}), an "
                "assumption: nothing to tokens never seen",
            )
        )
    return lines


def serving_lines(setting: ServingDays, result: ServingDaysResult) -> list[Line]:
    """Return what days of serving came to."""
    pool = setting.pool
    ranks = pool.cluster.num_devices
    half = max(ranks // 2, pool.fewest_ranks)
    return [
        (
            "server",
            f"{pool.served.name} on {ranks} ranks, {pool.slots_per_rank} expert slots each, "
            f"{pool.tokens_per_s(ranks):,.0f} tokens/s; every expert has a place on "
            f"{pool.fewest_ranks} ranks or more",
        ),
        (
            "half lost",
            f"{ranks - half} ranks lost: stands {pool.pause_s(range(half, ranks)):.2f} s, then "
            f"{pool.tokens_per_s(half) / pool.tokens_per_s(ranks):.3f} of the throughput",
        ),
        ("failures", failures_text(setting.causes, ranks, setting.days)),
        (
            "goodput",
            f"{100 * result.goodput_fraction:.3f} % of all ranks' tokens, serving "
            f"{100 * result.availability:.4f} % of the time",
        ),
        ("lost work", f"{result.lost_sequences:,.0f} sequences computed again"),
    ]


def point_text(point: OperatedPoint) -> str:
    """Return a way to run a job in a few words."""
    setting = point.setting
    number, every = setting.replication.degree, setting.replication.interval_steps
    word = "copy" if number == 1 else "copies"
    copies = f"{number} {word} every {every} steps" if number else "no copies"
    return (
        f"checkpoint every {setting.checkpoint.interval_s:,.0f} s, {copies}, "
        f"{setting.recovery.spare_nodes} spare nodes, "
        f"{'elastic' if setting.recovery.elastic else 'waiting for repairs'}: ETTR "
        f"{point.ettr:.4f}, {point.samples_per_device_hour:,.4g} samples a device-hour"
    )
