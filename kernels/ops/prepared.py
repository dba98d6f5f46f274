"""Prepare a layer for many calls: check it once, and record its launches for each number of tokens.

    prepare:                       refuse what `moe_layer` would refuse of weights and layer
    first call with T tokens:      run the layer and record its launches
    later calls with T tokens:     repeat the launches for the new tokens

`moe_layer` looks at every tensor of a layer in every call, which costs more host time than the GPU
needs for a small batch. A prepared layer looks at the tokens alone. It computes the same numbers,
without gradients.
"""

from collections import OrderedDict

import torch
from moesim_kernels.ops.checks import check_numbers, check_shapes
from moesim_kernels.ops.launches import Tape, record
from moesim_kernels.ops.layer import moe_layer
from moesim_kernels.ops.operands import BlockScaled, values
from moesim_kernels.ops.runtime import capturing, triton_mode
from moesim_kernels.ops.watch import Checked, looks, report
from moesim_kernels.ops.weights import LayerWeights, check_layer
from moesim_kernels.tiles.tiles import Tile

from moesim.model import MoELayer

#: tokens up to which launches are recorded: with more, the host is ahead of the GPU anyway; and how
#: many tapes are kept
MOST_RECORDED, MOST_TAPES = 1024, 64


class PreparedLayer:
    """A whole MoE layer that is called with its tokens alone; `prepare_layer` makes it."""

    def __init__(
        self,
        weights: LayerWeights,
        layer: MoELayer,
        swiglu_tile: Tile | None,
        down_tile: Tile | None,
    ) -> None:
        self._weights, self._layer, self._tiles = weights, layer, (swiglu_tile, down_tile)
        self._device = values(weights.w_gate_up).device
        self._dtype = (
            None if isinstance(weights.w_gate_up, BlockScaled) else weights.w_gate_up.dtype
        )
        self._tapes: OrderedDict[tuple[int, int, torch.dtype], Tape | None] = OrderedDict()

    def __call__(self, x_TH: torch.Tensor) -> torch.Tensor:
        """Compute the layer's output for these tokens.

        Args:
            x_TH: Tokens in the experts' format, finite, shape (T, H), contiguous.

        Returns:
            A tensor of shape (T, H) in the format of ``x_TH``.

        Raises:
            ValueError: The tokens have a shape, format, stride or device the layer does not take,
                or those of an earlier call were not finite (on a GPU, see
                `moesim_kernels.ops.watch`).
            RuntimeError: Triton cannot launch kernels here.
        """
        if (
            x_TH.ndim != 2
            or x_TH.shape[1] != self._layer.hidden_size
            or not x_TH.is_contiguous()
            or x_TH.device != self._device
            or (self._dtype is not None and x_TH.dtype != self._dtype)
        ):
            check_shapes(x_TH, self._weights, self._layer)
        report(looks("later", x_TH)[1])
        with torch.no_grad():
            if triton_mode() != "gpu" or not 0 < len(x_TH) <= MOST_RECORDED or x_TH.data_ptr() % 16:
                return self._run(x_TH)
            return self._recorded(x_TH)

    def _run(self, x_TH: torch.Tensor) -> torch.Tensor:
        up, down = self._tiles
        # Tokens of a CPU are not looked at: a prepared layer is promised finite ones.
        checked: Checked = "later" if triton_mode() == "gpu" else False
        return moe_layer(
            x_TH, self._weights, self._layer, checked=checked, swiglu_tile=up, down_tile=down
        )

    def _recorded(self, x_TH: torch.Tensor) -> torch.Tensor:
        stream = torch.cuda.current_stream(self._device).cuda_stream
        key = (len(x_TH), stream, x_TH.dtype)
        tape = self._tapes.get(key)
        if tape is not None:
            return tape.replay(x_TH, stream)
        # Memory of a graph that is being recorded is that graph's own: no tape may keep it.
        if key in self._tapes or capturing():
            return self._run(x_TH)
        out_TH, self._tapes[key] = record(self._run, x_TH)
        if len(self._tapes) > MOST_TAPES:
            self._tapes.popitem(last=False)
        return out_TH


def prepare_layer(
    weights: LayerWeights,
    layer: MoELayer,
    *,
    swiglu_tile: Tile | None = None,
    down_tile: Tile | None = None,
) -> PreparedLayer:
    """Check a layer once and return what computes it.

    Args:
        weights: Weights of the layer, which must stay where they are; their numbers may change.
        layer: Layer that gives the sizes and the gate.
        swiglu_tile: Tile of the first GEMM (see `moesim_kernels.ops.layer.expert_phase`).
        down_tile: Tile of the second GEMM, likewise.

    Returns:
        A function from tokens to outputs, for inference: without noise, gradients, or a routing
        from outside. It keeps scratch memory for each number of tokens up to 1,024 and each stream.

    Raises:
        ConfigError: The kernels do not compute this layer.
        ValueError: Shapes, formats, strides or devices do not fit each other, or the gate's keys
            are not finite.
    """
    check_layer(layer)
    like = values(weights.w_gate_up)
    dtype = torch.bfloat16 if isinstance(weights.w_gate_up, BlockScaled) else like.dtype
    x_TH = torch.zeros(0, layer.hidden_size, dtype=dtype, device=like.device)
    check_shapes(x_TH, weights, layer)
    check_numbers(x_TH, weights)
    return PreparedLayer(weights, layer, swiglu_tile, down_tile)
