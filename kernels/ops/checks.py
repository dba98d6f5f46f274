"""Refuse invalid input before a layer's kernels are launched."""

import torch
from moesim_kernels.ops.operands import BlockScaled, Operand, check_scaled, tensors, values
from moesim_kernels.ops.plan import check_ids
from moesim_kernels.ops.runtime import require_float
from moesim_kernels.ops.weights import EXPERTS, LayerWeights, shapes

from moesim.model import MoELayer


def check_shapes(
    x_TH: torch.Tensor, weights: LayerWeights, layer: MoELayer, local_experts: int | None = None
) -> None:
    """Refuse tensors the layer's kernels cannot take.

    Args:
        x_TH: Tokens.
        weights: Weights of the layer.
        layer: Layer that gives the sizes.
        local_experts: Number of routed experts among the weights, where other ranks hold the rest.

    Raises:
        ValueError: A shape, format, stride, or device does not fit.
    """
    require_float("x_TH", x_TH)
    if x_TH.ndim != 2 or x_TH.shape[1] != layer.hidden_size:
        raise ValueError(f"x_TH: expected shape (T, {layer.hidden_size}), got {tuple(x_TH.shape)}")
    _check_tensor("x_TH", x_TH, x_TH)
    wanted = shapes(layer)
    if local_experts is not None:
        # Only routed experts are spread over ranks; every rank holds the whole gate.
        wanted |= {name: (local_experts, *wanted[name][1:]) for name in ("w_gate_up", "w_down")}
    for name, shape in wanted.items():
        operand: Operand | None = getattr(weights, name)
        found = None if operand is None else tuple(values(operand).shape)
        if found != shape:
            raise ValueError(f"weights.{name}: expected shape {shape} for this layer, got {found}")
    bias_E = weights.bias_E
    if bias_E is not None:
        _check_tensor("weights.bias_E", bias_E, x_TH)
        if bias_E.dtype != torch.float32 or bias_E.shape != (layer.num_experts,):
            raise ValueError(
                f"weights.bias_E: expected float32 of shape ({layer.num_experts},), got "
                f"{bias_E.dtype} of shape {tuple(bias_E.shape)}"
            )
    for name in wanted:
        if (operand := getattr(weights, name)) is not None:
            _check_weight(name, operand, x_TH, weights)


def _check_weight(name: str, operand: Operand, x_TH: torch.Tensor, weights: LayerWeights) -> None:
    for tensor in tensors(operand):
        _check_tensor(f"weights.{name}", tensor, x_TH)
    if name in EXPERTS and isinstance(weights.w_gate_up, BlockScaled):
        check_scaled(f"weights.{name}", operand, 3)
        return
    require_float(f"weights.{name}", values(operand))
    # Experts share the tokens' format, gate keys share the format of the fine keys.
    like, want = ("x_TH", x_TH) if name in EXPERTS else ("weights.fine_EH", weights.fine_EH)
    if values(operand).dtype != want.dtype:
        raise ValueError(
            f"weights.{name}: expected {want.dtype} as {like}, got {values(operand).dtype}"
        )


def _check_tensor(name: str, tensor: torch.Tensor, x_TH: torch.Tensor) -> None:
    if not tensor.is_contiguous():
        raise ValueError(f"{name}: expected a contiguous tensor, got strides {tensor.stride()}")
    if tensor.device != x_TH.device:
        raise ValueError(f"{name}: expected {x_TH.device} as x_TH, got {tensor.device}")


def _first_bad(rows: torch.Tensor) -> int:
    # Only input that is refused pays for finding where it is wrong.
    return int((~rows.isfinite()).any(1).int().argmax())


def check_numbers(x_TH: torch.Tensor, weights: LayerWeights) -> None:
    """Refuse numbers that would make NaN logits; this waits for the device.

    Raises:
        ValueError: A token or a key of the gate is NaN or infinite.
    """
    # Expert weights are left out: they do not enter the logits.
    for name, tensor in (
        ("x_TH", x_TH),
        *(
            (f"weights.{name}", getattr(weights, name))
            for name in ("fine_EH", "coarse_GH", "query_QH", "keys_2Sq", "bias_E")
        ),
    ):
        if tensor is not None and not bool(tensor.isfinite().all()):
            where = f" for token {_first_bad(tensor)}" if tensor is x_TH else ""
            raise ValueError(
                f"{name}: expected finite numbers, got NaN or infinity{where}, which would make "
                "NaN logits"
            )


def check_routing(
    routing: tuple[torch.Tensor, torch.Tensor], num_tokens: int, layer: MoELayer, checked: bool
) -> None:
    """Refuse a routing that does not fit this layer.

    Args:
        routing: Router weights and expert ids.
        num_tokens: Number of tokens T.
        layer: Layer that gives the number of experts and top_k.
        checked: Whether the numbers are checked too, which waits for the device.

    Raises:
        ValueError: A shape, format, or stride does not fit; ids are out of range; or weights are
            NaN or infinite.
    """
    weights_TK, ids_TK = routing
    shape = (num_tokens, layer.top_k)
    for name, tensor, dtype in (
        ("weights", weights_TK, torch.float32),
        ("ids", ids_TK, torch.int32),
    ):
        if tensor.shape != shape or tensor.dtype != dtype or not tensor.is_contiguous():
            raise ValueError(
                f"routing: expected contiguous {name} of {dtype} and shape {shape}, got "
                f"{tensor.dtype} of shape {tuple(tensor.shape)}"
            )
    # These checks read the numbers; those above look at shapes only.
    if checked:
        check_ids(ids_TK, layer.num_experts)
        if not bool(weights_TK.isfinite().all()):
            raise ValueError(
                "routing: expected finite weights, got NaN or infinity for token "
                f"{_first_bad(weights_TK)}"
            )
