"""Count and price what data-parallel devices exchange in a step: gradients, divided parameters.

Rajbhandari et al. 2019 (ZeRO, arXiv 1910.02054, section 7): with P parameters, a step of plain data
parallelism (an all-reduce of gradients) and of stages 1 and 2 (a reduce-scatter of gradients, an
all-gather of parameters) each move 2 P elements a device, stage 3 moves 3 P (parameters are
gathered forward and backward). A ring of n devices moves (n - 1) / n of that. With several
micro-batches, stages 2 and 3 reduce and gather in each of them; so frameworks do that divide
gradients or parameters (FSDP, arXiv 2304.11277).

Beyond a group that parameters are divided over, copies (HSDP) add their shares of the gradients up
by an all-reduce.
"""

from dataclasses import dataclass, replace

import numpy as np

from moesim.costs.comm.choose import ports_of
from moesim.costs.comm.kernels import comm_kernel
from moesim.costs.comm.nccl import Collective, Nccl
from moesim.hardware import Cluster


@dataclass(frozen=True, slots=True, kw_only=True)
class Sharing:
    """Devices that hold the same parameters.

    Attributes:
        copies: Number of devices that compute gradients of the same parameters.
        stride: Places between two of them.
        group: Number of them that parameters are divided over; copies of it add up gradients.
        zero: Stage of ZeRO.
    """

    copies: int
    stride: int
    group: int
    zero: int

    @property
    def divided(self) -> int:
        """The number of devices that states are divided over."""
        return self.group if self.zero else 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Volume:
    """Bytes that a device sends in a step, by collective."""

    all_reduce: float = 0.0
    reduce_scatter: float = 0.0
    all_gather: float = 0.0

    def plus(self, other: "Volume") -> "Volume":
        """Return the bytes of both."""
        return Volume(
            all_reduce=self.all_reduce + other.all_reduce,
            reduce_scatter=self.reduce_scatter + other.reduce_scatter,
            all_gather=self.all_gather + other.all_gather,
        )

    @property
    def total(self) -> float:
        """The bytes of all collectives."""
        return self.all_reduce + self.reduce_scatter + self.all_gather


def volume_of(
    sharing: Sharing,
    params: float,
    *,
    gradient_bytes: float,
    weight_bytes: float,
    micro_batches: int,
) -> Volume:
    """Return what a device sends in a step.

    Args:
        sharing: The devices that hold the same parameters.
        params: Parameters of a device before they are divided.
        gradient_bytes: Bytes of an element of the gradients that are reduced.
        weight_bytes: Bytes of a parameter that is gathered.
        micro_batches: Micro-batches of a step.
    """
    zero, group = sharing.zero, sharing.group
    ring = (group - 1) / group
    replicas = sharing.copies / group
    across = (replicas - 1) / replicas
    gradients, weights = params * gradient_bytes, params * weight_bytes
    if not zero:
        whole = (sharing.copies - 1) / sharing.copies
        return Volume(all_reduce=2.0 * whole * gradients)
    rounds = micro_batches if zero >= 2 else 1
    gathers = 2 * micro_batches if zero == 3 else 1
    return Volume(
        all_reduce=2.0 * across * gradients / group,
        reduce_scatter=rounds * ring * gradients,
        all_gather=gathers * ring * weights,
    )


def collective_s(
    cluster: Cluster, which: Collective, size: int, stride: int, num_bytes: float
) -> float:
    """Return the seconds of a collective of devices that are ``stride`` places apart.

    A ring crosses between domains once for each device that the domain holds, each over a NIC of
    its own.

    Args:
        cluster: The hardware.
        which: The collective.
        size: Number of devices.
        stride: Places between two of them.
        num_bytes: Bytes of the whole buffer.
    """
    if size == 1 or not num_bytes:
        return 0.0
    near = min(max(cluster.devices_per_domain // stride, 1), size)
    ports = replace(ports_of(cluster), num_ranks=size, ranks_per_domain=near)
    kernel = comm_kernel(f"nccl_{which}", ports, cluster.profile)
    assert isinstance(kernel, Nccl), "NCCL prices rings"
    share = (size - 1) / size
    # the price of an all-reduce has both passes over the near port in its efficiency, not over NICs
    passes = 2.0 if which == "all_reduce" else 1.0
    far = passes * num_bytes * share / near if size > near else 0.0
    return float(np.max(kernel.time_s(num_bytes * share if near > 1 else 0.0, far)))
