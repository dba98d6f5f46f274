"""The timeline of a training step: one rank of every pipeline stage, and the passes of one layer on
the ranks among which its tokens travel.
"""

from collections.abc import Iterator, Mapping

from moesim.engines.run import run
from moesim.lowering.training.orders import Unit, orders_of
from moesim.model.spec import LayerKind
from moesim.report.slices import Sheet, Slice
from moesim.simulation.training.kinds import BuiltLayer
from moesim.simulation.training.result import COMMUNICATION, TrainResult
from moesim.simulation.training.simulate import RanPipeline, run_pipeline
from moesim.timeline.kernel_names import kernel_names
from moesim.timeline.of_program import sheet_of
from moesim.timeline.program_slices import RanProgram
from moesim.timeline.run_facts import named_apart, with_facts
from moesim.units import US

_WORDS = {"F": "forward", "B": "backward", "W": "weights"}
#: slices of the pipeline; stages beyond are left out
_MOST_OF_PIPELINE = 100_000
_GAP = 0.1


def training_sheet(result: TrainResult) -> Sheet:
    """Return the timeline of a step, which is run once more.

    Args:
        result: What simulating the step gave.
    """
    ran = run_pipeline(result.trained, result.cluster, load=result.load, engine=result.engine)
    pipeline = _Pipeline(ran, result)
    sheet = pipeline.sheet()
    facts = sheet.facts
    for name, part in _layer_sheets(ran):
        sheet.join(named_apart(part, f"layer {name}: "), sheet.end_s * (1.0 + _GAP))
        facts[f"layer_{name}_us"] = part.facts["makespan_us"]
        facts["layer_ranks_shown"] = part.facts["ranks_shown"]
        facts["units"] = part.facts["units"]
    sheet.facts = facts
    return with_facts(
        sheet,
        design=result.trained.key,
        engine=result.engine,
        cluster=result.cluster.name,
        framework=result.framework,
        framework_slowdown=pipeline.slower,
        seed=result.load.seed,
        step_us=result.time_s / US,
        shown="one step on one rank of each stage, then a layer's passes without the framework's "
        "slowdown",
    )


def stage_name(stage: int) -> str:
    """Return the name of a stage's process."""
    return f"stage {stage}"


