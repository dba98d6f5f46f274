"""Check what every engine must do with every program of `moesim.testing.engine_cases`.

An engine is a function from a `Program` to a `Timeline`. It is of one of three kinds: a ``bound``
reports earliest times, ``fluid`` engines share resources continuously, and ``chunked`` ones serve
chunks of at most 1 / 1024 of the bound in turn.
"""

from collections.abc import Callable
from typing import Literal, get_args

import numpy as np

from moesim.program import Program, Timeline
from moesim.testing.engine_cases import CASES, QUANTA, EngineCase, op, program_of
from moesim.testing.expect import expect, expect_close

Run = Callable[[Program], Timeline]
Kind = Literal["bound", "fluid", "chunked"]
Check = Callable[[Run, Kind, EngineCase], None]


def log_is_computed_by_hand(run: Run, kind: Kind, case: EngineCase) -> None:
    """Check starts, ends and makespan against the log of the case.

    Args:
        run: The engine.
        kind: Its kind.
        case: The program and its log.

    Raises:
        AssertionError: An op starts or ends at another time.
    """
    timeline = run(case.program)
    logs = {
        "bound": case.earliest,
        "fluid": case.schedule,
        "chunked": case.chunked or case.schedule,
    }
    slack_s = case.quanta * case.bound_s / QUANTA if kind == "chunked" else 0.0
    found = np.column_stack([timeline.start_s_N, timeline.end_s_N])
    wanted = np.array(logs[kind], dtype=np.float64).reshape(-1, 2)
    expect_close(found, wanted, f"{case.name}: start and end of each op", abs_=slack_s + 1e-12)
    makespan_s = case.bound_s if kind == "bound" else case.makespan_s
    rule = f"{case.name}: the makespan"
    expect_close(timeline.makespan_s, makespan_s, rule, abs_=slack_s)


def work_is_conserved(run: Run, kind: Kind, case: EngineCase) -> None:
    """Check that every resource serves what the program demands, and that the engine names itself.

    Args:
        run: The engine.
        kind: Its kind.
        case: The program.

    Raises:
        AssertionError: Work is lost or made up, or a bound claims to be a schedule.
    """
    timeline = run(case.program)
    served = timeline.busy_s_R * case.program.capacity_R
    expect_close(served, case.program.demand_R(), f"{case.name}: the work of each resource")
    expect(timeline.engine, f"{case.name}: an engine that names itself", timeline.engine)
    exact = kind != "bound"
    expect(timeline.exact == exact, f"{case.name}: Timeline.exact to be {exact}", timeline.exact)


def times_are_float_arrays(run: Run, kind: Kind, case: EngineCase) -> None:
    """Check types and shapes: an engine that returns integers breaks the next division in place.

    Args:
        run: The engine.
        kind: Its kind.
        case: The program.

    Raises:
        AssertionError: An array is of another type or shape.
    """
    timeline, program = run(case.program), case.program
    arrays = {
        "start_s_N": (timeline.start_s_N, program.num_ops),
        "end_s_N": (timeline.end_s_N, program.num_ops),
        "busy_s_R": (timeline.busy_s_R, len(program.capacity_R)),
    }
    for name, (values, size) in arrays.items():
        rule = f"{case.name}: {name} to be float64 of shape ({size},)"
        found = (str(values.dtype), values.shape)
        expect(found == ("float64", (size,)), rule, found)


def no_op_starts_before_what_it_waits_for(run: Run, kind: Kind, case: EngineCase) -> None:
    """Check releases and dependencies.

    Args:
        run: The engine.
        kind: Its kind.
        case: The program.

    Raises:
        AssertionError: An op starts too early, or ends before it starts.
    """
    timeline, program = run(case.program), case.program
    expect_dependencies(program, timeline, case.name)
    early = timeline.start_s_N < program.release_s_N * (1 - 1e-12)
    expect(not early.any(), f"{case.name}: no op to start before its release")


def expect_dependencies(program: Program, timeline: Timeline, name: str) -> None:
    """Check that every op starts after the ends of those it waits for.

    Args:
        program: The program.
        timeline: When its ops ran.
        name: Name of the program in an error.

    Raises:
        AssertionError: An op starts too early, or ends before it starts.
    """
    expect((timeline.end_s_N >= timeline.start_s_N).all(), f"{name}: no end before its start")
    for i in range(program.num_ops):
        waits_for = program.dep_index[program.dep_ptr[i] : program.dep_ptr[i + 1]]
        ready_s = timeline.end_s_N[waits_for].max() if len(waits_for) else 0.0
        started_s = timeline.start_s_N[i]
        rule = f"{name}: op {i} to start at {ready_s:.12g} s or later"
        expect(started_s >= ready_s * (1 - 1e-12), rule, float(started_s))


def equal_programs_have_equal_timelines(run: Run, kind: Kind, case: EngineCase) -> None:
    """Check that a second run gives the same numbers to the last bit.

    Args:
        run: The engine.
        kind: Its kind.
        case: The program.

    Raises:
        AssertionError: The runs differ.
    """
    one, other = run(case.program), run(case.program)
    same = np.array_equal(one.start_s_N, other.start_s_N)
    same = same and np.array_equal(one.end_s_N, other.end_s_N)
    expect(same and one.makespan_s == other.makespan_s, f"{case.name}: two equal runs")


#: the checks of every case
CHECKS: tuple[Check, ...] = (
    log_is_computed_by_hand,
    work_is_conserved,
    times_are_float_arrays,
    no_op_starts_before_what_it_waits_for,
    equal_programs_have_equal_timelines,
)


def tiny_demand_waits_its_turn(run: Run) -> None:
    """Check that no engine loses a demand that is tiny on a saturated resource.

    Op 1 needs 1e-10 s of a port that op 0 keeps busy for 10 s, and 1 s of another.

    Args:
        run: The engine.

    Raises:
        AssertionError: An op never ends, or ends at another time.
    """
    program = program_of([1.0, 1.0], op({0: 10.0}), op({0: 1e-10, 1: 1.0}, latency_s=1.0))
    found = run(program).end_s_N
    expect(np.isfinite(found).all(), "tiny demand: every op to end", found)
    rule = "tiny demand: the end of each op"
    expect_close(found, [10.0, 2.0], rule, rel=1e-6, abs_=10 / QUANTA + 1e-9)


def check_engine(run: Run, kind: Kind) -> None:
    """Run all checks of engines on an engine.

    Args:
        run: The engine: a function from a program to a timeline.
        kind: ``bound``, ``fluid`` or ``chunked``.

    Raises:
        ValueError: There is no such kind.
        AssertionError: The engine breaks a rule, which the text names with its case.
    """
    if kind not in get_args(Kind):
        raise ValueError(f"kind: expected one of {', '.join(get_args(Kind))}, got {kind!r}")
    for case in CASES:
        for check in CHECKS:
            check(run, kind, case)
    tiny_demand_waits_its_turn(run)
