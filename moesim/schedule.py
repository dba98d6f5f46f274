"""How a layer is run: by which exchange, in how many micro-batches, in which order.

Exchanges, by name:

- ``nccl``: one all-to-all; a copy for each device that holds any of a token's experts, straight to it.
- ``deepep_normal``: across domains one copy per token and domain, to the device of the same rail, which forwards it
  over the scale-up fabric (DeepEP's high-throughput mode); both hops run side by side.
- ``deepep_ll``: a copy per choice, straight to the expert's device (DeepEP's low-latency mode).
- ``nvl72``: writes into peers' memory inside one NVLink domain; a copy per device.
- ``hierarchical``: first to the device of the destination's rail inside the own domain, then across, one after the
  other (as in Tutel's and DeepSpeed-MoE's two-dimensional all-to-all).
- ``all_gather``: every token to every device, results by reduce-scatter (what tensor-parallel stacks do).
- ``ici``: straight to each device along the torus.
- ``host``: as ``nccl``, at the rate and start that `moesim measure` found between the ranks of one host.
- ``ideal``: as ``nccl`` without any overhead: bytes over the data sheet's rate.
"""

from dataclasses import dataclass
from typing import Literal

from moesim.errors import UnknownNameError
from moesim.precision import require, require_int

Movement = Literal["direct", "two_hop", "staged", "all_gather"]
Granularity = Literal["device", "pair"]
#: name -> (communication kernel that is priced, how copies move, whether every choice is a copy)
DISPATCHES: dict[str, tuple[str, Movement, bool]] = {
    "nccl": ("nccl", "direct", False),
    "deepep_normal": ("deepep_normal", "two_hop", False),
    "deepep_ll": ("deepep_ll", "direct", True),
    "nvl72": ("nvl72", "direct", False),
    "hierarchical": ("nccl", "staged", False),
    "all_gather": ("all_gather", "all_gather", False),
    "ici": ("ici", "direct", False),
    "host": ("host", "direct", False),
    "ideal": ("ideal", "direct", False),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """Choices that move the same tokens in another way.

    Attributes:
        dispatch: Exchange, one of `DISPATCHES`; None: the cluster's.
        num_comm_sms: SMs of DeepEP's normal mode; None: its default.
        num_micro_batches: Parts of the batch; with two, one travels while the other computes.
        granularity: ``device``: one transfer op per device and exchange. ``pair``: one per source and destination,
            which shows send order and incast, for up to 256 devices.
        send_order: Pair granularity: ``rotated`` (device s starts with s + 1) or ``naive`` (all start with device 0).
        send_window: Pair granularity: messages a sender has under way at once; 0: all of them.

    Raises:
        UnknownNameError: An exchange that does not exist.
        ConfigError: A number out of range.
    """

    dispatch: str | None = None
    num_comm_sms: int | None = None
    num_micro_batches: int = 1
    granularity: Granularity = "device"
    send_order: Literal["rotated", "naive"] = "rotated"
    send_window: int = 0

    def __post_init__(self) -> None:
        if self.dispatch is not None and self.dispatch not in DISPATCHES:
            raise UnknownNameError("dispatch", self.dispatch, DISPATCHES)
        if self.num_comm_sms is not None:
            require_int("schedule.num_comm_sms", self.num_comm_sms, 1)
        require_int("schedule.num_micro_batches", self.num_micro_batches, 1)
        require_int("schedule.send_window", self.send_window, 0)
        require(self.granularity in ("device", "pair"), "schedule.granularity", "device or pair", self.granularity)
        require(self.send_order in ("rotated", "naive"), "schedule.send_order", "rotated or naive", self.send_order)

    def __str__(self) -> str:
        parts = [self.dispatch or ""]
        if self.num_comm_sms is not None:
            parts.append(f"sm{self.num_comm_sms}")
        if self.num_micro_batches > 1:
            parts.append(f"mb{self.num_micro_batches}")
        if self.granularity == "pair":
            parts.append(f"pair/{self.send_order}/{self.send_window}")
        return " ".join(p for p in parts if p)