class _Pipeline:
    """The slices of the stages."""

    def __init__(self, ran: RanPipeline, result: TrainResult) -> None:
        self._ran, self._step_s = ran, result.time_s
        ends = [
            float(ran.timeline.end_s_N[op]) + tail.total_s
            for op, tail in zip(ran.wiring.last, ran.tails, strict=True)
        ]
        self.slower = result.time_s / max(ends)

    def sheet(self) -> Sheet:
        """Return the timeline of the stages that fit."""
        ran = self._ran
        sheet = Sheet(title=f"{ran.setting.trained.label} on {ran.setting.cluster.name}")
        stages, shown = len(ran.tails), 0
        for stage in range(stages):
            slices = list(self._stage(stage))
            if sheet.slices and len(sheet.slices) + len(slices) > _MOST_OF_PIPELINE:
                break
            for one in slices:
                sheet.add(one)
            shown += 1
        sheet.facts = {"stages_shown": shown, "stages": stages}
        return sheet

    def _stage(self, stage: int) -> Iterator[Slice]:
        """Yield what a stage's rank does: passes, the phases in them, hops that it waits for, what
        follows the last pass, and the time in which it does nothing.
        """
        ran, slower = self._ran, self.slower
        trained = ran.setting.trained
        order = orders_of(trained.plan.pipeline, ran.shape)[stage]
        kind_N, start, end = ran.wiring.kind_N, ran.timeline.start_s_N, ran.timeline.end_s_N
        mine = (ran.wiring.device_N == stage).nonzero()[0].tolist()
        done_s, units = 0.0, iter(order)
        for op in mine:
            since, until = float(start[op]) * slower, float(end[op]) * slower
            if kind_N[op] < 0:
                yield self._slice(stage, "receive", ("activations", "hop"), (since, until), {})
                continue
            unit = next(units)
            yield from self._idle(stage, done_s, since)
            yield self._slice(stage, "passes", _named(unit), (since, until), _facts(unit))
            yield from self._phases(stage, unit, since)
            done_s = until
        tail = ran.tails[stage]
        for name, seconds in (
            ("reduce_gradients", tail.reduce_s),
            ("optimizer", tail.optimizer_s),
            ("gather_parameters", tail.gather_s),
        ):
            span = done_s, done_s + seconds * slower
            for track in ("passes", "phases"):
                yield self._slice(stage, track, (name, name), span, {})
            done_s = span[1]
        yield from self._idle(stage, done_s, self._step_s)

    def _phases(self, stage: int, unit: Unit, since: float) -> Iterator[Slice]:
        """Yield the phases of a unit one after the other; layers are summed up."""
        for phase, seconds in self._ran.passes.timed(unit).phases.items():
            until = since + seconds * self.slower
            yield self._slice(stage, "phases", (phase, phase), (since, until), _facts(unit))
            since = until

    def _idle(self, stage: int, since: float, until: float) -> Iterator[Slice]:
        # sums of many passes may be longer by an ulp
        if until - since > 1e-9 * self._step_s:
            yield self._slice(stage, "phases", ("bubble", "bubble"), (since, until), {})

    @staticmethod
    def _slice(
        stage: int,
        track: str,
        names: tuple[str, str],
        span_s: tuple[float, float],
        args: Mapping[str, object],
    ) -> Slice:
        name, category = names
        return Slice(
            process=stage_name(stage),
            track=track,
            name=name,
            category=category,
            begin_s=span_s[0],
            end_s=span_s[1],
            args={
                "phase": category,
                "exposed_communication": track == "phases" and category in COMMUNICATION,
                **args,
            },
        )


def _named(unit: Unit) -> tuple[str, str]:
    """Return the name and the category of a unit."""
    kinds = [one.kind for one in unit]
    if kinds == ["B", "W"]:
        return f"backward {unit[0].batch}", "backward"
    name = " + ".join(f"{_WORDS[one.kind]} {one.batch}" for one in unit)
    return name, _WORDS[kinds[0]] if len(set(kinds)) == 1 else " + ".join(
        dict.fromkeys(_WORDS[kind] for kind in kinds)
    )


def _facts(unit: Unit) -> dict[str, object]:
    return {
        "micro_batch": " ".join(dict.fromkeys(str(one.batch) for one in unit)),
        "part": " ".join(dict.fromkeys(str(one.part) for one in unit)),
    }


def _layer_sheets(ran: RanPipeline) -> Iterator[tuple[str, Sheet]]:
    """Yield the passes of the kind of layer that comes most often among those with experts."""
    setting = ran.setting.of_layers()
    kinds = setting.trained.spec.kinds
    kind: LayerKind = max(kinds, key=lambda one: (one.moe is not None, kinds[one]))
    built = setting.layers()[kind]
    for which in ("forward", "backward"):
        if getattr(built.passes, which):
            yield which, _layer_sheet(ran, built, which)


def _layer_sheet(ran: RanPipeline, built: BuiltLayer, which: str) -> Sheet:
    passes, trained = built.passes, ran.setting.trained
    program = passes.lower(which)
    timeline = run(program, ran.setting.engine)
    exchange = passes.cluster.exchange(passes.schedule).name if passes.priced else None
    part = RanProgram(
        program=program,
        timeline=timeline,
        cluster=passes.cluster,
        names=kernel_names(passes.cluster, built.kernels, exchange, trained.precision.activations),
        facts=lambda key, device: {"pass": which},
    )
    sheet = sheet_of(part, which)
    sheet.facts["makespan_us"] = timeline.makespan_s / US
    return sheet
