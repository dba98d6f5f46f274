"""How a layer is run: by which exchange, in how many micro-batches, in which order."""

from dataclasses import dataclass
from typing import Literal

from moesim.errors import require, require_int
from moesim.hardware.exchanges import exchange_named

Granularity = Literal["device", "pair"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """Choices that move the same tokens in another way.

    Attributes:
        exchange: Name of an exchange, see `moesim.hardware.exchanges`; None: the cluster's own.
        num_comm_sms: SMs of DeepEP's normal mode; None: its default.
        num_micro_batches: Parts of the batch; with two, one travels while the other computes.
        granularity: ``device``: one transfer op per device and exchange. ``pair``: one per source
            and destination, which shows send order and incast, for up to 256 devices.
        send_order: Pair granularity: ``rotated`` (device s starts with s + 1) or ``naive`` (all
            start with device 0).
        send_window: Pair granularity: messages a sender has under way at once; 0: all of them.

    Raises:
        UnknownNameError: An exchange that does not exist.
        ConfigError: A number out of range.
    """

    exchange: str | None = None
    num_comm_sms: int | None = None
    num_micro_batches: int = 1
    granularity: Granularity = "device"
    send_order: Literal["rotated", "naive"] = "rotated"
    send_window: int = 0

    def __post_init__(self) -> None:
        if self.exchange is not None:
            exchange_named(self.exchange)
        if self.num_comm_sms is not None:
            require_int("schedule.num_comm_sms", self.num_comm_sms, 1)
        require_int("schedule.num_micro_batches", self.num_micro_batches, 1)
        require_int("schedule.send_window", self.send_window, 0)
        require(
            self.granularity in ("device", "pair"),
            "schedule.granularity",
            "device or pair",
            self.granularity,
        )
        require(
            self.send_order in ("rotated", "naive"),
            "schedule.send_order",
            "rotated or naive",
            self.send_order,
        )

    def __str__(self) -> str:
        parts = [self.exchange or ""]
        if self.num_comm_sms is not None:
            parts.append(f"sm{self.num_comm_sms}")
        if self.num_micro_batches > 1:
            parts.append(f"mb{self.num_micro_batches}")
        if self.granularity == "pair":
            parts.append(f"pair/{self.send_order}/{self.send_window}")
        return " ".join(p for p in parts if p)
