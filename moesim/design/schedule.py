"""A schedule says how a layer runs: by which exchange, in how many micro-batches and in which
order.
"""

from dataclasses import dataclass, field
from typing import Literal

from moesim.errors import UnknownNameError, require, require_int
from moesim.hardware.exchanges import exchange_named

Granularity = Literal["device", "pair"]
#: order of the pieces of a step, see `moesim.lowering.orders`
StepOrder = Literal["serial", "shared_under_dispatch", "two_batch", "chunked"]
#: order -> whether it divides a batch
STEP_ORDERS: dict[StepOrder, bool] = {
    "serial": False,
    "shared_under_dispatch": False,
    "two_batch": True,
    "chunked": True,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """The choices of how to move the same tokens.

    Attributes:
        exchange: Name of an exchange of `moesim.hardware.exchanges`; None for that of the cluster.
        num_comm_sms: Number of SMs that DeepEP's normal mode uses; None for its default.
        num_micro_batches: Number of parts of the batch; with two, one is sent while the other is
            computed.
        granularity: Level of detail of transfers. ``device`` makes one transfer op per device and
            exchange; ``pair`` makes one per source and destination, which shows send order and
            incast, for up to 256 devices.
        send_order: Order of sending with pair granularity: ``rotated`` (device s starts with s + 1)
            or ``naive`` (all start with device 0).
        send_window: Number of messages that a sender has in flight at once with pair granularity; 0
            for all.

    Raises:
        UnknownNameError: The exchange does not exist.
        ConfigError: A number is out of range.
    """

    exchange: str | None = None
    num_comm_sms: int | None = None
    num_micro_batches: int = 1
    granularity: Granularity = field(default="device", metadata={"column": "schedule_granularity"})
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


def step_order(name: str) -> tuple[StepOrder | Literal[""], int]:
    """Return the order of a step in a text, and the fewest micro-batches that it needs.

    Args:
        name: Its name; empty for the usual one.

    Raises:
        UnknownNameError: No order has that name.
    """
    for order, divides in STEP_ORDERS.items():
        if order == name:
            return order, 2 if divides else 1
    if name:
        raise UnknownNameError("schedule of a step", name, tuple(STEP_ORDERS))
    return "", 1
