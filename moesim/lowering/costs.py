"""Price every phase of a layer, all micro-batches at once: their devices are rows of one table,
since a price takes about as long for two devices as for two hundred.

Shape legend: S sources = D devices, L slots of a device, M micro-batches.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from moesim.costs.devices.primitives import Kernels
from moesim.costs.load import Load
from moesim.costs.phase import PhaseCost, joined
from moesim.costs.phases.experts import price_experts, price_layer_experts, tiles_of
from moesim.costs.phases.gate import price_gate
from moesim.costs.phases.tokens import price_permute, price_reduce
from moesim.costs.shape import ExpertShape
from moesim.lowering.devices import Groups
from moesim.lowering.expert_groups import ExpertGroup, price_expert_groups
from moesim.lowering.movement import Movement
from moesim.lowering.traffic import AnyTraffic
from moesim.model import MoELayer
from moesim.model.gate_kinds import gate_kind

Array = np.ndarray


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class BatchCosts:
    """What the phases of one micro-batch demand, each of shape (D,).

    Attributes:
        gate: Scores and selection.
        permute: Packing; None for one device, which sends nothing.
        shared: Shared experts; None if the layer has none.
        experts: Routed experts.
        reduce: Adding up what returned; None for one device.
    """

    gate: PhaseCost
    permute: PhaseCost | None
    shared: PhaseCost | None
    experts: PhaseCost
    reduce: PhaseCost | None


def price_batches(
    layer: MoELayer,
    tp: int,
    groups: Groups,
    batches: Sequence[AnyTraffic],
    movements: Sequence[Movement],
    widths_DL: Array | None = None,
    members: Sequence[ExpertGroup] = (),
) -> list[BatchCosts]:
    """Price the phases of every micro-batch.

    Args:
        layer: The layer.
        tp: Devices of a rank.
        groups: The kinds of device, each with its slice of the D devices.
        batches: Traffic of every micro-batch.
        movements: The exchange of every micro-batch; empty for one device.
        widths_DL: ndarray of shape (D, L): width of the expert in every slot; None if all have the
            same width.
        members: The groups of experts, where they are stored in several forms; otherwise empty.
    """
    tokens = [np.asarray(traffic.num_tokens_S, dtype=np.int64) for traffic in batches]
    permute: Sequence[PhaseCost | None] = [None] * len(batches)
    reduce = permute
    # one device sends nothing, so it packs nothing
    if movements:
        leave = [traffic.sent_copies_S for traffic in batches]
        permute = _table(groups, lambda k, t, c: price_permute(k, layer, t, c), tokens, leave)
        returned = [movement.copies_S for movement in movements]
        reduce = _table(groups, lambda k, t, c: price_reduce(k, layer, t, c), tokens, returned)
    return [
        BatchCosts(
            gate=_by_tokens(groups, "gate", layer, tokens[m]),
            permute=permute[m],
            shared=(
                _by_tokens(groups, "shared", layer, tokens[m]) if layer.num_shared_experts else None
            ),
            experts=experts,
            reduce=reduce[m],
        )
        for m, experts in enumerate(
            [price_expert_groups(members, tp, b, widths_DL) for b in batches]
            if members
            else _experts(layer, tp, groups, batches, widths_DL)
        )
    ]


def _experts(
    layer: MoELayer,
    tp: int,
    groups: Groups,
    batches: Sequence[AnyTraffic],
    widths_DL: Array | None,
) -> list[PhaseCost]:
    if len(batches) == 1 and widths_DL is None:
        parts = [priced_experts(k, layer, tp, batches[0], w.start, w.stop) for k, w in groups]
        return [joined(parts)]
    # all devices of a micro-batch launch the same tiles, whatever each has to do
    tiles = [[tiles_of(kernels, layer, tp, b.counts_DL) for kernels, _ in groups] for b in batches]
    if any(other != tiles[0] for other in tiles):
        return [cost for b in batches for cost in _experts(layer, tp, groups, [b], widths_DL)]
    of_kind = {id(kernels): chosen for (kernels, _), chosen in zip(groups, tiles[0], strict=True)}

    def price(kernels: Kernels, counts: Array, tokens: Array, *widths: Array) -> PhaseCost:
        return price_layer_experts(
            kernels,
            layer,
            tp,
            counts,
            widths[0] if widths else None,
            tokens,
            tiles=of_kind[id(kernels)],
        )

    columns = [[b.counts_DL for b in batches], [np.asarray(b.tokens_D) for b in batches]]
    if widths_DL is not None:
        columns.append([widths_DL] * len(batches))
    return _table(groups, price, *columns)


@lru_cache(maxsize=128)
def priced_experts(
    kernels: Kernels, layer: MoELayer, tp: int, traffic: AnyTraffic, start: int, stop: int
) -> PhaseCost:
    """Price experts of one width on devices ``start`` to ``stop`` of one kind. Whoever chooses a
    library prices what is then lowered, so it is kept.
    """
    which = slice(start, stop)
    return price_layer_experts(
        kernels,
        layer,
        tp,
        traffic.counts_DL[which],
        None,
        np.asarray(traffic.tokens_D)[which],
        tiles=tiles_of(kernels, layer, tp, traffic.counts_DL),
    )


def _table(
    groups: Groups, price: Callable[..., PhaseCost], *columns: Sequence[Array]
) -> list[PhaseCost]:
    """Price a table of the devices of every micro-batch, and take it apart again.

    Args:
        groups: The kinds of device.
        price: Function of kernels and of an array for each column, over any devices.
        *columns: For each argument an array over devices of every micro-batch.
    """
    count = len(columns[0])
    parts = []
    for kernels, which in groups:
        rows = [np.concatenate([values[which] for values in column]) for column in columns]
        parts.append(price(kernels, *rows).split(count))
    return [joined([part[m] for part in parts]) for m in range(count)]


def _by_tokens(groups: Groups, phase: str, layer: MoELayer, tokens_S: Array) -> PhaseCost:
    """Price a phase that depends on the tokens of each device alone."""
    rule = gate_kind(layer.gate.kind).price
    return joined(
        [_kept(phase, kernels, layer, rule, tokens_S[which].tobytes()) for kernels, which in groups]
    )


@lru_cache(maxsize=512)
def _kept(phase: str, kernels: Kernels, layer: MoELayer, rule: object, tokens: bytes) -> PhaseCost:
    """Price the gate or the shared experts; micro-batches, placements and exchanges change neither.

    Args:
        phase: ``gate`` or ``shared``.
        kernels: Primitives of the devices.
        layer: The layer.
        rule: The price of its gate, which may be registered anew.
        tokens: The bytes of an ndarray of int64: tokens of each device.
    """
    tokens_D = np.frombuffer(tokens, dtype=np.int64)
    return (
        price_gate(kernels, layer, tokens_D)
        if phase == "gate"
        else price_shared(layer, kernels, tokens_D)
    )


def price_shared(layer: MoELayer, kernels: Kernels, num_tokens_S: Array) -> PhaseCost:
    """Price the shared experts as one dense group of their joint width, over every token of a
    device.
    """
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
