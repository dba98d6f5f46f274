"""Dispatch and combine as ops on the fabric's resources.

Device granularity: one op per receiver in dispatch and one per sender in combine, so that experts
start on what they wait for alone and cold devices return early. Where gates do not end together,
senders fall into classes by when they are ready, with one op per receiver and class. Pair
granularity: one op per source and destination, in send order.

An exchange ends on a device when its last message has been sent and received; only then does the
next one of its communication stream begin. At device granularity that is when it ends everywhere,
since every sender has something for the slowest receiver.

A communication kernel's price is laid on the ports: the device whose tokens they are is held to
what its SMs can handle, the other end to the port's own overhead, and what no port shows is
latency.

Shape legend: S senders = D receivers = devices.
"""

from dataclasses import dataclass

import numpy as np

from moesim.costs.comm.work import CommKernel, Direction, Price, Work
from moesim.design.schedule import Schedule
from moesim.hardware import Cluster
from moesim.hardware.exchanges import Exchange
from moesim.hardware.fabric import TORUS, Fabric
from moesim.hardware.routes import Factors, device_rows, pair_rows
from moesim.lowering.movement import Movement, movement_of
from moesim.lowering.traffic import Traffic
from moesim.model import MoELayer
from moesim.model.precision import BYTES_PER_ELEMENT
from moesim.program.builder import Demands, ProgramBuilder, Waits

