"""Define what a communication kernel is asked, and what it answers.

A kernel (NCCL's all-to-all, DeepEP's two modes, NVL72's one-sided writes) is priced per device from
that device's own share of the exchange, so that uneven traffic gets uneven prices. Its closed form
is a start, a p-norm (a smooth maximum) over stages that run side by side, and the fill of its
pipeline. The stages are the SMs that handle copies, the port to near devices and the NIC to far
devices. The engines simulate the stages; everything that a fluid port would not show is latency.

Shape legend: D devices.
"""

from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np

Array = np.ndarray
Direction = Literal["dispatch", "combine"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Ports:
    """The device's side of the fabric.

    Attributes:
        near_bytes_per_s: Rate of one direction of its port to devices of its domain (NVLink, xGMI).
        far_bytes_per_s: Rate of one direction of its NIC; 0 in a single domain.
        num_ranks: Number of ranks R that take part.
        ranks_per_domain: Number of ranks that the near port reaches, this one included.
        num_sms: SMs of the device.
        memory_bytes_per_s: Rate of the device's memory, as its data sheet has it.
        bridge_bytes_per_s: Rate of one direction of the link between a PCIe switch and the host; 0
            if the devices of a domain reach each other without one.
        ranks_per_bridge: Number of ranks that share that link.
    """

    near_bytes_per_s: float
    far_bytes_per_s: float
    num_ranks: int
    ranks_per_domain: int
    num_sms: int
    memory_bytes_per_s: float
    bridge_bytes_per_s: float = 0.0
    ranks_per_bridge: int = 1


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Work:
    """Each device's share of an exchange, as arrays over devices.

    Attributes:
        tokens_D: Tokens of the device, which are sent in dispatch and summed in combine.
        copies_D: Copies of those tokens that the kernel handles, those to the device's own rank
            included.
        near_bytes_D: Bytes over the near port in its busier direction, the own rank excluded.
        far_bytes_D: Bytes over the NIC in its busier direction.
        hidden_size: Elements of a token.
        top_k: Choices of a token.
        num_experts: Number of physical experts on all ranks.
        copy_bytes: Bytes of one copy on the wire.
    """

    tokens_D: Array
    copies_D: Array
    near_bytes_D: Array
    far_bytes_D: Array
    hidden_size: int
    top_k: int
    num_experts: int
    copy_bytes: float


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Price:
    """The demands of one exchange on each device.

    Attributes:
        latency_s_D: Seconds that elapse first and hold no resource: the closed form less the
            largest of the three stages.
        sm_s_D: Seconds that the kernel's SMs need for their copies.
        near_factor_D: Seconds of the near port per byte, times its rate: >= 1.
        far_factor_D: Seconds of the NIC per byte, times its rate: >= 1.
        near_s_D: Seconds of the near port.
        far_s_D: Seconds of the NIC.
        num_sms: Number of SMs that the kernel takes from compute while it runs.
    """

    latency_s_D: Array
    sm_s_D: Array
    near_factor_D: Array
    far_factor_D: Array
    near_s_D: Array
    far_s_D: Array
    num_sms: int

    @property
    def limiting_D(self) -> Array:
        """The name of the longest part of each device: ``sm``, ``near``, ``far`` or ``start``."""
        stages = np.stack([self.sm_s_D, self.near_s_D, self.far_s_D])
        names = np.array(["sm", "near", "far"])[stages.argmax(axis=0)]
        return np.where(self.latency_s_D >= stages.max(axis=0), "start", names)

    def split(self, count: int) -> "list[Price]":
        """Return the prices of ``count`` equally long runs of devices, in order."""
        names = ("latency_s_D", "sm_s_D", "near_factor_D", "far_factor_D", "near_s_D", "far_s_D")
        columns = [getattr(self, name).reshape(count, -1) for name in names]
        return [
            Price(**dict(zip(names, parts, strict=True)), num_sms=self.num_sms)
            for parts in zip(*columns, strict=True)
        ]

    def time_s_D(self, work: Work, ports: Ports) -> Array:
        """Return the seconds of the exchange alone: latency + the largest stage, ndarray of shape
        (D,); without the links of PCIe switches to the host, which belong to the fabric.
        """
        stages = [self.sm_s_D, work.near_bytes_D * self.near_factor_D / ports.near_bytes_per_s]
        if ports.far_bytes_per_s:
            stages.append(work.far_bytes_D * self.far_factor_D / ports.far_bytes_per_s)
        return self.latency_s_D + np.maximum.reduce(stages)


class CommKernel(Protocol):
    """A priced communication kernel on one cluster."""

    @property
    def ports(self) -> Ports:
        """The device's side of the fabric."""

    @property
    def copies(self) -> Literal["per_rank", "per_choice"]:
        """How many copies of a token travel: one to each rank that holds any of its experts, or one
        per choice.
        """

    @property
    def level(self) -> str:
        """``calibrated``, ``few_shot`` or ``spec_sheet``."""

    def copy_bytes(
        self, direction: Direction, hidden_size: int, top_k: int, element_bytes: float
    ) -> float:
        """Return the bytes of one copy on the wire, scales and metadata included; ``element_bytes``
        counts only the payload.
        """

    def price(self, direction: Direction, work: Work) -> Price:
        """Price one exchange of a direction."""

    def interval(self, direction: Direction) -> tuple[float, float]:
        """Return the P10 and P90 of measured / predicted."""
