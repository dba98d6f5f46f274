"""Which of two simulated designs is faster, as far as it can be told.

A kernel that two designs share is off by the same factor in both: if EPLB saves 100 us of expert time, the factor on
expert kernels cannot turn that around. So the difference is judged phase by phase, at the worst factors inside the
phases' intervals (P10 and P90 of the calibration's residuals): one factor for both where format, split (for experts) or
exchange (for dispatch and combine) are the same, one each where they differ. That factors are shared exactly is an
assumption; on top of it differences below `FLOOR` are ties: what transfers simulated per device, instead of per pair,
were off at worst (see `moesim.trust.granularity_of`).
"""

from collections.abc import Sequence
from dataclasses import dataclass

from moesim.result import Result
from moesim.topology import Cluster
from moesim.trust import ASSUMED_INTERVAL, intervals_of

#: relative differences that are no difference: of ``device`` and of ``device_loose`` granularity
FLOOR, LOOSE_FLOOR = 0.06, 0.14


@dataclass(frozen=True, slots=True, kw_only=True)
class Priced:
    """A simulated design, with what a second of it costs in the objective's unit.

    Attributes:
        result: Simulated.
        per_second: 1 to compare times; watts or dollars to compare energy or cost.
        intervals: Interval of each phase.
        kernels: Phase -> what decides its kernel; the same for all designs where a phase is not named.
    """

    result: Result
    per_second: float
    intervals: dict[str, tuple[float, float]]
    kernels: dict[str, object]

    @classmethod
    def of(cls, result: Result, cluster: Cluster, per_second: float = 1.0) -> "Priced":
        """A result on its cluster."""
        candidate = result.candidate
        layer, spread = candidate.layer, candidate.parallelism
        exchange = candidate.schedule.dispatch or cluster.file.dispatch
        return cls(result=result, per_second=per_second, intervals=intervals_of(candidate, cluster)[0],
                   kernels={"experts": (layer.precision, spread.ep > 1), "shared": layer.precision,
                            "dispatch": exchange, "combine": exchange})

    @property
    def cost(self) -> float:
        """What the layer takes, in the objective's unit."""
        return self.result.layer_time_s * self.per_second


def told_apart(slow: Priced, fast: Priced) -> bool:
    """Whether the first costs more than the second whatever the phases are off by, and by more than the floor."""
    loose = "device_loose" in (slow.result.granularity, fast.result.granularity)
    if slow.cost <= fast.cost * (1.0 + (LOOSE_FLOOR if loose else FLOOR)):
        return False
    least = 0.0
    for phase in {*slow.result.phase_time_s, *fast.result.phase_time_s}:
        more = slow.result.phase_time_s.get(phase, 0.0) * slow.per_second
        less = fast.result.phase_time_s.get(phase, 0.0) * fast.per_second
        low, high = slow.intervals.get(phase, ASSUMED_INTERVAL)
        if slow.kernels.get(phase) == fast.kernels.get(phase):
            least += (low if more > less else high) * (more - less)
        else:
            least += low * more - fast.intervals.get(phase, ASSUMED_INTERVAL)[1] * less
    return least > 0.0


def groups(designs: Sequence[Priced]) -> list[int]:
    """A group for each design, of those that cannot be told apart.

    Group 0 are the designs that no other costs less than for certain; group 1 those of which this holds among the
    rest; and so on. Against the cheapest alone would not do: a design with another exchange may well be its equal, and
    yet be certain to lose to its own like with more copies.
    """
    found = [-1] * len(designs)
    left, group = list(range(len(designs))), 0
    while left:
        best = [i for i in left if not any(told_apart(designs[i], designs[j]) for j in left)]
        for i in best:
            found[i] = group
        left, group = [i for i in left if found[i] < 0], group + 1
    return found
