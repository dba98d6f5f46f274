"""Price the expert phase: from tokens on their device to weighted outputs on the same device.

The kernels are align (sort choices by expert), up GEMM (gate and up for SwiGLU), activation, down
GEMM, and the weighted sum over a token's local choices. A fused MoE of vLLM or sglang launches
these, and their benchmarks time them.

Shape legend: D devices or rows, L local experts (slots).
"""

from dataclasses import dataclass

import numpy as np

from moesim.costs.devices.primitives import Kernels
from moesim.costs.load import Load, Size
from moesim.costs.phase import PhaseCost, sequence
from moesim.costs.tiles import Tile, heuristic_tile
from moesim.costs.work import GemmSpec
from moesim.model import MoELayer
from moesim.model.precision import BYTES_PER_ELEMENT
from moesim.placement import Placement

Array = np.ndarray
#: launches: align (2), both GEMMs, activation, zero fill, weighted sum; k = 1 has nothing to sum
_KERNELS, _KERNELS_TOP_1 = 7, 6
#: narrow formats quantize the input of both GEMMs in separate kernels
_QUANTISE_KERNELS = 2
_OUTPUT_BYTES = 2.0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ExpertShape:
    """Sizes of the experts on a device; in a table of measurements every size has one value per
    row.

    Attributes:
        hidden: Hidden size H.
        width: Expert width on this device: the layer's width over its tensor parallelism. Where
            experts differ, it is the widest, and the `Load` holds the width of each.
        num_up: Number of up projections: 2 for SwiGLU, otherwise 1.
        top_k: Number of experts that a token uses.
        fmt: Format of the GEMMs.
        weight_bytes: Bytes of one weight, scales included.
        input_bytes: Bytes of one input element, scales included.
        block_scaled: Whether a scale is applied after every block of the depth.
        weight_only: Whether the kernel widens the weights before it multiplies.
    """

    hidden: Size
    width: Size
    num_up: Size
    top_k: Size
    fmt: str
    weight_bytes: float
    input_bytes: float
    block_scaled: bool = False
    weight_only: bool = False

    @classmethod
    def of(cls, layer: MoELayer, tp: int) -> "ExpertShape":
        """Return the shape on one of ``tp`` devices that share each expert's width."""
        precision = layer.precision
        return cls(
            hidden=layer.hidden_size,
            width=-(-layer.widest // tp),
            num_up=2 if layer.gated else 1,
            top_k=layer.top_k,
            fmt=precision.activations,
            weight_bytes=precision.weight_bytes,
            input_bytes=precision.token_bytes("activations", layer.hidden_size) / layer.hidden_size,
            block_scaled=precision.block_scaled,
            weight_only=precision.weight_only,
        )


def typical_tile(counts_DL: Array, fmt: str) -> Tile:
    """Return the tile that a tuned kernel would use for the mean load of an active expert."""
    active = max(int((counts_DL > 0).sum()), 1)
    return heuristic_tile(float(counts_DL.sum()) / active, BYTES_PER_ELEMENT[fmt])


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
    tile: Tile | None = None,
    warm: bool = False,
) -> tuple[PhaseCost, Tile]:
    """Price the routed experts of a layer, which have one width or several.

    Args:
        kernels: Primitives of the device.
        layer: The layer, for its sizes and formats.
        tp: Devices that share each expert's width.
        counts_DL: ndarray of shape (D, L): rows of each slot, 0 for a pruned expert.
        widths_DL: ndarray of shape (D, L): see `slot_widths`; None if all experts of the layer have
            the same width.
        num_tokens_D: ndarray of shape (D,): distinct tokens present.
        tile: Tile of both GEMMs; by default the one a tuned kernel would use.
        warm: Whether back-to-back calls find weights in L2, see `price_experts`.

    Returns:
        PhaseCost of shape (D,), and the tile.
    """
    shape = ExpertShape.of(layer, tp)
    tile = tile or typical_tile(counts_DL, shape.fmt)
    load = Load.of(counts_DL, np.asarray(num_tokens_D) * layer.top_k, tile.block_m, widths_DL)
    return price_experts(kernels, shape, load, num_tokens_D, tile=tile, warm=warm), tile


def price_experts(
    kernels: Kernels,
    shape: ExpertShape,
    load: Load,
    num_tokens_D: Array,
    *,
    tile: Tile,
    warm: bool = False,
) -> PhaseCost:
    """Price the expert phase on every device.

    Args:
        kernels: Primitives of the device.
        shape: Sizes and formats of the experts.
        load: The histogram of the rows they compute.
        num_tokens_D: ndarray of shape (D,): distinct tokens present, whose local outputs are
            summed.
        tile: Tile of both GEMMs.
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
        np.where(np.asarray(shape.top_k) > 1, _KERNELS, _KERNELS_TOP_1)
        + quantised * _QUANTISE_KERNELS
    )

    def gemm(n: Size, k: Size, *, gather: bool = False, scatter: bool = False) -> PhaseCost:
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
            ),
        )

    tokens = np.asarray(num_tokens_D, dtype=np.float64)
    # activation and sum run over all slots of the tokens present, masked ones included
    slots, slot_widths = load.rows_D + load.masked_rows_D, load.slot_widths_D(shape.width)
    phases = [
        kernels.align(load.rows_D, 0 if load.counts_DL is None else load.counts_DL.shape[-1]),
        gemm(up_columns, hidden, gather=True),
        kernels.stream(slot_widths * per_width * _OUTPUT_BYTES),
        gemm(hidden, width, scatter=True),
        kernels.gather_sum(slots, tokens, hidden * _OUTPUT_BYTES),
        kernels.launches((load.rows_D > 0) * launches),
    ]
    if quantised:
        phases.append(
            kernels.stream((tokens * hidden + slot_widths) * (_OUTPUT_BYTES + shape.input_bytes))
        )
    return sequence(*phases)
