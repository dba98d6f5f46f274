"""Lower one MoE layer to a program.

Each device runs ``gate`` and ``permute``, and its ``shared`` experts while tokens travel in
``dispatch``. Its ``experts`` start as soon as its own tokens have arrived, its ``combine`` as soon
as its own experts are done, and ``reduce`` when all devices have sent. A single device has neither
dispatch nor combine. With several micro-batches each device runs its compute in one stream and its
communication in another (all dispatches, then all combines), and communication kernels hold a fixed
part of the SMs.

Shape legend: S sources = D devices.
"""

from collections.abc import Sequence

import numpy as np

from moesim.costs.comm.work import CommKernel
from moesim.costs.phase import PhaseCost
from moesim.design.candidate import Candidate
from moesim.hardware import Cluster
from moesim.hardware.fabric import fabric_of
from moesim.lowering.costs import BatchCosts, price_batches
from moesim.lowering.devices import Devices
from moesim.lowering.exchange import LoweredExchange
from moesim.lowering.priced import Priced
from moesim.lowering.traffic import AnyTraffic
from moesim.program import Program
from moesim.program.builder import ProgramBuilder

Array = np.ndarray


def lower_layer(
    candidate: Candidate,
    cluster: Cluster,
    batches: Sequence[AnyTraffic],
    kernel: CommKernel | None,
    *,
    widths_DL: Array | None = None,
) -> Program:
    """Lower one forward pass of the layer.

    Args:
        candidate: The design: layer, parallelism and schedule.
        cluster: The cluster of D devices.
        batches: Traffic of every micro-batch on those D devices.
        kernel: Communication kernel of the exchange; None for one device.
        widths_DL: ndarray of shape (D, L): width of the expert in every slot; None if all experts
            have the same width.
    """
    return _Lowering(candidate, cluster, batches, kernel, widths_DL).run()


class _Lowering:
    """A program that is being built, and the last op of every device's compute stream."""

    def __init__(
        self,
        candidate: Candidate,
        cluster: Cluster,
        batches: Sequence[AnyTraffic],
        kernel: CommKernel | None,
        widths_DL: Array | None,
    ) -> None:
        layer = candidate.layer
        self.overlapped = len(batches) > 1
        self.builder = ProgramBuilder()
        self.compute_D: Array | None = None
        self.exchanges: list[LoweredExchange] = []
        priced: list[Priced] = []
        if kernel is not None:
            # the fabric's resources come first: its routes number them from 0
            for name, rates in fabric_of(cluster).runs:
                self.builder.resources(name, rates)
            slots = batches[0].counts_DL.shape[1] * candidate.parallelism.ep
            exchange = cluster.exchange(candidate.schedule)
            priced = Priced.of_batches(
                layer, batches, kernel, cluster, num_experts=slots, exchange=exchange
            )
        # without overlap the kernel and the compute take turns, so no SM is set aside
        num_comm_sms = max((p.num_sms for p in priced), default=0) if self.overlapped else 0
        self.devices = Devices.of(
            cluster, layer.precision.activations, self.builder, num_comm_sms=num_comm_sms
        )
        self.exchanges = [
            LoweredExchange(
                builder=self.builder,
                fabric=fabric_of(cluster),
                cluster=cluster,
                priced=p,
                land_D=self.devices.hbm_D,
                schedule=candidate.schedule,
                overlapped=self.overlapped,
            )
            for p in priced
        ]

        self.costs = price_batches(
            layer,
            candidate.parallelism.tp,
            self.devices.groups,
            batches,
            [p.movement for p in priced],
            widths_DL,
        )

    def run(self) -> Program:
        # ops of one micro-batch share a suffix
        tags = [f"@{m}" if self.overlapped else "" for m in range(len(self.costs))]
        prepared = [self._prepare(cost, tag) for cost, tag in zip(self.costs, tags, strict=True)]
        # a device without shared experts goes on when its own tokens are ready
        stream_D: Array | None = None  # of communication: all dispatches, then all combines
        arrived = [
            (ready_D if shared is None else shared)[:, None] for ready_D, _, shared in prepared
        ]
        for m, exchange in enumerate(self.exchanges):
            ready_D, ready_s, _ = prepared[m]
            arrived[m], ended = exchange.dispatch(ready_D, ready_s, stream_D, tags[m])
            stream_D = ended if self.overlapped else None
        # experts run in the order of micro-batches, on each device's one compute stream
        computed = [
            self._experts(cost, arrived[m], prepared[m][2], tags[m])
            for m, cost in enumerate(self.costs)
        ]
        for m, exchange in enumerate(self.exchanges):
            returned, ended = exchange.combine(computed[m], stream_D, tags[m])
            stream_D = ended if self.overlapped else None
            reduce = self.costs[m].reduce
            assert reduce is not None, "what is exchanged is added up"
            self._phase("reduce", reduce, returned, tags[m])
        return self.builder.build()

    def _phase(self, name: str, cost: PhaseCost, after: Array | None, tag: str) -> Array:
        """Add one op per device, after the last op of its compute stream."""
        waits = [
            a.reshape(len(self.devices.sm_D), -1) for a in (after, self.compute_D) if a is not None
        ]
        # a barrier that all devices share would otherwise be waited for twice
        joined = _without_repeats(np.concatenate(waits, axis=1)) if waits else None
        numbers = self.devices.phase(name, cost, joined, tag)
        self.compute_D = numbers[:, None] if self.overlapped else None
        return numbers

    def _prepare(self, cost: BatchCosts, tag: str) -> tuple[Array, Array, Array | None]:
        """Add the gate, permute and shared experts of a micro-batch.

        Returns:
            (op after which each device's tokens are ready, roughly when that op ends, op of its
            shared experts or None), each an ndarray of shape (D,).
        """
        ready_D, ready_s = self._phase("gate", cost.gate, None, tag), cost.gate.solo_s_D()
        if cost.permute is not None:
            ready_D = self._phase("permute", cost.permute, ready_D, tag)
            ready_s = ready_s + cost.permute.solo_s_D()
        if cost.shared is None:
            return ready_D, ready_s, None
        return ready_D, ready_s, self._phase("shared", cost.shared, ready_D, tag)

    def _experts(
        self, cost: BatchCosts, arrived_DM: Array, shared_D: Array | None, tag: str
    ) -> Array:
        # shared experts share the device, so the routed ones start after them
        after = (
            arrived_DM
            if shared_D is None
            else np.concatenate([arrived_DM, shared_D[:, None]], axis=1)
        )
        return self._phase("experts", cost.experts, after, tag)


def _without_repeats(ops_DM: Array) -> Array:
    """Drop columns that repeat another column for every device."""
    keep = [
        m
        for m in range(ops_DM.shape[1])
        if not any((ops_DM[:, m] == ops_DM[:, n]).all() for n in range(m))
    ]
    return ops_DM[:, keep]
