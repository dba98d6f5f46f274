"""Define what a phase demands of its device.

Shape legend: D devices (or D rows of a table of measurements: every price is vectorized over its
first axis).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

Array = np.ndarray


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PhaseCost:
    """The demand of one phase on each device.

    Attributes:
        compute_s_D: Seconds for which it keeps the compute pool busy.
        memory_s_D: Seconds for which it keeps the memory busy.
        latency_s_D: Seconds that pass while it uses neither.
    """

    compute_s_D: Array
    memory_s_D: Array
    latency_s_D: Array

    def solo_s_D(self) -> Array:
        """Return the time of the phase alone: latency + the larger of compute and memory, ndarray
        of shape (D,).
        """
        return self.latency_s_D + np.maximum(self.compute_s_D, self.memory_s_D)

    def split(self, count: int) -> "list[PhaseCost]":
        """Return ``count`` equally long parts, in order."""
        compute, memory, latency = (
            np.asarray(values).reshape(count, -1)
            for values in (self.compute_s_D, self.memory_s_D, self.latency_s_D)
        )
        return [
            PhaseCost(compute_s_D=compute[m], memory_s_D=memory[m], latency_s_D=latency[m])
            for m in range(count)
        ]


def joined(parts: Sequence[PhaseCost]) -> PhaseCost:
    """Return the demands of several runs of devices as one run."""
    if len(parts) == 1:
        return parts[0]
    return PhaseCost(
        compute_s_D=np.concatenate([p.compute_s_D for p in parts]),
        memory_s_D=np.concatenate([p.memory_s_D for p in parts]),
        latency_s_D=np.concatenate([p.latency_s_D for p in parts]),
    )


def sequence(*phases: PhaseCost) -> PhaseCost:
    """Join kernels that run one after the other into one phase, with the sum of their solo times.

    Demands add up. The time that ``max(sum of compute, sum of memory)`` would wrongly overlap
    between kernels that follow one another is added to the latency, so that the phase alone takes
    as long as its kernels in turn.
    """
    compute = np.asarray(sum(p.compute_s_D for p in phases))
    memory = np.asarray(sum(p.memory_s_D for p in phases))
    apart = np.asarray(sum(np.maximum(p.compute_s_D, p.memory_s_D) for p in phases))
    latency = np.asarray(sum(p.latency_s_D for p in phases)) + np.maximum(
        apart - np.maximum(compute, memory), 0.0
    )
    return PhaseCost(compute_s_D=compute, memory_s_D=memory, latency_s_D=latency)


def beside(*phases: PhaseCost) -> PhaseCost:
    """Join kernels that run at the same time on streams of their own into one phase.

    Demands add up; the phase alone takes as long as the slowest of them, or as the pool that all of
    them keep busy.
    """
    compute = np.asarray(sum(p.compute_s_D for p in phases))
    memory = np.asarray(sum(p.memory_s_D for p in phases))
    slowest = np.max([p.solo_s_D() for p in phases], axis=0)
    busy = np.maximum(compute, memory)
    return PhaseCost(
        compute_s_D=compute, memory_s_D=memory, latency_s_D=np.maximum(slowest - busy, 0.0)
    )
