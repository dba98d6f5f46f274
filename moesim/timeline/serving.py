"""The timeline of a model that serves: two layers of a decode step and of a prompt's step in the
steady state, and the first steps of the request loop in its steady window.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from moesim.design.step import ExpertLoad
from moesim.hardware.serving_engines import ServingEngine
from moesim.report.slices import Counter, Sheet, Slice
from moesim.serving.loop.watching import SeenStep
from moesim.serving.pools import ServedPool
from moesim.serving.result import WholeResult
from moesim.simulation.steps.simulate import RanStep, StepDetail, StepResult, run_step
from moesim.timeline.kernel_names import kernel_names
from moesim.timeline.of_program import ShownPart, sheet_of
from moesim.timeline.program_slices import OpGroup, RanProgram
from moesim.timeline.run_facts import named_apart, with_facts
from moesim.units import US

#: steps of a server that are shown
SHOWN_STEPS = 64
#: layers of a step that are shown
_SHOWN_LAYERS = 2
#: gap between two parts of a timeline, as a share of the first
_GAP = 0.1


def serving_sheet(result: WholeResult, load: ExpertLoad, steps: Sequence[SeenStep]) -> Sheet:
    """Return the timeline of a model that serves.

    Args:
        result: What serving it gave.
        load: How tokens choose experts.
        steps: Steps of its request loop, such as `FirstSteps` keeps; empty for none.
    """
    before, after = result.pools[0], result.pools[-1]
    sheet = Sheet(title=f"{result.served.label} on {result.cluster.name}")
    facts: dict[str, object] = {}
    for name, pool, step in (("decode", after, result.decode), ("prompt", before, result.prefill)):
        part = step_sheet(pool, step, load)
        facts["units"] = part.facts.pop("units")
        facts |= {f"{name}_{key}": value for key, value in part.facts.items()}
        sheet.join(named_apart(part, f"{name}: "), sheet.end_s * (1.0 + _GAP))
    if steps:
        loop = _loop(steps, result.engine)
        sheet.join(loop, sheet.end_s * (1.0 + _GAP))
        facts |= loop.facts
    sheet.facts = facts
    return with_facts(
        sheet,
        design=result.served.key,
        engine=result.decode.engine,
        cluster=result.cluster.name,
        serving_engine=result.engine.name,
        seed=result.traffic.seed,
        shown="two layers of a decode step, two of a prompt's step, then steps of the request loop",
    )


def step_sheet(pool: ServedPool, step: StepResult, load: ExpertLoad) -> Sheet:
    """Return the timeline of two layers of a step in the steady state.

    Args:
        pool: The servers whose step it is.
        step: What simulating the step gave; the same layers run again.
        load: How tokens choose experts.
    """
    ran = run_step(pool.served, pool.cluster, step.step, load=load, detail=StepDetail(step.engine))
    first, last, part = _steady(ran)
    served, stage = ran.served, ran.stage
    exchange = served.schedule.exchange if served.layout.exchanges_tokens else None
    names = kernel_names(stage, step.kernels, exchange, served.precision.activations)
    program = RanProgram(
        program=ran.lowered.program,
        timeline=ran.timeline,
        cluster=stage,
        layer_N=ran.lowered.layer_N(),
        names=names,
        facts=_Tokens(ran).of,
    )
    sheet = sheet_of(program, served.label, part)
    sheet.facts |= {
        "step_us": step.time_s / US,
        "layers_shown": f"{first + 1} to {last + 1} of {len(ran.layers)} that were lowered",
        "layer_us": (part.end_s - part.begin_s) / (last - first + 1) / US,
        "tokens_per_rank": step.step.tokens,
    }
    return sheet


def _steady(ran: RanStep) -> tuple[int, int, ShownPart]:
    """Return the last two layers of the run with most layers, as the first and last index and the
    time of the first micro-batch between their begin and end.
    """
    longest = max(ran.runs, key=lambda run: run.repeats * len(run.pattern))
    before = sum(run.lowered * len(run.pattern) for run in ran.runs[: ran.runs.index(longest)])
    end = before + longest.lowered * len(longest.pattern)
    first = max(end - _SHOWN_LAYERS, before)
    marks_s = ran.seconds_at(ran.lowered.layer_marks[0])
    return first, end - 1, ShownPart(marks_s[first], marks_s[end])


class _Tokens:
    """The tokens of the slices of a step."""

    def __init__(self, ran: RanStep) -> None:
        self._layers = ran.layers

    def of(self, key: OpGroup, device: int) -> Mapping[str, object]:
        """Return the facts of one slice."""
        if not 0 <= key.layer < len(self._layers) or key.phase != "experts":
            return {}
        experts = self._layers[key.layer][1]
        if experts is None:
            return {}
        # a chunked step names the parts of one micro-batch
        at = int(key.batch.rpartition(".")[2] or 0) % len(experts.batches)
        batch = experts.batches[at]
        counts_DL = batch.counts_DL
        row = counts_DL[device % len(counts_DL)]
        tokens = float(np.asarray(batch.tokens_D)[device % len(counts_DL)])
        return {"tokens": tokens, "rows": int(row.sum())}


def _loop(steps: Sequence[SeenStep], engine: ServingEngine) -> Sheet:
    """Return steps of servers: what devices compute, what the host adds, and who waits."""
    sheet = Sheet(title="request loop")
    begin_s = min(one.begin_s for one in steps)
    for server in dict.fromkeys(one.server for one in steps):
        mine = [one for one in steps if one.server == server]
        for number, one in enumerate(mine):
            for slice_ in _step_slices(one, number, engine, begin_s):
                sheet.add(slice_)
        time_s = np.array([one.begin_s - begin_s for one in mine] + [mine[-1].end_s - begin_s])
        for name in ("running", "waiting", "prompt_tokens"):
            values = [float(getattr(one, name)) for one in mine]
            sheet.counters.append(
                Counter(
                    process=f"requests: {server}",
                    name=name.replace("_", " "),
                    unit="tokens" if name == "prompt_tokens" else "requests",
                    time_s_P=time_s,
                    value_P=np.array([*values, values[-1]]),
                )
            )
    sheet.facts = {"loop_begin_s": begin_s, "loop_steps_per_server": SHOWN_STEPS}
    return sheet


def _step_slices(one: SeenStep, number: int, engine: ServingEngine, begin_s: float) -> list[Slice]:
    kind = "prompt" if one.prompt_tokens else "decode"
    kind = "mixed" if one.prompt_tokens and one.sequences else kind
    host_s = engine.step_s + engine.request_s * (one.sequences + (one.prompt_tokens > 0))
    # a step may be shorter than the host's part where ranks differ
    devices_end_s = max(one.end_s - host_s, one.begin_s)
    args = {
        "step": number,
        "prompt_tokens": one.prompt_tokens,
        "sequences": one.sequences,
        "running": one.running,
        "waiting": one.waiting,
    }
    spans = (
        ("devices", f"{kind} step", one.begin_s, devices_end_s),
        ("host", "schedule, sample, send", devices_end_s, one.end_s),
    )
    return [
        Slice(
            process=f"requests: {one.server}",
            track=track,
            name=name,
            category=f"{kind} step" if track == "devices" else "host",
            begin_s=since - begin_s,
            end_s=until - begin_s,
            args=dict(args),
        )
        for track, name, since, until in spans
        if until > since
    ]
