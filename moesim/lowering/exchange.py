"""Lower dispatch and combine to ops on the fabric's resources.

At device granularity there is one op per receiver in dispatch and one per sender in combine, so
that the experts of a device wait only for its own tokens, and devices with little load return
early. Where gates do not end together, senders fall into classes by when they are ready or by their
kind, with one op per receiver and class (`moesim.lowering.senders`). At pair granularity there is
one op per source and destination, in send order.

Two hops side by side, on a domain of devices 0 and 1 (pattern ``two_hop``, see
`moesim.lowering.movement`). Each device is the relay of its rail: its ``rdma`` op takes in the
rail's tokens from other domains, once each, and they are forwarded as they arrive, so that both ops
of a device start together::

    dispatch                 time -->
    all permuted --+--> rdma[0]   ==========--+-- relays of the domain (``_with_relays``,
                   +--> rdma[1]   =======-----+   one barrier for each domain)
                   +--> nvlink[0] ======              |
                   +--> nvlink[1] ========            |
    expert[0] waits for rdma[0], nvlink[0] and -------+, since its tokens come over both relays

    combine                  time -->
    expert[0] --+----------> nvlink[0] =====------------------+
    expert[1] --|-+--------> nvlink[1] ====-------------------+--> all sent --> reduce
                +-+--> computed --+--> rdma[0] =========------+
                 (of a domain)    +--> rdma[1] =======--------+

Two hops one after the other, on a rail of devices 0 and 2 in domains {0, 1} and {2, 3} (pattern
``staged``). A device first gathers what its domain sends to its rail, then sends it across; the
second hop of a rail waits for the first hop on all devices of that rail (``of_rails``)::

    near[0] =====---+--> gathered --+--> far[0] ========   expert[0] waits for near[0], far[0]
    near[2] =======-+  (of a rail)  +--> far[2] ======     expert[2] waits for near[2], far[2]

An exchange ends on a device when its last message has been sent and received; only then does the
next exchange of its communication stream begin, be it the combine of the same tokens. At device
granularity it ends everywhere at once, since every sender has something for the slowest receiver.
So no combine takes a port from a dispatch that is still under way: NCCL's receiver must have posted
its receive, and DeepEP's normal mode begins its combine with a barrier over all ranks
(``cached_notify`` in csrc/kernels/internode.cu, ``cached_notify_combine`` in intranode.cu). If it
did, faster NICs could cost time, since results of cold devices would set out before the busiest
device has its tokens. DeepEP's low-latency mode has no such barrier; that it waits all the same
is an assumption, which makes it late where loads are uneven.

A communication kernel's price is charged to the ports: the device that owns the tokens is held to
what its SMs can handle, the other end to the port's own overhead, and what no port shows is latency
of the device with the experts: its own, since stages of one device hold up nothing elsewhere. With
the latency of the busiest device on all, faster NICs could cost time: they make NVLink what that
device waits for, and its latency longer, while others wait for NVLink as long as before.

Shape legend: S senders = D receivers = devices.
"""

from dataclasses import dataclass, field

import numpy as np

from moesim.costs.comm.work import Direction
from moesim.design.schedule import Schedule
from moesim.hardware import Cluster
from moesim.hardware.fabric import Fabric, relative_rates
from moesim.hardware.routes import Factors, device_rows, pair_rows
from moesim.lowering.barriers import Barriers, join
from moesim.lowering.movement import Movement
from moesim.lowering.priced import Priced
from moesim.lowering.products import Product, product_ops
from moesim.lowering.senders import send_order, sender_classes, windowed
from moesim.program.builder import Demands, ProgramBuilder, Waits

