"""Price the passes of routed experts through the library that runs them.

The backward through activations multiplies as many rows with the same matrices, transposed: it is
priced as the forward, of which it has FLOPs and bytes. The backward through weights multiplies, for
every expert, (columns x rows) times (rows x inputs): a grouped GEMM whose depth is the expert's
tokens. Libraries of serving engines have none, so it is priced by the library's own grouped GEMM
where kernels are priced one by one, and otherwise by that of the kernels beside it. All experts of
a device count as equally deep, with as many tiles and FLOPs as they have together.

Shape legend: D devices, L slots of a device.
"""

from dataclasses import replace

import numpy as np

from moesim.costs.devices.primitives import Kernels
from moesim.costs.load import Load
from moesim.costs.phase import PhaseCost, sequence
from moesim.costs.phases.experts import price_layer_experts, tiles_of
from moesim.costs.shape import ExpertShape
from moesim.costs.training.parts import Part, scaled
from moesim.costs.work import GemmSpec
from moesim.model import MoELayer

Array = np.ndarray
#: depths that kernels pad to (Transformer Engine pads the rows of fp8 experts to 16)
PAD = 16


def expert_parts(
    kernels: Kernels,
    layer: MoELayer,
    tp: int,
    counts_DL: Array,
    tokens_D: Array,
    gradient_bytes: float,
    *,
    pad: int = PAD,
) -> dict[str, Part]:
    """Return the parts ``forward``, ``dgrad`` and ``wgrad`` of the experts of every device.

    Args:
        kernels: Primitives of the device.
        layer: The layer.
        tp: Devices that share the width of an expert.
        counts_DL: ndarray of shape (D, L): rows of every slot.
        tokens_D: ndarray of shape (D,): tokens present.
        gradient_bytes: Bytes of an element of the sums of gradients.
        pad: Number of tokens that the depth of a product is a multiple of.
    """
    tiles = tiles_of(kernels, layer, tp, counts_DL)
    forward = price_layer_experts(kernels, layer, tp, counts_DL, None, tokens_D, tiles=tiles)
    width = -(-layer.widest // tp)
    per_row = 2.0 * layer.num_matrices * layer.hidden_size * width
    flops = per_row * float(counts_DL.sum(axis=-1).mean())
    wgrad = _wgrad(kernels, layer, tp, counts_DL, gradient_bytes, pad)
    return {
        "forward": Part(name="experts", cost=forward, flops=flops),
        "dgrad": Part(name="experts", cost=forward, flops=flops),
        "wgrad": Part(name="experts", cost=wgrad, flops=flops),
    }


def _wgrad(
    kernels: Kernels,
    layer: MoELayer,
    tp: int,
    counts_DL: Array,
    gradient_bytes: float,
    pad: int,
) -> PhaseCost:
    shape = ExpertShape.of(layer, tp)
    rows_D = counts_DL.sum(axis=-1).astype(np.float64)
    active_D = np.maximum((counts_DL > 0).sum(axis=-1), 1)
    mean = float((rows_D / active_D).mean())
    depth = max(-(-round(mean) // pad) * pad, pad)
    up = shape.sizes.num_up * shape.sizes.width
    found = [
        _product(kernels, shape, counts_DL, size, depth, gradient_bytes)
        for size in ((layer.hidden_size, up), (shape.sizes.width, layer.hidden_size))
    ]
    # a device with more tokens has deeper products
    return scaled(sequence(*found), rows_D / active_D / max(mean, 1e-9))


def _product(
    kernels: Kernels,
    shape: ExpertShape,
    counts_DL: Array,
    size: tuple[int, int],
    depth: int,
    gradient_bytes: float,
) -> PhaseCost:
    """Price the products of one matrix of every expert: its inputs are the rows of a tile."""
    inputs, columns = size
    rows_DL = np.where(counts_DL > 0, inputs, 0)
    sizes = replace(shape.sizes, hidden=depth, width=columns)
    tile = kernels.expert_tiles(rows_DL, sizes)[1]
    load = Load.of(rows_DL, rows_DL.sum(axis=-1), tile.block_m)
    spec = GemmSpec(
        tile=tile,
        fmt=shape.fmt,
        weight_bytes=shape.input_bytes,
        input_bytes=shape.input_bytes,
        # a sum of gradients is read and written
        output_bytes=2.0 * gradient_bytes,
        block_scaled=shape.block_scaled,
    )
    launch = kernels.launches(1.0 * (rows_DL.sum(axis=-1) > 0))
    return sequence(kernels.grouped_gemm(load, columns, depth, spec), launch)
