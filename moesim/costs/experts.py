"""The expert phase: from tokens on their device to weighted outputs on the same device.

Align (sort choices by expert), up GEMM (gate and up for SwiGLU), activation, down GEMM, weighted sum over a token's
local choices: the kernels a fused MoE of vLLM or sglang launches, and what their benchmarks time.

Shape legend: D devices or rows, L local experts (slots).
"""

from dataclasses import dataclass

import numpy as np

from moesim.costs.load import Load, Size
from moesim.costs.phase import PhaseCost, sequence
from moesim.costs.primitives import Kernels
from moesim.costs.tiles import Tile, heuristic_tile
from moesim.model import MoELayer
from moesim.precision import BYTES_PER_ELEMENT

Array = np.ndarray
#: align (2), both GEMMs, activation, zero fill, weighted sum; k = 1 has nothing to sum
_KERNELS, _KERNELS_TOP_1 = 7, 6
#: narrow formats quantise the input of both GEMMs in kernels of their own
_QUANTISE_KERNELS = 2
_OUTPUT_BYTES = 2.0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ExpertShape:
    """Sizes of the experts on a device; a table of measurements has one of each per row.

    Attributes:
        hidden: H.
        width: Expert width on this device: the layer's over its tensor parallelism.
        num_up: Up projections: 2 for SwiGLU, else 1.
        top_k: Experts of a token.
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
        """The shape on one of ``tp`` devices that share each expert's width."""
        precision = layer.precision
        return cls(
            hidden=layer.hidden_size,
            width=-(-layer.expert_intermediate_size // tp),
            num_up=2 if layer.gated else 1,
            top_k=layer.top_k,
            fmt=precision.activations,
            weight_bytes=precision.weight_bytes,
            input_bytes=precision.token_bytes("activations", layer.hidden_size) / layer.hidden_size,
            block_scaled=precision.block_scaled,
            weight_only=precision.weight_only,
        )


def typical_tile(counts_DL: Array, fmt: str) -> Tile:
    """The tile a tuned kernel would use for this histogram: by the mean load of an active expert."""
    active = max(int((counts_DL > 0).sum()), 1)
    return heuristic_tile(float(counts_DL.sum()) / active, BYTES_PER_ELEMENT[fmt])


def price_experts(kernels: Kernels, shape: ExpertShape, load: Load, num_tokens_D: Array, *, tile: Tile,
                  warm: bool = False) -> PhaseCost:
    """Price the expert phase on every device.

    Args:
        kernels: Primitives of the device.
        shape: Sizes and formats of the experts.
        load: What they compute.
        num_tokens_D: ndarray of shape (D,): distinct tokens present, whose local outputs are summed.
        tile: Configuration of both GEMMs.
        warm: Whether back-to-back calls find weights in L2 (a benchmark) or not (one of many layers).

    Returns:
        PhaseCost of shape (D,).
    """
    hidden, width = shape.hidden, shape.width
    up_columns = shape.num_up * width
    warm_bytes = load.active_D * ((up_columns + width) * hidden * shape.weight_bytes) if warm else None
    quantised = BYTES_PER_ELEMENT[shape.fmt] < _OUTPUT_BYTES
    launches = np.where(np.asarray(shape.top_k) > 1, _KERNELS, _KERNELS_TOP_1) + quantised * _QUANTISE_KERNELS

    def gemm(n: Size, k: Size) -> PhaseCost:
        return kernels.grouped_gemm(load, n, k, tile=tile, fmt=shape.fmt, weight_bytes=shape.weight_bytes,
                                    input_bytes=shape.input_bytes, warm_bytes_D=warm_bytes,
                                    block_scaled=shape.block_scaled, weight_only=shape.weight_only)

    tokens = np.asarray(num_tokens_D, dtype=np.float64)
    # activation and sum run over all slots of the tokens present, masked ones included
    slots = load.rows_D + load.masked_rows_D
    phases = [
        kernels.align(load.rows_D, 0 if load.counts_DL is None else load.counts_DL.shape[-1]),
        gemm(up_columns, hidden),
        kernels.stream(slots * (up_columns + width) * _OUTPUT_BYTES),
        gemm(hidden, width),
        kernels.stream((slots + tokens) * hidden * _OUTPUT_BYTES),
        kernels.launches((load.rows_D > 0) * launches),
    ]
    if quantised:
        phases.append(kernels.stream((tokens * hidden + slots * width) * (_OUTPUT_BYTES + shape.input_bytes)))
    return sequence(*phases)
