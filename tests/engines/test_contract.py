"""What every engine owes every program: hand-computed schedules, compared as whole event logs.

A case states the fluid schedule (``flow`` meets it exactly) and the earliest times (``bound``'s documented log, which
is no schedule). ``event`` takes turns in chunks of one quantum, 1 / 1024 of the bound: a case states its own exact log
where that can be computed by hand, else how many quanta an op may start or end apart from the fluid schedule.
"""

from dataclasses import dataclass

import numpy as np
import pytest

from moesim.engines import ENGINES
from moesim.engines.run import run
from moesim.errors import UnknownNameError
from moesim.program import Program
from moesim.program.builder import ProgramBuilder

Log = list[tuple[int, float, float]]


@dataclass(frozen=True)
class Case:
    name: str
    program: Program
    schedule: Log
    earliest: Log
    bound_s: float
    quanta: int = 0
    event: Log | None = None


def program(capacities, *ops):
    """Ops as dicts of `ProgramBuilder.op`; demands as ``{resource: amount}``."""
    builder = ProgramBuilder()
    for r, capacity in enumerate(capacities):
        builder.resource(f"r{r}", capacity)
    for i, op in enumerate(ops):
        demand = op.pop("demand", {})
        builder.op(f"op{i}", resources=list(demand), amounts=list(demand.values()), **op)
    return builder.build()


def same(name, built, log, bound_s=None):
    """A case without contention: every engine gives the same log."""
    makespan = max((end for _, _, end in log), default=0.0)
    return Case(name, built, log, log, makespan if bound_s is None else bound_s)


CASES = [
    same("empty", program([]), []),
    same("resource nobody uses", program([2.0], {"latency_s": 0.25}), [(0, 0.0, 0.25)]),
    same("roofline of one op",
         program([4.0, 2.0, 1.0], {"demand": {0: 8.0, 1: 6.0}, "latency_s": 0.5, "release_s": 1.0}), [(0, 1.0, 4.5)]),
    same("zero demands are none",
         program([1.0, 1.0], {"demand": {0: 0.0, 1: 2.0}}, {"demand": {0: 1.0}}), [(0, 0.0, 2.0), (1, 0.0, 1.0)]),
    same("chain with latencies and releases",
         program([1.0], {"demand": {0: 1.0}, "latency_s": 0.5}, {"demand": {0: 2.0}, "after": [0], "release_s": 1.0},
                 {"demand": {0: 1.0}, "after": [1], "latency_s": 0.25, "release_s": 5.0}, {"after": [2]}),
         [(0, 0.0, 1.5), (1, 1.5, 3.5), (2, 5.0, 6.25), (3, 6.25, 6.25)]),
    same("barriers without demand, one with latency",
         program([1.0, 1.0], {"demand": {0: 1.0}}, {"demand": {1: 3.0}}, {"after": [0, 1]},
                 {"after": [2], "latency_s": 0.5}, {"demand": {0: 2.0}, "after": [3]},
                 {"demand": {1: 1.0}, "after": [3]}),
         [(0, 0.0, 1.0), (1, 0.0, 3.0), (2, 3.0, 3.0), (3, 3.0, 3.5), (4, 3.5, 5.5), (5, 3.5, 4.5)]),
    same("a latency holds nothing",
         program([1.0], {"demand": {0: 1.0}, "latency_s": 1.0}, {"demand": {0: 1.0}}), [(0, 0.0, 2.0), (1, 0.0, 1.0)]),
    same("ends come before starts of the same instant",
         program([1.0, 1.0, 1.0], {"demand": {0: 1.0}}, {"demand": {1: 1.0}}, {"demand": {0: 1.0}, "release_s": 1.0},
                 {"demand": {1: 1.0, 2: 0.5}, "after": [0]}, {"after": [2, 3]}),
         [(0, 0.0, 1.0), (1, 0.0, 1.0), (2, 1.0, 2.0), (3, 1.0, 2.0), (4, 2.0, 2.0)]),
    Case("two equal ops share equally",
         program([2.0], {"demand": {0: 2.0}}, {"demand": {0: 2.0}}),
         [(0, 0.0, 2.0), (1, 0.0, 2.0)], [(0, 0.0, 1.0), (1, 0.0, 1.0)], 2.0,
         event=[(0, 0.0, 2.0 - 2 / 1024), (1, 0.0, 2.0)]),
    Case("unequal demands share equally until the smaller ends",
         program([1.0], {"demand": {0: 1.0}}, {"demand": {0: 3.0}}),
         [(0, 0.0, 2.0), (1, 0.0, 4.0)], [(0, 0.0, 1.0), (1, 0.0, 3.0)], 4.0,
         event=[(0, 0.0, 2.0 - 4 / 1024), (1, 0.0, 4.0)]),
    Case("a late op shares what is left",
         program([1.0], {"demand": {0: 2.0}}, {"demand": {0: 0.5}, "release_s": 0.5, "latency_s": 0.5}),
         [(0, 0.0, 2.5), (1, 0.5, 2.0)], [(0, 0.0, 2.0), (1, 0.5, 1.5)], 2.5, quanta=1),
    Case("an op on two resources is held by the busier, and the other speeds up when it ends",
         program([1.0, 1.0], {"demand": {0: 1.0, 1: 0.5}}, {"demand": {1: 2.0}}),
         [(0, 0.0, 1.5), (1, 0.0, 2.5)], [(0, 0.0, 1.0), (1, 0.0, 2.0)], 2.5, quanta=1),
    Case("max-min: what an op cannot use goes to the others",
         program([1.0, 1.0], {"demand": {0: 1.0}}, {"demand": {0: 1.0}}, {"demand": {0: 1.0, 1: 1.0}},
                 {"demand": {1: 1.0}}),
         [(0, 0.0, 3.0), (1, 0.0, 3.0), (2, 0.0, 3.0), (3, 0.0, 1.5)], [(i, 0.0, 1.0) for i in range(4)], 3.0,
         quanta=2),
    Case("equal bytes per second and flow: one flow against three",
         program([1.0], {"demand": {0: 3.0}, "bytes_per_flow": 3.0}, {"demand": {0: 3.0}, "bytes_per_flow": 1.0}),
         [(0, 0.0, 6.0), (1, 0.0, 4.0)], [(0, 0.0, 3.0), (1, 0.0, 3.0)], 6.0),
    Case("head, work and tail bound a shared resource",
         program([1.0, 1.0], {"demand": {1: 1.0}}, {"demand": {0: 2.0}, "after": [0]},
                 {"demand": {0: 2.0}, "after": [0]},
                 {"demand": {1: 1.0}, "after": [1]}, {"demand": {1: 1.0}, "after": [2]}),
         [(0, 0.0, 1.0), (1, 1.0, 5.0), (2, 1.0, 5.0), (3, 5.0, 7.0), (4, 5.0, 7.0)],
         [(0, 0.0, 1.0), (1, 1.0, 3.0), (2, 1.0, 3.0), (3, 3.0, 4.0), (4, 3.0, 4.0)], 6.0, quanta=3),
]


