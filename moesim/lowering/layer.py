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
from moesim.costs.devices.primitives import Kernels
from moesim.costs.load import Load
from moesim.costs.phase import PhaseCost
from moesim.costs.phases.experts import (
    price_experts,
    price_layer_experts,
    tiles_of,
)
from moesim.costs.phases.gate import price_gate
from moesim.costs.phases.tokens import price_permute, price_reduce
from moesim.costs.shape import ExpertShape
from moesim.design.candidate import Candidate
from moesim.hardware import Cluster
from moesim.hardware.fabric import fabric_of
from moesim.lowering.devices import Devices
from moesim.lowering.exchange import LoweredExchange
from moesim.lowering.priced import Priced
from moesim.lowering.traffic import Traffic
from moesim.program import Program
from moesim.program.builder import ProgramBuilder

Array = np.ndarray


def lower_layer(
    candidate: Candidate,
    cluster: Cluster,
    batches: Sequence[Traffic],
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
        batches: Sequence[Traffic],
        kernel: CommKernel | None,
        widths_DL: Array | None,
    ) -> None:
        self.candidate, self.layer, self.batches = candidate, candidate.layer, batches
        self.widths_DL = widths_DL
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
            priced = [
                Priced.of(
                    self.layer,
                    traffic,
                    kernel,
                    cluster,
                    num_experts=slots,
                    exchange=cluster.exchange(candidate.schedule),
                )
                for traffic in batches
            ]
        # without overlap the kernel and the compute take turns, so no SM is set aside
        num_comm_sms = max((p.num_sms for p in priced), default=0) if self.overlapped else 0
        self.devices = Devices.of(
            cluster, self.layer.precision.activations, self.builder, num_comm_sms=num_comm_sms
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

    def run(self) -> Program:
        # ops of one micro-batch share a suffix
        tags = [f"@{m}" if self.overlapped else "" for m in range(len(self.batches))]
        prepared = [
            self._prepare(traffic, tag) for traffic, tag in zip(self.batches, tags, strict=True)
        ]
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
        computed = [self._experts(m, arrived[m], prepared[m][2], tags[m]) for m in range(len(tags))]
        for m, exchange in enumerate(self.exchanges):
            returned, ended = exchange.combine(computed[m], stream_D, tags[m])
            stream_D = ended if self.overlapped else None
            self._reduce(m, returned, tags[m])
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

    def _prepare(self, traffic: Traffic, tag: str) -> tuple[Array, Array, Array | None]:
        """Add the gate, permute and shared experts of a micro-batch.

        Returns:
            (op after which each device's tokens are ready, roughly when that op ends, op of its
            shared experts or None), each an ndarray of shape (D,).
        """
        tokens_S = np.asarray(traffic.num_tokens_S)
        gate = self.devices.price(
            lambda kernels, which: price_gate(kernels, self.layer, tokens_S[which])
        )
        ready_D, ready_s = self._phase("gate", gate, None, tag), gate.solo_s_D()
        # one device sends nothing, so it packs nothing
        if self.exchanges:
            copies_S = traffic.copies_SD.sum(axis=1)
            permute = self.devices.price(
                lambda kernels, which: price_permute(
                    kernels, self.layer, tokens_S[which], copies_S[which]
                )
            )
            ready_D, ready_s = (
                self._phase("permute", permute, ready_D, tag),
                ready_s + permute.solo_s_D(),
            )
        shared = None
        if self.layer.num_shared_experts:
            cost = self.devices.price(
                lambda kernels, which: price_shared(self.candidate, kernels, tokens_S[which])
            )
            shared = self._phase("shared", cost, ready_D, tag)
        return ready_D, ready_s, shared

    def _experts(self, batch: int, arrived_DM: Array, shared_D: Array | None, tag: str) -> Array:
        traffic = self.batches[batch]
        tp = self.candidate.parallelism.tp
        cost = self.devices.price(
            lambda kernels, which: price_layer_experts(
                kernels,
                self.layer,
                tp,
                traffic.counts_DL[which],
                None if self.widths_DL is None else self.widths_DL[which],
                traffic.tokens_D[which],
                # all devices launch the same tiles, whatever each has to do
                tiles=tiles_of(kernels, self.layer, tp, traffic.counts_DL),
            )
        )
        # shared experts share the device, so the routed ones start after them
        after = (
            arrived_DM
            if shared_D is None
            else np.concatenate([arrived_DM, shared_D[:, None]], axis=1)
        )
        return self._phase("experts", cost, after, tag)

    def _reduce(self, batch: int, returned_DM: Array, tag: str) -> None:
        tokens_S, copies_S = (
            np.asarray(self.batches[batch].num_tokens_S),
            self.exchanges[batch].movement.copies_S,
        )
        cost = self.devices.price(
            lambda kernels, which: price_reduce(
                kernels, self.layer, tokens_S[which], copies_S[which]
            )
        )
        self._phase("reduce", cost, returned_DM, tag)


def _without_repeats(ops_DM: Array) -> Array:
    """Drop columns that repeat another column for every device."""
    keep = [
        m
        for m in range(ops_DM.shape[1])
        if not any((ops_DM[:, m] == ops_DM[:, n]).all() for n in range(m))
    ]
    return ops_DM[:, keep]


def price_shared(candidate: Candidate, kernels: Kernels, num_tokens_S: Array) -> PhaseCost:
    """Price the shared experts as one dense group of their joint width, over every token of a
    device.
    """
    layer = candidate.layer
    # every device holds the shared experts whole
    whole = ExpertShape.of(layer, 1)
    # all shared experts of the layer act as one expert of their joint width
    shape = ExpertShape(
        hidden=whole.hidden,
        width=layer.num_shared_experts * layer.shared_width,
        num_up=whole.num_up,
        top_k=1,
        fmt=whole.fmt,
        weight_bytes=whole.weight_bytes,
        input_bytes=whole.input_bytes,
        block_scaled=whole.block_scaled,
        weight_only=whole.weight_only,
    )
    counts = np.asarray(num_tokens_S)[:, None]
    tiles = kernels.expert_tiles(counts, shape.sizes)
    return price_experts(
        kernels, shape, Load.of(counts, counts[:, 0], tiles[0].block_m), num_tokens_S, tiles=tiles
    )
