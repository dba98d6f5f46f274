"""Which of two simulated designs is better, as far as it can be told.

A kernel that two designs share is off by the same factor in both: if EPLB saves 100 us of expert
time, the factor on expert kernels cannot turn that around. So it is the interval of their ratio
that decides (`moesim.advice.gains.gain`), not the overlap of two intervals that are off together.
On top of it differences below `FLOOR` are ties: what transfers simulated per device, instead of per
pair, were off at worst (`moesim.simulation.trust.granularity_of`).
"""

from collections.abc import Sequence
from dataclasses import dataclass

from moesim.advice.gains import Outcome, gain
from moesim.hardware import Cluster
from moesim.simulation.result import Result
from moesim.simulation.trust import intervals_of

#: relative differences that are no difference: of ``device`` and of ``device_loose`` granularity
FLOOR, LOOSE_FLOOR = 0.06, 0.14


@dataclass(frozen=True, slots=True, kw_only=True)
class Priced:
    """A simulated design, with what a second of it costs in the objective's unit.

    Attributes:
        outcome: Simulated.
        per_second: 1 to compare times; watts or dollars to compare energy or cost.
    """

    outcome: Outcome
    per_second: float

    @classmethod
    def of(cls, result: Result, cluster: Cluster, per_second: float = 1.0) -> "Priced":
        """A result on its cluster."""
        intervals, _ = intervals_of(result.candidate, cluster)
        return cls(
            outcome=Outcome(result=result, cluster=cluster, intervals=intervals),
            per_second=per_second,
        )

    @property
    def cost(self) -> float:
        """What the layer takes, in the objective's unit."""
        return self.outcome.result.layer_time_s * self.per_second


def told_apart(slow: Priced, fast: Priced) -> bool:
    """Whether the first costs more than the second whatever the phases are off by, and by more than
    the floor.
    """
    loose = "device_loose" in (slow.outcome.result.granularity, fast.outcome.result.granularity)
    if slow.cost <= fast.cost * (1.0 + (LOOSE_FLOOR if loose else FLOOR)):
        return False
    return gain(slow.outcome, fast.outcome).low * slow.per_second > fast.per_second


def groups(designs: Sequence[Priced]) -> list[int]:
    """A group for each design, of those that cannot be told apart.

    Group 0 are the designs that no other costs less than for certain; group 1 those of which this
    holds among the rest; and so on. Against the cheapest alone would not do: a design with another
    exchange may well be its equal, and yet be certain to lose to its own like with more copies.
    """
    found = [-1] * len(designs)
    left, group = list(range(len(designs))), 0
    while left:
        best = [i for i in left if not any(told_apart(designs[i], designs[j]) for j in left)]
        for i in best:
            found[i] = group
        left, group = [i for i in left if found[i] < 0], group + 1
    return found
