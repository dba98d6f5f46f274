"""Price the expert phase: from tokens on their device to weighted outputs on the same device.

The kernels are align (sort choices by expert), up GEMM (gate and up for SwiGLU), activation, down
GEMM, and the weighted sum over a token's local choices. A fused MoE of vLLM or sglang launches
these, and their benchmarks time them. A library may fuse the activation into the up GEMM.

Shape legend: D devices or rows, L local experts (slots).
"""

from dataclasses import replace

import numpy as np

from moesim.costs.devices.primitives import Kernels
from moesim.costs.load import Load, Size
from moesim.costs.phase import PhaseCost, sequence
from moesim.costs.shape import ExpertShape
from moesim.costs.tiles import Tile
from moesim.costs.work import GemmSpec
from moesim.model import MoELayer
from moesim.model.compression import low_rank
from moesim.model.precision import BYTES_PER_ELEMENT
from moesim.placement import Placement

Array = np.ndarray
#: narrow formats quantize the input of both GEMMs in separate kernels
_QUANTISE_KERNELS = 2
_OUTPUT_BYTES = 2.0
#: kernels more where each of both GEMMs is two thin ones
_LOW_RANK_KERNELS = 2


def tiles_of(kernels: Kernels, layer: MoELayer, tp: int, counts_DL: Array) -> tuple[Tile, Tile]:
    """Return the tiles of both GEMMs of a layer's routed experts on one of ``tp`` devices.

    Args:
        kernels: Primitives of the device, whose library chooses.
        layer: The layer, for its sizes and formats.
        tp: Devices that share each expert's width.
        counts_DL: ndarray of shape (D, L): rows of each slot of every device.
    """
    return kernels.expert_tiles(counts_DL, ExpertShape.of(layer, tp).sizes)