def log(timeline):
    times = zip(timeline.start_s_N.tolist(), timeline.end_s_N.tolist(), strict=True)
    return [(i, start, end) for i, (start, end) in enumerate(times)]


def close(expected, abs_s):
    return [(i, pytest.approx(start, rel=1e-12, abs=abs_s), pytest.approx(end, rel=1e-12, abs=abs_s))
            for i, start, end in expected]


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
@pytest.mark.parametrize("engine", ENGINES)
def test_log(engine, case):
    timeline = run(case.program, engine)
    chunked = case.event or case.schedule
    expected = {"bound": case.earliest, "flow": case.schedule, "event": chunked, "event_compiled": chunked}[engine]
    slack = case.quanta * case.bound_s / 1024 if engine.startswith("event") else 0.0
    assert log(timeline) == close(expected, slack + 1e-12)
    makespan = case.bound_s if engine == "bound" else max((end for _, _, end in case.schedule), default=0.0)
    assert timeline.makespan_s == pytest.approx(makespan, rel=1e-12, abs=slack)


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
@pytest.mark.parametrize("engine", ENGINES)
def test_work_is_conserved(engine, case):
    timeline = run(case.program, engine)
    assert timeline.busy_s_R * case.program.capacity_R == pytest.approx(case.program.demand_R(), rel=1e-12)
    assert (timeline.engine, timeline.exact) == (engine, engine != "bound")


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
@pytest.mark.parametrize("engine", ENGINES)
def test_times_are_float_arrays_of_one_shape(engine, case):
    """Seconds, also where all of them are 0: an engine that returns integers breaks the next division in place."""
    timeline = run(case.program, engine)
    for values, size in ((timeline.start_s_N, case.program.num_ops), (timeline.end_s_N, case.program.num_ops),
                         (timeline.busy_s_R, len(case.program.capacity_R))):
        assert (values.dtype, values.shape) == (np.float64, (size,))


@pytest.mark.parametrize("engine", ENGINES)
def test_tiny_demand_on_a_saturated_resource_waits_its_turn(engine):
    """Op 1 needs 1e-10 s of a port that op 0 keeps busy for 10 s, and 1 s of another: no engine may lose it."""
    built = program([1.0, 1.0], {"demand": {0: 10.0}}, {"demand": {0: 1e-10, 1: 1.0}, "latency_s": 1.0})
    timeline = run(built, engine)
    assert np.isfinite(timeline.end_s_N).all()
    assert timeline.end_s_N == pytest.approx([10.0, 2.0], abs=10 / 1024 + 1e-9)


def test_unknown_engine_names_the_near_one():
    with pytest.raises(UnknownNameError, match=r"^unknown engine 'flwo': did you mean flow\?$"):
        run(CASES[0].program, "flwo")
