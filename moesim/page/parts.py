"""Say where the time of each shown candidate goes, and take its layer apart where it has one."""

from collections.abc import Mapping
from dataclasses import dataclass

from moesim.page.charts import CYCLE, Axis, BarChart
from moesim.page.layer import Anatomy, anatomy, load_charts
from moesim.page.shown import ShownTrial
from moesim.search.evaluate import Problem
from moesim.search.serving_problem import ServingProblem
from moesim.search.study import Study
from moesim.search.training_problem import TrainingProblem
from moesim.search.trial import Trial
from moesim.simulation.prepare import prepare
from moesim.simulation.result import PHASES
from moesim.simulation.steps.experts import present, sent
from moesim.simulation.steps.simulate import StepResult, stage_of
from moesim.units import US

#: phases that have a color of their own; the others are one part
_MOST = len(CYCLE) - 1
_OTHER = "other"
_NOTES = {
    Problem: (
        "The critical path of one layer: the chain of operations that decides when it ends. Time "
        "spent waiting counts for the operation that waited, so an exchange shows only where it is "
        "exposed."
    ),
    ServingProblem: (
        "The critical paths of a usual decode step and of a usual step with a prompt, over all "
        "layers. Time spent waiting counts for the operation that waited; the host is not included."
    ),
    TrainingProblem: (
        "A training step on the busiest pipeline stage. Exchanges show only where they are "
        "exposed; the bubble is the time in which the stage waits for others."
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Strip:
    """Where the time of a candidate goes.

    Attributes:
        name: Name of the candidate, with the step if there are several.
        phase_s: Phase -> seconds.
    """

    name: str
    phase_s: Mapping[str, float]

    def shares(self) -> dict[str, float]:
        """Return the percentage of each phase; they sum to 100."""
        total = sum(self.phase_s.values())
        return {name: 100 * seconds / total for name, seconds in self.phase_s.items() if seconds}


def strips_of(study: Study, shown: ShownTrial, name: str) -> list[Strip]:
    """Return where the time of a candidate goes, step by step.

    Args:
        study: The study.
        shown: The candidate.
        name: Its name.
    """
    problem, trial = study.problem, shown.trial
    if isinstance(problem, ServingProblem):
        found = problem.estimate(trial.params)
        return [
            Strip(name=f"{name}: decode", phase_s=found.decode.phase_time_s),
            Strip(name=f"{name}: prefill", phase_s=found.prefill.phase_time_s),
        ]
    if isinstance(problem, TrainingProblem):
        step = problem.simulated(trial.params, problem.engine)
        return [Strip(name=name, phase_s=step.phase_time_s)]
    row = trial.evaluation.row
    return [Strip(name=name, phase_s={p: row[f"{p}_us"] * US for p in PHASES})]


def bottleneck_chart(study: Study, strips: list[Strip]) -> BarChart:
    """Return the shares of phases as bars of 100 %, a bar per candidate and step."""
    shares = [strip.shares() for strip in strips]
    totals: dict[str, float] = {}
    for one in shares:
        for name, share in one.items():
            totals[name] = totals.get(name, 0.0) + share
    order = sorted(totals, key=lambda name: -totals[name])
    kept, rest = order[:_MOST], order[_MOST:]
    if len(rest) == 1:
        kept, rest = order, []
    parts = {name: [one.get(name, 0.0) for one in shares] for name in kept}
    if rest:
        parts[_OTHER] = [sum(one.get(name, 0.0) for name in rest) for one in shares]
    note = next(text for kind, text in _NOTES.items() if isinstance(study.problem, kind))
    if rest:
        note += f" Other: {', '.join(rest)}."
    return BarChart(
        key="bottleneck",
        title="Where the time goes",
        note=note,
        x=Axis(label="share of the time (%)"),
        rows=tuple(strip.name for strip in strips),
        parts=parts,
        colors=dict(zip(parts, (*CYCLE[: len(kept)], "muted"), strict=False)),
        stacked=True,
    )


def anatomy_of(study: Study, trial: Trial) -> Anatomy:
    """Take the MoE layer of a candidate apart."""
    problem = study.problem
    if isinstance(problem, Problem):
        candidate, cluster = problem.space.decode(trial.params, problem.cluster)
        return anatomy(prepare(candidate, cluster, problem.workload))
    if isinstance(problem, ServingProblem):
        return _served(problem, problem.estimate(trial.params).decode)
    note = (
        "A training study prices its layers from the mean of their loads, so there are no drawn "
        "tokens whose traffic, stragglers and expert loads could be shown."
    )
    return Anatomy(phase_s={}, stragglers=[], charts=(), notes=(note,))


def _served(problem: ServingProblem, step: StepResult) -> Anatomy:
    """Take the first MoE layer of a usual decode step apart."""
    served, load = step.served, problem.workload.load()
    if served.spec.moe is None:
        note = "The model has no experts."
        return Anatomy(phase_s={}, stragglers=[], charts=(), notes=(note,))
    stage = stage_of(problem.cluster, served.layout.devices_per_stage)
    candidate, drawn = served.candidate(served.spec.moe), load.of_layer(0, 0)
    if served.layout.exchanges_tokens:
        return anatomy(sent(candidate, stage, step.step.tokens / served.layout.tp, drawn))
    found = present(candidate, stage, max(round(step.step.tokens), 1), drawn)
    rows_D = found.traffic.counts_DL.sum(axis=1)
    note = (
        "The tokens are on every device of this layout, which exchanges no tokens between experts: "
        "there is neither traffic nor a straggler over links."
    )
    if rows_D.max() > rows_D.mean():
        late = int(rows_D.argmax())
        note += (
            f" Device {late} has the most rows, {rows_D[late] / rows_D.mean():.2f} times the mean."
        )
    charts = tuple(load_charts(found.traffic)[-1:])
    return Anatomy(phase_s={}, stragglers=[], charts=charts, notes=(note,))


__all__ = ["Strip", "anatomy_of", "bottleneck_chart", "strips_of"]
