"""Lower one MoE layer to a program.

Each device runs ``gate`` and ``permute``, and its ``shared`` experts while tokens travel in
``dispatch``. Its ``experts`` start as soon as its own tokens have arrived, its ``combine`` when its
own experts are done and dispatch has ended everywhere, and ``reduce`` when all devices have sent. A
single device has neither dispatch nor combine. With several micro-batches each device runs its
compute in one stream and its communication in another (`moesim.lowering.streams`), and
communication kernels hold a fixed part of the SMs. Where experts lie in the host's memory, missing
ones are copied once the gate has chosen.

Shape legend: S sources = D devices.
"""

from collections.abc import Sequence

import numpy as np

from moesim.costs.comm.work import CommKernel
from moesim.design.candidate import Candidate
from moesim.hardware import Cluster
from moesim.lowering.canvas import Canvas
from moesim.lowering.costs import BatchCosts, price_batches
from moesim.lowering.exchange import LoweredExchange
from moesim.lowering.host_links import HostLinks
from moesim.lowering.priced import Priced
from moesim.lowering.stored import StoredExperts
from moesim.lowering.streams import (
    Arrive,
    AwaitFetch,
    BeginCombine,
    BeginDispatch,
    Fetch,
    Local,
    Piece,
)
from moesim.lowering.traffic import AnyTraffic
from moesim.program import Program

Array = np.ndarray


def lower_layer(
    candidate: Candidate,
    cluster: Cluster,
    batches: Sequence[AnyTraffic],
    kernel: CommKernel | None,
    *,
    widths_DL: Array | None = None,
    stored: StoredExperts | None = None,
) -> Program:
    """Lower one forward pass of the layer.

    Args:
        candidate: The design: layer, parallelism and schedule.
        cluster: The cluster of D devices.
        batches: Traffic of every micro-batch on those D devices.
        kernel: Communication kernel of the exchange; None for one device.
        widths_DL: ndarray of shape (D, L): width of the expert in every slot; None if all experts
            have the same width.
        stored: The forms of the experts' weights and where they lie; None if all have the layer's
            form and stay on their device.
    """
    layer, schedule = candidate.layer, candidate.schedule
    priced: list[Priced] = []
    if kernel is not None:
        slots = batches[0].counts_DL.shape[1] * candidate.parallelism.ep
        priced = Priced.of_batches(
            layer,
            batches,
            kernel,
            cluster,
            num_experts=slots,
            exchange=cluster.exchange(schedule),
        )
    overlapped = len(batches) > 1
    canvas = Canvas.of(cluster, layer.precision.activations, overlapped=overlapped, priced=priced)
    costs = price_batches(
        layer,
        candidate.parallelism.tp,
        canvas.devices.groups,
        batches,
        [p.movement for p in priced],
        widths_DL,
        stored.groups if stored is not None else (),
    )
    fetches: Sequence[Fetch | None] = [None] * len(batches)
    if stored is not None and stored.fetches is not None:
        canvas.streams.host = HostLinks.of(cluster, canvas.devices)
        fetches = stored.fetches.pieces()
    exchanges: Sequence[LoweredExchange | None] = [None] * len(batches)
    if priced:
        exchanges = [canvas.exchange(p, schedule) for p in priced]
    canvas.streams.run(
        [pieces_of(c, e, f) for c, e, f in zip(costs, exchanges, fetches, strict=True)]
    )
    return canvas.builder.build()


def pieces_of(
    cost: BatchCosts, exchange: LoweredExchange | None, fetch: Fetch | None = None
) -> list[Piece]:
    """Return the MoE block of one micro-batch as pieces.

    Args:
        cost: What its phases demand.
        exchange: How its tokens travel; None for one device.
        fetch: The weights that come from the host once the gate has chosen; None for none.
    """
    pieces: list[Piece] = [Local(name="gate", cost=cost.gate)]
    shared = [Local(name="shared", cost=cost.shared)] if cost.shared is not None else []
    experts: list[Piece] = [Local(name="experts", cost=cost.experts)]
    if fetch is not None:
        pieces.append(fetch)
        experts.insert(0, AwaitFetch())
    if exchange is None:
        return [*pieces, *shared, *experts]
    assert cost.permute is not None, "what is exchanged is packed"
    assert cost.reduce is not None, "what is exchanged is added up"
    return [
        *pieces,
        Local(name="permute", cost=cost.permute),
        BeginDispatch(exchange=exchange),
        *shared,
        Arrive(),
        *experts,
        BeginCombine(exchange=exchange),
        Arrive(),
        Local(name="reduce", cost=cost.reduce),
    ]
