"""What a communication kernel is asked, and what it answers.

A kernel (NCCL's all-to-all, DeepEP's two modes, NVL72's one-sided writes) is priced per device from
that device's own share of the exchange, so that uneven traffic is uneven here too. Its closed form
is a start, a p-norm (a smooth maximum) over stages that run side by side - SMs that handle copies,
the port to near devices, the NIC to far ones - and the fill of its pipeline. The engines share the
stages; all that a fluid port would not show is latency.

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
        near_bytes_per_s: One direction of its port to devices of its domain (NVLink, xGMI).
        far_bytes_per_s: One direction of its NIC; 0 in a single domain.
        num_ranks: Ranks R that take part.
        ranks_per_domain: Ranks that the near port reaches, this one included.
        num_sms: SMs of the device.
    """

    near_bytes_per_s: float
    far_bytes_per_s: float
    num_ranks: int
    ranks_per_domain: int
    num_sms: int


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Work:
    """One device's share of an exchange, as arrays over devices.

    Attributes:
        tokens_D: Tokens of the device: sent in dispatch, summed in combine.
        copies_D: Copies of them that the kernel handles, those to its own rank included.
        near_bytes_D: Bytes over its near port, the busier direction, own rank excluded.
        far_bytes_D: Bytes over its NIC, the busier direction.
        hidden_size: Elements of a token.
        top_k: Choices of a token.
        num_experts: Physical experts of all ranks.
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
    """Demands of one exchange on each device.

    Attributes:
        latency_s_D: Elapses first and holds nothing: closed form less the largest of the three
            stages.
        sm_s_D: Seconds that the kernel's SMs need for their copies.
        near_factor_D: Seconds of the near port per byte, times its rate: >= 1.
        far_factor_D: The same of the NIC.
        limiting_D: Name of the largest stage: ``sm``, ``near``, ``far`` or ``start``.
        num_sms: SMs the kernel takes from compute while it runs.
    """

    latency_s_D: Array
    sm_s_D: Array
    near_factor_D: Array
    far_factor_D: Array
    limiting_D: Array
    num_sms: int

    def time_s_D(self, work: Work, ports: Ports) -> Array:
        """Alone and unhindered: latency + the largest stage. ndarray of shape (D,)."""
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
        """How many copies of a token travel: one per rank that holds any of its experts, or one per
        choice.
        """

    @property
    def level(self) -> str:
        """``calibrated``, ``few_shot`` or ``spec_sheet``."""

    def copy_bytes(
        self, direction: Direction, hidden_size: int, top_k: int, element_bytes: float
    ) -> float:
        """Bytes of one copy on the wire, scales and metadata included; ``element_bytes`` is the
        payload's alone.
        """

    def price(self, direction: Direction, work: Work) -> Price:
        """Price one exchange."""

    def interval(self, direction: Direction) -> tuple[float, float]:
        """P10 and P90 of measured / predicted."""