Array = np.ndarray


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LoweredExchange:
    """A priced exchange that is added to a program.

    Attributes:
        builder: The program; its first resources are the fabric's.
        fabric: Resources and routes of the fabric.
        cluster: The cluster, for its domains, rates and hop latency.
        land_D: ndarray of shape (D,): memory resource in which received bytes land.
        schedule: The granularity and the order of messages.
        priced: What moves and what it costs.
    """

    builder: ProgramBuilder
    fabric: Fabric
    cluster: Cluster
    land_D: Array
    schedule: Schedule
    priced: Priced
    # of each direction, which all legs share
    _factors: dict[str, Factors] = field(default_factory=dict, init=False)

    @property
    def movement(self) -> Movement:
        """The legs of the exchange."""
        return self.priced.movement

    @property
    def _barriers(self) -> Barriers:
        return Barriers(
            builder=self.builder,
            num_devices=self.fabric.num_devices,
            devices_per_domain=self.cluster.devices_per_domain,
        )

    def factors(self, direction: Direction) -> Factors:
        """Return the overheads of ports.

        The device that owns the tokens is held to its SMs, the other end to the port.
        """
        if direction not in self._factors:
            self._factors[direction] = self._held(direction)
        return self._factors[direction]

    def _held(self, direction: Direction) -> Factors:
        price, size = self.priced.prices[direction], self.priced.copy_bytes[direction]
        near_out, _, far_out, _ = self.movement.near_far_D
        near_D, far_D = relative_rates(self.cluster)

        def held(factor_D: Array, bytes_D: Array, rate_D: Array) -> Array:
            """Return the port's factor, or the one at which the port takes as long as the SMs."""
            # SM seconds as a multiple of what the bytes alone would take at the port's rate
            by_sms = np.zeros(len(bytes_D))
            np.divide(price.sm_s_D * rate_D, bytes_D, out=by_sms, where=bytes_D > 0)
            return np.maximum(factor_D, by_sms)

        near_rate_D = near_D * self.cluster.link_bytes_per_s
        near_own = held(price.near_factor_D, near_out * size, near_rate_D)
        far_own = held(price.far_factor_D, far_out * size, far_D * self.cluster.nic_bytes_per_s)
        # tokens leave their own device in dispatch and enter it in combine, so its factor changes
        # sides
        if direction == "dispatch":
            return Factors(near_own, price.near_factor_D, far_own, price.far_factor_D, near_own)
        return Factors(
            price.near_factor_D, near_own, price.far_factor_D, far_own, price.near_factor_D
        )

    def dispatch(
        self, ready_D: Array, spread_s: Array, after_D: Array | None, tag: str = ""
    ) -> tuple[Array, Array]:
        """Add the ops that send tokens to their experts.

        Args:
            ready_D: ndarray of shape (D,): op after which each sender's tokens are ready.
            spread_s: ndarray of shape (D,): roughly when that op ends; senders that are ready
                together form a class.
            after_D: ndarray of shape (D, M): ops that come before on each device's communication
                stream; None for the first exchange.
            tag: Suffix of the ops' names.

        Returns:
            (arrived, ended), two ndarrays of shape (D, M): ops that each device's experts wait for,
            and ops that the next exchange on its communication stream waits for.
        """
        if self.schedule.granularity == "pair":
            return self._pairs("dispatch", ready_D, after_D, tag)
        classes = sender_classes(spread_s, self.movement, self.cluster)
        arrived, before = [], after_D
        # a class may send when its last member has permuted its tokens
        barriers = [
            self._barriers.of_all(
                ("all permuted" if len(classes) == 1 else f"permuted_{k}") + tag,
                ready_D[members],
                "dispatch",
            )
            for k, members in enumerate(classes)
        ]
        gathered: Array | None = None
        for which, leg in enumerate(self.movement.legs):
            # a second hop that is serial starts after the first, not after the gate
            second = self.movement.serial and which == 1
            for k, members in enumerate(classes):
                name = "dispatch" + leg.name + (f"_{k}" if len(classes) > 1 else "") + tag
                if second:
                    assert gathered is not None
                    waits = gathered
                else:
                    waits = barriers[k]
                sent = leg.sent_by(None if len(classes) == 1 else members)
                arrived.append(
                    self._device_ops("dispatch", name, sent, "receiver", join(waits, before))
                )
            if self.movement.serial and which == 0:
                gathered = self._barriers.of_rails(
                    "gathered" + tag, np.stack(arrived, axis=1), "dispatch"
                )
        # every op of every leg and class, one column for each
        every = np.stack(arrived, axis=1)
        ended = self._barriers.of_all("all dispatched" + tag, every, "dispatch")
        return self._with_relays(every, "arrived" + tag, "dispatch", len(classes)), ended

    def combine(self, after_D: Array, stream_D: Array | None, tag: str = "") -> tuple[Array, Array]:
        """Add the ops that send results back.

        Args:
            after_D: ndarray of shape (D,): op after which each device's results are ready.
            stream_D: ndarray of shape (D, M): ops that come before on each device's communication
                stream; None for none.
            tag: Suffix of the ops' names.

        Returns:
            (arrived, ended): ops the reduction on each device waits for, and ops the next transfer
            on its stream waits for.
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
                waits = self._barriers.of_domains("computed" + tag, after_D, "combine")
            # results that the relay itself computed leave by it too
            sent.append(
                self._device_ops(
                    "combine",
                    "combine" + leg.name + tag,
                    leg.returned,
                    "sender",
                    join(join(waits, after_D), stream_D),
                )
            )
            if self.movement.serial and which == 0:
                gathered = self._barriers.of_rails(
                    "crossed" + tag, np.stack(sent, axis=1), "combine"
                )
        # at device granularity an exchange ends everywhere at once
        everywhere = self._barriers.of_all("all sent" + tag, np.stack(sent, axis=1), "combine")
        return everywhere, everywhere

    def _device_ops(
        self,
        direction: Direction,
        name: str,
        copies: Array | Product,
        by: str,
        after: Array | None,
    ) -> Array:
        size, factors = self.priced.copy_bytes[direction], self.factors(direction)
        start_s, hop_s = self.priced.prices[direction].latency_s_D, self.cluster.hop_s
        if isinstance(copies, Product):
            return product_ops(
                self.builder,
                self.fabric,
                copies.times(size),
                name,
                by=by,
                factors=factors,
                land_D=self.land_D,
                start_s=start_s,
                hop_s=hop_s,
                after=after,
                phase=direction,
            )
        # bytes of all pairs, summed up to one op for each device
        rows = device_rows(self.fabric, copies * size, by=by, factors=factors, land_D=self.land_D)
        return self.builder.ops(
            name,
            len(copies),
            demands=Demands(rows.resource, rows.amount, rows.ptr),
            latency_s=start_s + hop_s * rows.hops_N,
            after=after,
            bytes_per_flow=rows.bytes_N / np.maximum(rows.flows_N, 1),
            phase=direction,
        )

    def _pairs(
        self, direction: Direction, ready_D: Array, stream_D: Array | None, tag: str
    ) -> tuple[Array, Array]:
        """Add one op per pair of every leg, and return what `dispatch` returns."""
        legs = self.movement.legs if direction == "dispatch" else self.movement.legs[::-1]
        done: list[Array] = []
        sent: list[Array] = []
        for leg in legs:
            # combine sends every copy back the way it came
            copies = leg.matrix_SD if direction == "dispatch" else leg.matrix_SD.T
            senders, receivers = send_order(copies, self.schedule.send_order)
            rows = pair_rows(
                self.fabric,
                copies * self.priced.copy_bytes[direction],
                senders,
                receivers,
                factors=self.factors(direction),
                land_D=self.land_D,
            )
            # as with one op per device, the latency is that of the device with the experts
            far_end = receivers if direction == "dispatch" else senders
            # windows refer to ops of this batch, which gets the next free numbers
            first = self.builder.num_ops
            waits = [ready_D[senders]]
            if stream_D is not None:
                waits += [*stream_D[senders].T, *stream_D[receivers].T]
            # a serial second hop of a device starts when the first has brought its copies there
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
                latency_s=self.priced.prices[direction].latency_s_D[far_end]
                + self.cluster.hop_s * rows.hops_N,
                after=behind,
                bytes_per_flow=rows.bytes_N,
                phase=direction,
                own_batch=bool(self.schedule.send_window),
            )
            # copies that stay on their device are there as soon as that device is ready
            at_home = np.arange(len(copies))
            for far, ended, word in ((receivers, done, "done"), (senders, sent, "sent")):
                # one op per device that joins all messages ending there: sort them by device
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
        """Let each device also wait for the relays of its domain, where two hops run side
        by side.
        """
        if self.movement.serial or len(self.movement.legs) == 1:
            return arrived_DM
        # arrived_DM holds the ops of the first leg, then those of the second
        crossing = (
            arrived_DM[:, :per_leg] if self.movement.legs[0].crosses else arrived_DM[:, per_leg:]
        )
        return np.concatenate(
            [
                arrived_DM,
                self._barriers.of_domains(name, crossing, phase),
            ],
            axis=1,
        )
