"""The timeline of days with failures: what the time of a job goes to."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from moesim.design.identity import digest
from moesim.operations.days_result import DayEvent, DaysResult, WorkedStretch
from moesim.operations.failure_rates import DAY_S
from moesim.operations.serving_days import ServingDaysResult, ServingEvent
from moesim.report.slices import Counter, Sheet, Slice
from moesim.timeline.run_facts import with_facts

JOB = ("job", "state")
#: slices of the job; days beyond are left out
_MOST_SLICES = 150_000


def days_sheet(result: DaysResult) -> Sheet:
    """Return the timeline of days of training.

    Steps that a later failure rolled back are lost; they are told from useful ones run by run.

    Args:
        result: The days.
    """
    sheet = Sheet(title=f"{result.days:g} days of training on {result.job.devices:,} devices")
    shown_s = result.days * DAY_S
    for one in _states(result):
        if len(sheet.slices) >= _MOST_SLICES:
            shown_s = one.begin_s
            break
        sheet.add(one)
    sheet.counters = list(_counters(result.events, ("devices", "spares", "lost_steps"), shown_s))
    return with_facts(
        sheet,
        design=digest({"job": repr(result.job)}),
        engine="days",
        seed=result.seed,
        ettr=result.ettr,
        days_shown=shown_s / DAY_S,
        units="ts and dur: us of the days. steps: steps of the job.",
        shown="useful and lost steps, checkpoints, cut work and stops of a job",
    )


def serving_days_sheet(result: ServingDaysResult) -> Sheet:
    """Return the timeline of days of serving.

    Args:
        result: The days.
    """
    sheet = Sheet(title=f"{result.days:g} days of serving")
    end_s = result.days * DAY_S
    bounds = [0.0, *(event.time_s for event in result.events), end_s]
    before: list[ServingEvent | None] = [None, *result.events]
    for event, since, until in zip(before, bounds, bounds[1:], strict=False):
        back_s = since
        if event is not None:
            back_s = until if event.tokens_per_s == 0 else min(since + event.pause_s, until)
            args = {"cause": event.cause, "ranks": event.ranks}
            _add(sheet, (event.response, "down"), (since, back_s), args)
        rate = result.full_tokens_per_s if event is None else event.tokens_per_s
        _add(sheet, ("serving", "serving"), (back_s, until), {"tokens_per_s": rate})
    sheet.counters = list(_counters(result.events, ("ranks", "tokens_per_s"), end_s))
    return with_facts(
        sheet,
        design=digest({"days": repr(result.row())}),
        engine="days",
        seed=result.seed,
        availability=result.availability,
        units="ts and dur: us of the days.",
        shown="serving and stops of a server",
    )


def _add(
    sheet: Sheet, names: tuple[str, str], span_s: tuple[float, float], args: dict[str, object]
) -> None:
    if span_s[1] > span_s[0]:
        sheet.add(_state(names, span_s, args))


def _state(names: tuple[str, str], span_s: tuple[float, float], args: dict[str, object]) -> Slice:
    process, track = JOB
    name, category = names
    return Slice(
        process=process,
        track=track,
        name=name,
        category=category,
        begin_s=span_s[0],
        end_s=span_s[1],
        args={"phase": category, **args},
    )


def _states(result: DaysResult) -> list[Slice]:
    """Return what the job did, in order of time."""
    found: list[Slice] = []
    #: indices of the runs of steps that the model still holds
    held: list[int] = []
    stops = [event for event in result.events if event.down_s > 0 or event.lost_steps]
    moments: list[tuple[float, int, WorkedStretch | DayEvent]] = [
        *((one.begin_s, 0, one) for one in result.stretches),
        *((event.time_s, 1, event) for event in stops),
    ]
    moments.sort(key=lambda one: one[:2])
    for _, _, one in moments:
        if isinstance(one, WorkedStretch):
            for slice_ in _worked(one):
                if slice_.category == "useful":
                    held.append(len(found))
                found.append(slice_)
            continue
        _lose(found, held, one.lost_steps)
        if one.down_s > 0:
            args: dict[str, object] = {
                "cause": one.cause,
                "scope": one.scope,
                "device": one.device,
                "lost_steps": one.lost_steps,
                "devices": one.devices,
            }
            found.append(
                _state((one.response, "down"), (one.time_s, one.time_s + one.down_s), args)
            )
    return sorted(found, key=lambda one: one.begin_s)


def _worked(one: WorkedStretch) -> Iterator[Slice]:
    """Yield the steps and checkpoints of a stretch."""
    at_s, left, until = one.begin_s, one.steps, one.until_checkpoint
    for _ in range(one.checkpoints):
        if until > 0:
            yield _steps(at_s, until, one.step_s)
        at_s, left = at_s + until * one.step_s, left - until
        if one.block_s > 0:
            yield _state(("checkpoint", "checkpoint"), (at_s, at_s + one.block_s), {})
        at_s, until = at_s + one.block_s, one.interval_steps
    if left > 0:
        yield _steps(at_s, left, one.step_s)
    # what is left may be rounding
    if one.cut_s > 0 and one.end_s > at_s + left * one.step_s:
        yield _state(("cut", "cut"), (at_s + left * one.step_s, one.end_s), {})


def _steps(begin_s: float, count: int, step_s: float) -> Slice:
    return _state(("steps", "useful"), (begin_s, begin_s + count * step_s), {"steps": count})


def _lose(found: list[Slice], held: list[int], lost: int) -> None:
    """Mark the last steps that the model holds as lost; a run of which some stay is divided."""
    while lost > 0 and held:
        at = held.pop()
        run = found[at]
        count = int(str(run.args["steps"]))
        gone = min(lost, count)
        lost -= gone
        cut_s = run.end_s - run.seconds * gone / count
        args = {**run.args, "phase": "lost", "steps": gone}
        part = replace(run, name="lost steps", category="lost", begin_s=cut_s, args=args)
        if gone == count:
            found[at] = replace(part, begin_s=run.begin_s)
            continue
        found[at] = replace(run, end_s=cut_s, args={**run.args, "steps": count - gone})
        found.append(part)
        held.append(at)


def _counters(
    events: Sequence[DayEvent] | Sequence[ServingEvent], names: tuple[str, ...], end_s: float
) -> Iterator[Counter]:
    seen = [event for event in events if event.time_s < end_s]
    for name in names if seen else ():
        values = [float(getattr(event, name)) for event in seen]
        yield Counter(
            process=JOB[0],
            name=name.replace("_", " "),
            unit=name,
            time_s_P=np.array([*(event.time_s for event in seen), end_s]),
            value_P=np.array([*values, values[-1]]),
        )