Array = np.ndarray
#: classes of senders; and what calls for them: the spread of their readiness as a share of the
#: exchange, the standard deviation of what they send over its mean
NUM_CLASSES, _STAGGER, _UNEVEN = 8, 0.05, 0.1
#: devices from which there are twice as many classes: fewer senders of a class then wait for one
#: that is busy
_MANY = 256


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Priced:
    """One (micro-)batch's exchange: what moves, and what it costs.

    Attributes:
        movement: Legs, in copies.
        copy_bytes: Bytes of a copy by direction.
        prices: What the kernel asks, by direction.
    """

    movement: Movement
    copy_bytes: dict[Direction, float]
    prices: dict[Direction, Price]

    @classmethod
    def of(
        cls,
        layer: MoELayer,
        traffic: Traffic,
        kernel: CommKernel,
        cluster: Cluster,
        *,
        exchange: Exchange,
        num_experts: int,
    ) -> "Priced":
        """Price both directions.

        Args:
            layer: Sizes and formats of tokens.
            traffic: What has to move.
            kernel: Prices it.
            cluster: For its domains.
            exchange: The exchange, which says how it moves.
            num_experts: Expert slots of all devices.
        """
        movement = movement_of(exchange, traffic, cluster.devices_per_domain)
        near_out, near_in, far_out, far_in = movement.near_far_D
        sizes: dict[Direction, float] = {}
        prices: dict[Direction, Price] = {}
        directions: tuple[Direction, Direction] = ("dispatch", "combine")
        for direction in directions:
            element = BYTES_PER_ELEMENT[getattr(layer.precision, direction)]
            size = kernel.copy_bytes(direction, layer.hidden_size, layer.top_k, element)
            sizes[direction] = size
            prices[direction] = kernel.price(
                direction,
                Work(
                    tokens_D=np.asarray(traffic.num_tokens_S, dtype=np.float64),
                    copies_D=movement.copies_S,
                    near_bytes_D=np.maximum(near_out, near_in) * size,
                    far_bytes_D=np.maximum(far_out, far_in) * size,
                    hidden_size=layer.hidden_size,
                    top_k=layer.top_k,
                    num_experts=num_experts,
                    copy_bytes=size,
                ),
            )
        return cls(movement=movement, copy_bytes=sizes, prices=prices)

    @property
    def num_sms(self) -> int:
        """SMs that the kernel holds."""
        return max(price.num_sms for price in self.prices.values())


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LoweredExchange:
    """A priced exchange on the resources of a program.

    Attributes:
        builder: The program, whose first resources are the fabric's.
        fabric: Resources and routes.
        cluster: For domains, rates and hops.
        land_D: Resource on which received bytes land.
        schedule: Granularity and order.
        priced: What moves and what it costs.
        overlapped: Whether other exchanges follow on the same communication stream.
    """

    builder: ProgramBuilder
    fabric: Fabric
    cluster: Cluster
    land_D: Array
    schedule: Schedule
    priced: Priced
    overlapped: bool = False

    @property
    def movement(self) -> Movement:
        """Legs."""
        return self.priced.movement

    def factors(self, direction: Direction) -> Factors:
        """Overheads of ports: the tokens' own device is held to its SMs, the other end to the port.
        """
        price, size = self.priced.prices[direction], self.priced.copy_bytes[direction]
        near_out, _, far_out, _ = self.movement.near_far_D

        def held(factor_D: Array, bytes_D: Array, rate: float) -> Array:
            """The larger of the port's factor and the one at which it takes as long as the SMs."""
            with np.errstate(divide="ignore", invalid="ignore"):
                by_sms = np.where(bytes_D > 0, price.sm_s_D * rate / bytes_D, 0.0)
            return np.maximum(factor_D, by_sms)

        near_own = held(price.near_factor_D, near_out * size, self.cluster.link_bytes_per_s)
        far_own = held(price.far_factor_D, far_out * size, self.cluster.nic_bytes_per_s)
        if direction == "dispatch":
            return Factors(near_own, price.near_factor_D, far_own, price.far_factor_D, near_own)
        return Factors(
            price.near_factor_D, near_own, price.far_factor_D, far_own, price.near_factor_D
        )

    def dispatch(
        self, ready_D: Array, spread_s: Array, after_D: Array | None, tag: str = ""
    ) -> tuple[Array, Array]:
        """Send tokens to their experts.

        Args:
            ready_D: ndarray of shape (D,): op after which each sender's tokens are ready.
            spread_s: ndarray of shape (D,): when that is, roughly: senders that are ready together
                form a class.
            after_D: ndarray of shape (D, M): ops before on each device's communication stream; None
                at first.
            tag: Ending of the ops' names.

        Returns:
            (arrived, ended), two ndarrays of shape (D, M): ops that each device's experts wait for,
            and those that the next exchange of its communication stream waits for.
        """
        if self.schedule.granularity == "pair":
            return self._pairs("dispatch", ready_D, after_D, tag)
        classes = self._classes(spread_s)
        arrived, before = [], after_D
        barriers = [
            self._barrier(
                ("all permuted" if len(classes) == 1 else f"permuted_{k}") + tag,
                ready_D[members],
                "dispatch",
            )
            for k, members in enumerate(classes)
        ]
        gathered: Array | None = None
        for which, leg in enumerate(self.movement.legs):
            second = self.movement.serial and which == 1
            for k, members in enumerate(classes):
                name = "dispatch" + leg.name + (f"_{k}" if len(classes) > 1 else "") + tag
                if second:
                    assert gathered is not None
                    waits = gathered
                else:
                    waits = barriers[k]
                sent = (
                    leg.copies_SD
                    if len(classes) == 1
                    else np.where(members[:, None], leg.copies_SD, 0.0)
                )
                arrived.append(
                    self._device_ops("dispatch", name, sent, "receiver", _join(waits, before))
                )
            if self.movement.serial and which == 0:
                gathered = self._by_rail("gathered" + tag, np.stack(arrived, axis=1), "dispatch")
        every = np.stack(arrived, axis=1)
        ended = (
            self._barrier("all dispatched" + tag, every, "dispatch") if self.overlapped else every
        )
        return self._with_relays(every, "arrived" + tag, "dispatch", len(classes)), ended

    def combine(self, after_D: Array, stream_D: Array | None, tag: str = "") -> tuple[Array, Array]:
        """Send results back.

        Args:
            after_D: ndarray of shape (D,): op after which each device's results are ready.
            stream_D: ndarray of shape (D, M): ops before on each device's communication stream.
            tag: Ending of the ops' names.

        Returns:
            (arrived, ended) as `dispatch`: what each device's sums wait for, and what its stream
            goes on after.
        """
        if self.schedule.granularity == "pair":
            return self._pairs("combine", after_D, stream_D, tag)
        sent: list[Array] = []
        gathered: Array | None = None
        for which, leg in enumerate(reversed(self.movement.legs)):
            waits: Array = after_D
            if self.movement.serial and which == 1:
                assert gathered is not None
                waits = gathered
            elif leg.crosses and not self.movement.serial:
                waits = self._by_domain("computed" + tag, after_D, "combine")
            # results that the relay itself computed leave by it too
            sent.append(
                self._device_ops(
                    "combine",
                    "combine" + leg.name + tag,
                    leg.copies_SD.T,
                    "sender",
                    _join(_join(waits, after_D), stream_D),
                )
            )
            if self.movement.serial and which == 0:
                gathered = self._by_rail("crossed" + tag, np.stack(sent, axis=1), "combine")
        everywhere = self._barrier("all sent" + tag, np.stack(sent, axis=1), "combine")
        return everywhere, everywhere

    def _device_ops(
        self, direction: Direction, name: str, copies_SD: Array, by: str, after: Array | None
    ) -> Array:
        rows = device_rows(
            self.fabric,
            copies_SD * self.priced.copy_bytes[direction],
            by=by,
            factors=self.factors(direction),
            land_D=self.land_D,
        )
        return self.builder.ops(
            name,
            len(copies_SD),
            demands=Demands(rows.resource, rows.amount, rows.ptr),
            latency_s=self._latency_s(direction, rows.hops_N),
            after=after,
            bytes_per_flow=rows.bytes_N / np.maximum(rows.flows_N, 1),
            phase=direction,
        )

    def _latency_s(self, direction: Direction, hops_N: Array) -> Array:
        """A collective's start is that of its slowest member; hops come on top."""
        return float(self.priced.prices[direction].latency_s_D.max()) + self.cluster.hop_s * hops_N

    def _pairs(
        self, direction: Direction, ready_D: Array, stream_D: Array | None, tag: str
    ) -> tuple[Array, Array]:
        """One op per pair of every leg; returns what each device waits for next, as `dispatch`."""
        legs = self.movement.legs if direction == "dispatch" else self.movement.legs[::-1]
        done: list[Array] = []
        sent: list[Array] = []
        for leg in legs:
            copies = leg.copies_SD if direction == "dispatch" else leg.copies_SD.T
            senders, receivers = send_order(copies, self.schedule.send_order)
            rows = pair_rows(
                self.fabric,
                copies * self.priced.copy_bytes[direction],
                senders,
                receivers,
                factors=self.factors(direction),
                land_D=self.land_D,
            )
            first = self.builder.num_ops
            waits = [ready_D[senders]]
            if stream_D is not None:
                waits += [*stream_D[senders].T, *stream_D[receivers].T]
            if self.movement.serial and done:
                waits.append(done[-1][senders])
            after = np.stack(waits, axis=1)
            behind: Array | Waits = after
            if self.schedule.send_window:
                behind = windowed(after, senders, first, self.schedule.send_window)
            flows = self.builder.ops(
                direction + leg.name + tag,
                len(senders),
                demands=Demands(rows.resource, rows.amount, rows.ptr),
                latency_s=self._latency_s(direction, rows.hops_N),
                after=behind,
                bytes_per_flow=rows.bytes_N,
                phase=direction,
                own_batch=bool(self.schedule.send_window),
            )
            # what stays at home is there when the device itself is ready
            at_home = np.arange(len(copies))
            for far, ended, word in ((receivers, done, "done"), (senders, sent, "sent"))[
                : 1 + self.overlapped
            ]:
                ends = np.concatenate([far, at_home])
                order = np.argsort(ends, kind="stable")
                ended.append(
                    self.builder.ops(
                        f"{direction}{leg.name}_{word}{tag}",
                        len(copies),
                        phase=direction,
                        after=Waits(
                            np.concatenate([flows, ready_D])[order],
                            np.concatenate([[0], np.cumsum(np.bincount(ends))]),
                        ),
                    )
                )
        return (
            self._with_relays(np.stack(done, axis=1), f"{direction}_relayed{tag}", direction, 1),
            np.stack([*done, *sent], axis=1),
        )

    def _with_relays(self, arrived_DM: Array, name: str, phase: str, per_leg: int) -> Array:
        """Side by side hops: a device also waits for the relays of its domain."""
        if self.movement.serial or len(self.movement.legs) == 1:
            return arrived_DM
        crossing = (
            arrived_DM[:, :per_leg] if self.movement.legs[0].crosses else arrived_DM[:, per_leg:]
        )
        return np.concatenate([arrived_DM, self._by_domain(name, crossing, phase)], axis=1)

    def _by_domain(self, name: str, ops_D: Array, phase: str) -> Array:
        """A barrier over each domain's ops, and which one each device waits for: ndarray of shape
        (D, 1).
        """
        size = self.cluster.devices_per_domain
        groups = ops_D.reshape(len(ops_D) // size, -1)
        return np.repeat(self.builder.ops(name, len(groups), after=groups, phase=phase), size)[
            :, None
        ]

    def _by_rail(self, name: str, ops_DM: Array, phase: str) -> Array:
        """A barrier over the ops of each rail, and which one each device waits for: ndarray of
        shape (D, 1).
        """
        size = self.cluster.devices_per_domain
        groups = ops_DM.reshape(-1, size, ops_DM.shape[1]).transpose(1, 0, 2).reshape(size, -1)
        barriers = self.builder.ops(name, size, after=groups, phase=phase)
        return np.tile(barriers, len(ops_DM) // size)[:, None]

    def _barrier(self, name: str, ops: Array, phase: str) -> Array:
        return np.full(
            (self.fabric.num_devices, 1), self.builder.op(name, after=ops.ravel(), phase=phase)
        )

    def _classes(self, ready_s: Array) -> list[Array]:
        """Senders by when they are ready: bool masks of shape (D,), one if they are alike.

        They are if they become ready together, measured by the exchange's busiest port, and have as
        much to send: the transfer of a class goes at the pace of its slowest sender, and ends with
        its largest. On a torus nearly every transfer shares links with every other, and classes
        make it worse, not better.
        """
        price, size = self.priced.prices["dispatch"], self.priced.copy_bytes["dispatch"]
        near_out, near_in, far_out, far_in = self.movement.near_far_D
        near, far = (
            float(max(out.max(), into.max())) * size
            for out, into in ((near_out, near_in), (far_out, far_in))
        )
        rates = self.cluster.link_bytes_per_s, self.cluster.nic_bytes_per_s
        longest = max(
            moved / rate for moved, rate in zip((near, far), rates, strict=True) if rate > 0
        )
        exchange = float(price.latency_s_D.max()) + longest
        sent = self.movement.copies_S
        alike = np.ptp(ready_s) <= _STAGGER * exchange and sent.std() <= _UNEVEN * sent.mean()
        if alike or self.fabric.tables.near_kind == TORUS:
            return [np.ones(len(ready_s), dtype=bool)]
        classes = NUM_CLASSES * (2 if len(ready_s) >= _MANY else 1)
        rank = (
            np.argsort(np.argsort(ready_s, kind="stable"), kind="stable") * classes // len(ready_s)
        )
        return [rank == k for k in range(classes) if (rank == k).any()]


def send_order(copies_SD: Array, order: str) -> tuple[Array, Array]:
    """Senders and receivers of all messages: by turn, then by sender.

    Args:
        copies_SD: ndarray of shape (S, D).
        order: ``rotated``: in turn t device s sends to s + t. ``naive``: to t.
    """
    count = len(copies_SD)
    s, d = np.nonzero(copies_SD * (1 - np.eye(count)))
    turn = (d - s) % count if order == "rotated" else d
    by_turn = np.lexsort((s, turn))
    return s[by_turn], d[by_turn]


def windowed(after: Array, senders: Array, first: int, window: int) -> Waits:
    """Let each message also wait for the one ``window`` before it from the same sender; rows differ
    in length.
    """
    order = np.argsort(senders, kind="stable")
    nth = np.arange(len(senders)) - np.searchsorted(senders[order], senders[order])
    before = np.full(len(senders), -1)
    has = np.flatnonzero(nth >= window)
    before[order[has]] = first + order[has - window]
    full = np.concatenate([after, before[:, None]], axis=1)
    keep = full >= 0
    return Waits(full[keep], np.concatenate([[0], np.cumsum(keep.sum(axis=1))]))


def _join(left: Array, right: Array | None) -> Array:
    """Two sets of ops to wait for, side by side: ndarray of shape (D, M)."""
    left = left.reshape(len(left), -1)
    return left if right is None else np.concatenate([left, right.reshape(len(right), -1)], axis=1)


__all__ = ["LoweredExchange", "Priced", "send_order"]
