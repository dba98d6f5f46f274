"""Programs of a few ops with the schedules that engines must find, all computed by hand.

A case states the fluid schedule and the earliest times that a lower bound reports (which are not a
schedule). An engine that serves in chunks takes turns. A case states the exact log of such an
engine where it can be computed by hand, and otherwise by how many quanta an op may start or end
apart from the fluid schedule. A quantum is 1 / 1024 of the bound.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from moesim.program import Program
from moesim.program.builder import ProgramBuilder

#: start and end of each op, in seconds
Log = Sequence[tuple[float, float]]
#: number of quanta in the bound of a program
QUANTA = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineCase:
    """One program and the times that engines must find.

    Attributes:
        name: The case in a few words.
        program: The program.
        schedule: The fluid schedule.
        earliest: The times of a lower bound.
        bound_s: The makespan of a lower bound.
        quanta: Number of quanta by which chunks may move a start or an end.
        chunked: The exact log of an engine that serves in chunks; None if it is the schedule.
    """

    name: str
    program: Program
    schedule: Log
    earliest: Log
    bound_s: float
    quanta: int = 0
    chunked: Log | None = None

    @property
    def makespan_s(self) -> float:
        """The end of the fluid schedule."""
        return max((end for _, end in self.schedule), default=0.0)


def op(demand: Mapping[int, float] | None = None, **options: Any) -> dict[str, Any]:
    """Describe an op of `program_of`.

    Args:
        demand: Resource -> amount.
        **options: Further arguments of `ProgramBuilder.op`, such as ``latency_s`` and ``after``.
    """
    demand = demand or {}
    return {"resources": list(demand), "amounts": list(demand.values()), **options}


def program_of(capacities: Sequence[float], *ops: Mapping[str, Any]) -> Program:
    """Build a program.

    Args:
        capacities: Capacity of each resource, per second.
        *ops: Descriptions of ops from `op`, in order.

    Raises:
        ValueError: An op waits for a later one, or has amounts that do not fit its resources.
    """
    builder = ProgramBuilder()
    for r, capacity in enumerate(capacities):
        builder.resource(f"r{r}", capacity)
    for i, described in enumerate(ops):
        builder.op(f"op{i}", **described)
    return builder.build()


def _alone(name: str, program: Program, schedule: Log) -> EngineCase:
    """Make a case without contention: every engine gives the same log."""
    makespan = max((end for _, end in schedule), default=0.0)
    return EngineCase(
        name=name, program=program, schedule=schedule, earliest=schedule, bound_s=makespan
    )


_UNCONTENDED = (
    _alone("empty", program_of([]), []),
    _alone("a resource that nobody uses", program_of([2.0], op(latency_s=0.25)), [(0.0, 0.25)]),
    _alone(
        "roofline of one op",
        program_of([4.0, 2.0, 1.0], op({0: 8.0, 1: 6.0}, latency_s=0.5, release_s=1.0)),
        [(1.0, 4.5)],
    ),
    _alone(
        "demands of zero are none",
        program_of([1.0, 1.0], op({0: 0.0, 1: 2.0}), op({0: 1.0})),
        [(0.0, 2.0), (0.0, 1.0)],
    ),
    _alone(
        "a chain with latencies and releases",
        program_of(
            [1.0],
            op({0: 1.0}, latency_s=0.5),
            op({0: 2.0}, after=[0], release_s=1.0),
            op({0: 1.0}, after=[1], latency_s=0.25, release_s=5.0),
            op(after=[2]),
        ),
        [(0.0, 1.5), (1.5, 3.5), (5.0, 6.25), (6.25, 6.25)],
    ),
    _alone(
        "barriers without demand, one with latency",
        program_of(
            [1.0, 1.0],
            op({0: 1.0}),
            op({1: 3.0}),
            op(after=[0, 1]),
            op(after=[2], latency_s=0.5),
            op({0: 2.0}, after=[3]),
            op({1: 1.0}, after=[3]),
        ),
        [(0.0, 1.0), (0.0, 3.0), (3.0, 3.0), (3.0, 3.5), (3.5, 5.5), (3.5, 4.5)],
    ),
    _alone(
        "a latency holds nothing",
        program_of([1.0], op({0: 1.0}, latency_s=1.0), op({0: 1.0})),
        [(0.0, 2.0), (0.0, 1.0)],
    ),
    _alone(
        "ends come before starts of the same instant",
        program_of(
            [1.0, 1.0, 1.0],
            op({0: 1.0}),
            op({1: 1.0}),
            op({0: 1.0}, release_s=1.0),
            op({1: 1.0, 2: 0.5}, after=[0]),
            op(after=[2, 3]),
        ),
        [(0.0, 1.0), (0.0, 1.0), (1.0, 2.0), (1.0, 2.0), (2.0, 2.0)],
    ),
)
_CONTENDED = (
    EngineCase(
        name="two equal ops share equally",
        program=program_of([2.0], op({0: 2.0}), op({0: 2.0})),
        schedule=[(0.0, 2.0), (0.0, 2.0)],
        earliest=[(0.0, 1.0), (0.0, 1.0)],
        bound_s=2.0,
        # the first op's last chunk comes one turn before the second's
        chunked=[(0.0, 2.0 - 2 / QUANTA), (0.0, 2.0)],
    ),
    EngineCase(
        name="unequal demands share equally until the smaller ends",
        program=program_of([1.0], op({0: 1.0}), op({0: 3.0})),
        schedule=[(0.0, 2.0), (0.0, 4.0)],
        earliest=[(0.0, 1.0), (0.0, 3.0)],
        bound_s=4.0,
        chunked=[(0.0, 2.0 - 4 / QUANTA), (0.0, 4.0)],
    ),
    EngineCase(
        name="a late op shares what is left",
        program=program_of([1.0], op({0: 2.0}), op({0: 0.5}, release_s=0.5, latency_s=0.5)),
        schedule=[(0.0, 2.5), (0.5, 2.0)],
        earliest=[(0.0, 2.0), (0.5, 1.5)],
        bound_s=2.5,
        quanta=1,
    ),
    EngineCase(
        name="the busier of two resources holds an op, and the other op speeds up when it ends",
        program=program_of([1.0, 1.0], op({0: 1.0, 1: 0.5}), op({1: 2.0})),
        schedule=[(0.0, 1.5), (0.0, 2.5)],
        earliest=[(0.0, 1.0), (0.0, 2.0)],
        bound_s=2.5,
        quanta=1,
    ),
    EngineCase(
        name="max-min: what an op cannot use goes to the others",
        program=program_of(
            [1.0, 1.0], op({0: 1.0}), op({0: 1.0}), op({0: 1.0, 1: 1.0}), op({1: 1.0})
        ),
        schedule=[(0.0, 3.0), (0.0, 3.0), (0.0, 3.0), (0.0, 1.5)],
        earliest=[(0.0, 1.0)] * 4,
        bound_s=3.0,
        quanta=2,
    ),
    EngineCase(
        name="equal bytes per second and flow: one flow against three",
        program=program_of(
            [1.0], op({0: 3.0}, bytes_per_flow=3.0), op({0: 3.0}, bytes_per_flow=1.0)
        ),
        schedule=[(0.0, 6.0), (0.0, 4.0)],
        earliest=[(0.0, 3.0), (0.0, 3.0)],
        bound_s=6.0,
    ),
    EngineCase(
        name="head, work and tail bound a shared resource",
        program=program_of(
            [1.0, 1.0],
            op({1: 1.0}),
            op({0: 2.0}, after=[0]),
            op({0: 2.0}, after=[0]),
            op({1: 1.0}, after=[1]),
            op({1: 1.0}, after=[2]),
        ),
        schedule=[(0.0, 1.0), (1.0, 5.0), (1.0, 5.0), (5.0, 7.0), (5.0, 7.0)],
        earliest=[(0.0, 1.0), (1.0, 3.0), (1.0, 3.0), (3.0, 4.0), (3.0, 4.0)],
        bound_s=6.0,
        quanta=3,
    ),
)
CASES = (*_UNCONTENDED, *_CONTENDED)
