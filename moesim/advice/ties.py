"""Decide which of two simulated designs is better, as far as that is known.

A kernel that two designs share is off by the same factor in both: if EPLB saves 100 us of expert
time, the factor on expert kernels cannot reverse that. The interval of their ratio therefore
decides (`moesim.advice.gains.gain`), not the overlap of two intervals that are off together. In
addition, differences below `FLOOR` are ties: it is the worst error of transfers that are simulated
per device instead of per pair (`moesim.simulation.trust.granularity_of`).
"""

from collections.abc import Sequence
from dataclasses import dataclass

from moesim.advice.gains import Outcome, gain
from moesim.hardware import Cluster
from moesim.simulation.result import Result

#: relative differences that count as ties, at ``device`` and at ``device_loose`` granularity
FLOOR, LOOSE_FLOOR = 0.06, 0.14


@dataclass(frozen=True, slots=True, kw_only=True)
class PricedDesign:
    """A simulated design, with what a second of it costs in the objective's unit.

    Attributes:
        outcome: The simulated design.
        per_second: Cost of a second: 1 to compare times, watts or dollars to compare energy or
            cost.
    """

    outcome: Outcome
    per_second: float

    @classmethod
    def of(cls, result: Result, cluster: Cluster, per_second: float = 1.0) -> "PricedDesign":
        """Return a result on its cluster."""
        return cls(outcome=Outcome(result=result, cluster=cluster), per_second=per_second)

    @property
    def cost(self) -> float:
        """The cost of the layer in the objective's unit."""
        return self.outcome.result.layer_time_s * self.per_second


def told_apart(slow: PricedDesign, fast: PricedDesign) -> bool:
    """Return whether the first costs more than the second for every error within the intervals, and
    by more than the floor.
    """
    loose = any("device_loose" in one.outcome.result.granularity for one in (slow, fast))
    if slow.cost <= fast.cost * (1.0 + (LOOSE_FLOOR if loose else FLOOR)):
        return False
    return gain(slow.outcome, fast.outcome).low * slow.per_second > fast.per_second


def groups(designs: Sequence[PricedDesign]) -> list[int]:
    """Return a group number for each design; designs of a group cannot be told apart.

    Group 0 holds the designs that no other design certainly beats; group 1 holds those for which
    this is true among the rest; and so on. Comparing only with the cheapest design would not be
    enough: a design with another exchange may tie with it, and still certainly lose to a design
    with the same exchange and more copies.
    """
    found = [-1] * len(designs)
    left, group = list(range(len(designs))), 0
    while left:
        best = [i for i in left if not any(told_apart(designs[i], designs[j]) for j in left)]
        for i in best:
            found[i] = group
        left, group = [i for i in left if found[i] < 0], group + 1
    return found