def slot_widths(layer: MoELayer, placement: Placement, tp: int) -> Array:
    """Return the width of the expert in each slot of each device: its share where ``tp`` devices
    hold it together.

    Args:
        layer: The layer, for the width of each expert.
        placement: The placement of those experts in slots.
        tp: Number of consecutive devices of a rank.

    Returns:
        ndarray of shape (D, L), int64, with slots in the order of `Placement.by_rank`; 0 where
        there is no slot or its expert is pruned.
    """
    width_P = layer.width_E()[placement.expert_of_slot_P]
    return np.repeat(placement.by_rank(-(-width_P // tp)), tp, axis=0)


def price_layer_experts(
    kernels: Kernels,
    layer: MoELayer,
    tp: int,
    counts_DL: Array,
    widths_DL: Array | None,
    num_tokens_D: Array,
    *,
    tiles: tuple[Tile, Tile] | None = None,
    warm: bool = False,
    rank_fraction: float | None = None,
) -> PhaseCost:
    """Price the routed experts of a layer, which have one width or several.

    Args:
        kernels: Primitives of the device.
        layer: The layer, for its sizes and formats.
        tp: Devices that share each expert's width.
        counts_DL: ndarray of shape (D, L): rows of each slot, 0 for a pruned expert.
        widths_DL: ndarray of shape (D, L): see `slot_widths`; None if all experts of the layer have
            the same width.
        num_tokens_D: ndarray of shape (D,): distinct tokens present.
        tiles: Tiles of both GEMMs; by default those that the library chooses for these devices.
        warm: Whether back-to-back calls find weights in L2, see `price_experts`.
        rank_fraction: Rank of the factors of every matrix, see
            `moesim.model.compression.Compression`; None for whole matrices.

    Returns:
        PhaseCost of shape (D,).
    """
    shape = ExpertShape.of(layer, tp)
    if rank_fraction is not None:
        shape = replace(shape, rank=low_rank(rank_fraction, layer.hidden_size, layer.widest))
    tiles = tiles or kernels.expert_tiles(counts_DL, shape.sizes)
    load = Load.of(counts_DL, np.asarray(num_tokens_D) * layer.top_k, tiles[0].block_m, widths_DL)
    return price_routed(kernels, shape, load, num_tokens_D, tiles=tiles, warm=warm)


def price_routed(
    kernels: Kernels,
    shape: ExpertShape,
    load: Load,
    num_tokens_D: Array,
    *,
    tiles: tuple[Tile, Tile],
    warm: bool = False,
) -> PhaseCost:
    """Price the routed experts: as a whole where a library is priced so, otherwise kernel by kernel
    with `price_experts`, whose arguments these are.
    """
    # no library was measured with two thin products in place of one
    whole = kernels.experts(shape, load, num_tokens_D) if shape.rank is None else None
    if whole is not None:
        return whole
    return price_experts(kernels, shape, load, num_tokens_D, tiles=tiles, warm=warm)


def price_experts(
    kernels: Kernels,
    shape: ExpertShape,
    load: Load,
    num_tokens_D: Array,
    *,
    tiles: tuple[Tile, Tile],
    warm: bool = False,
) -> PhaseCost:
    """Price the expert phase on every device, kernel by kernel.

    Args:
        kernels: Primitives of the device.
        shape: Sizes and formats of the experts.
        load: The histogram of the rows they compute.
        num_tokens_D: ndarray of shape (D,): distinct tokens present, whose local outputs are
            summed.
        tiles: Tiles of the up and of the down projection, which have the same block_m. An up tile's
            block_n counts the columns of its product.
        warm: Whether back-to-back calls find weights in L2 (a benchmark) or not (one of many
            layers).

    Returns:
        PhaseCost of shape (D,).
    """
    hidden = shape.hidden
    width = shape.width if load.widths_DL is None else load.widths_DL
    up_columns = shape.num_up * width
    per_width = shape.num_up + 1
    warm_bytes = (
        load.active_widths_D(shape.width) * (per_width * hidden * shape.weight_bytes)
        if warm
        else None
    )
    quantised = BYTES_PER_ELEMENT[shape.fmt] < _OUTPUT_BYTES
    launches = (
        np.where(np.asarray(shape.top_k) > 1, *kernels.expert_kernels)
        + quantised * _QUANTISE_KERNELS
    )
    if shape.rank is not None:
        launches = launches + _LOW_RANK_KERNELS

    # a token's local experts share its row
    copies = np.maximum(load.rows_D / np.maximum(num_tokens_D, 1), 1.0)

    def gemm(
        n: Size, k: Size, tile: Tile, *, gather: bool = False, scatter: bool = False
    ) -> PhaseCost:
        return kernels.grouped_gemm(
            load,
            n,
            k,
            GemmSpec(
                tile=tile,
                fmt=shape.fmt,
                weight_bytes=shape.weight_bytes,
                input_bytes=shape.input_bytes,
                warm_bytes_D=warm_bytes,
                block_scaled=shape.block_scaled,
                weight_only=shape.weight_only,
                gather_inputs=gather,
                scatter_outputs=scatter,
                row_copies=copies if gather else 1.0,
            ),
        )

    up, down = tiles
    if shape.rank is None:
        ups = [gemm(up_columns, hidden, up, gather=True)]
        downs = [gemm(hidden, width, down, scatter=True)]
    else:
        # each projection has factors of its own: hidden x rank, then rank x width
        rank = shape.rank
        ups = [gemm(shape.num_up * rank, hidden, up, gather=True), gemm(up_columns, rank, up)]
        downs = [gemm(rank, width, down), gemm(hidden, rank, down, scatter=True)]

    tokens = np.asarray(num_tokens_D, dtype=np.float64)
    # activation and sum run over all slots of the tokens present, masked ones included
    slots, slot_widths = load.rows_D + load.masked_rows_D, load.slot_widths_D(shape.width)
    phases = [
        kernels.align(load.rows_D, 0 if load.counts_DL is None else load.counts_DL.shape[-1]),
        *ups,
        kernels.stream(slot_widths * (kernels.activation_apart * per_width * _OUTPUT_BYTES)),
        *downs,
        kernels.gather_sum(slots, tokens, hidden * _OUTPUT_BYTES),
        kernels.launches((load.rows_D > 0) * launches),
    ]
    if quantised:
        phases.append(
            kernels.stream((tokens * hidden + slot_widths) * (_OUTPUT_BYTES + shape.input_bytes))
        )
    return sequence(*phases)
