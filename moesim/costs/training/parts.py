"""A kernel or a few of them in a pass of a layer: its price and the FLOPs it does."""

from dataclasses import dataclass

import numpy as np

from moesim.costs.phase import PhaseCost, sequence


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Part:
    """Work of a pass on one device, or on each of several.

    Attributes:
        name: Name of the phase.
        cost: What it demands, of shape (1,) or (D,).
        flops: FLOPs of its matrix products on one device, the mean over several.
    """

    name: str
    cost: PhaseCost
    flops: float = 0.0


def together(name: str, *parts: Part) -> Part:
    """Return parts that run one after the other as one."""
    return Part(
        name=name,
        cost=sequence(*(part.cost for part in parts)),
        flops=sum(part.flops for part in parts),
    )


def scaled(cost: PhaseCost, factor: float | np.ndarray) -> PhaseCost:
    """Return a price times a factor, launches included."""
    return PhaseCost(
        compute_s_D=cost.compute_s_D * factor,
        memory_s_D=cost.memory_s_D * factor,
        latency_s_D=cost.latency_s_D * factor,
    )


def blocking(seconds: float) -> PhaseCost:
    """Return a time in which a device computes nothing."""
    whole, none = np.array([seconds]), np.zeros(1)
    return PhaseCost(compute_s_D=none, memory_s_D=none, latency_s_D=whole)
