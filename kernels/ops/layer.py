"""Compute one MoE layer through the kernels, and the same layer in torch.

    weights_TK, ids_TK = gate(x_TH)                                # gates.py
    plan = make_plan(ids_TK)                                       # plan.py
    act_PI = grouped_swiglu(x_TH, plan);  y_PH = grouped_down(act_PI, plan)
    out_TH = combine(y_PH, weights_TK) + shared_experts(x_TH)

No token is dropped. Layers with capacity limits, plain two-matrix experts, or experts of different
widths are refused. With block-scaled weights, tokens and activations are quantized on the way
(`moesim_kernels.ops.fp8`), in the forward direction only.
"""

from collections.abc import Callable
from typing import Literal

import torch
from moesim_kernels.ops.checks import check_numbers, check_routing, check_shapes
from moesim_kernels.ops.counting_sort import Segments
from moesim_kernels.ops.dense_plan import dense_plan
from moesim_kernels.ops.expert_grad import experts, gate_weights
from moesim_kernels.ops.fp8 import quantise_rows, quantise_rows_reference
from moesim_kernels.ops.gates import count, gate_tokens, gate_tokens_reference, plan_segments
from moesim_kernels.ops.grouped_down import (
    combine,
    combine_reference,
    grouped_down,
    grouped_down_reference,
)
from moesim_kernels.ops.grouped_swiglu import grouped_swiglu, grouped_swiglu_reference
from moesim_kernels.ops.operands import BlockScaled, Operand, tensors, values
from moesim_kernels.ops.plan import Plan, check_ids, make_plan, make_plan_reference
from moesim_kernels.ops.runtime import device_name, limits
from moesim_kernels.ops.watch import Checked, looks, report
from moesim_kernels.ops.weights import (
    LayerWeights,
    check_layer,
    torch_dtype,
)
from moesim_kernels.tiles.choice import Shape, choose_tiles
from moesim_kernels.tiles.tiles import Tile, tile_config

from moesim.model import Gate, MoELayer

__all__ = [
    "LayerWeights",
    "expert_phase",
    "expert_phase_reference",
    "gate_tokens",
    "gate_tokens_reference",
    "moe_layer",
    "shared_experts",
    "shared_experts_reference",
    "torch_dtype",
]


def trained(*operands: Operand | None) -> bool:
    """Return whether any operand asks for a gradient.

    Raises:
        ValueError: One operand asks for a gradient, and another is block-scaled, which has no
            gradients.
    """
    given = [operand for operand in operands if operand is not None]
    if not torch.is_grad_enabled() or not any(tensor.requires_grad for tensor in tensors(*given)):
        return False
    if any(isinstance(operand, BlockScaled) for operand in given):
        raise ValueError(
            "expected experts of 16 bits or more for training: block-scaled ones have no "
            "gradients; call it under torch.no_grad()"
        )
    return True


def _with_gradient(
    weights_TK: torch.Tensor,
    x_TH: torch.Tensor,
    gate: Gate,
    weights: LayerWeights,
    ids_TK: torch.Tensor,
    seed: int,
) -> torch.Tensor:
    # The kernels' weights carry no gradient: those of the same choices are computed once more.
    if trained(x_TH, weights.fine_EH, weights.query_QH, weights.keys_2Sq):
        return gate_weights(x_TH, gate, weights, ids_TK, seed=seed)
    return weights_TK


def expert_phase(
    x_TH: torch.Tensor,
    ids_TK: torch.Tensor,
    weights_TK: torch.Tensor,
    weights: LayerWeights,
    *,
    swiglu_tile: Tile | None = None,
    down_tile: Tile | None = None,
    routed: Segments | None = None,
    checked: Checked = "later",
) -> torch.Tensor:
    """Run plan, both grouped GEMMs, and combine; differentiable (then with the default tiles).

    Args:
        x_TH: Tokens in the experts' format, shape (T, H), contiguous.
        ids_TK: Expert ids, int32 of shape (T, K), contiguous.
        weights_TK: Router weights, float32 of shape (T, K), contiguous.
        weights: Weights of the experts.
        swiglu_tile: Tile of the first GEMM, by default from `choose_tiles`; the plan takes its
            block_m.
        down_tile: Tile of the second GEMM, by default chosen the same way; the plan's block_m wins.
        routed: What the router counted of these ids (see `moesim_kernels.ops.plan.make_plan`).
        checked: Whether ids out of range and weights that are not finite are refused, with the
            first token named. On a CPU they are at once. On a GPU True waits for the device, and
            "later" waits for nothing: the next checked call or
            `moesim_kernels.ops.watch.synchronize` raises.

    Returns:
        A tensor of shape (T, H) in the format of ``x_TH``.

    Raises:
        ValueError: Shapes or formats do not fit each other.
        ConfigError: A table of tuned tiles is not valid.
        RuntimeError: Triton cannot launch kernels here.
    """
    w_gate_up = values(weights.w_gate_up)
    if swiglu_tile is None:
        shape = Shape(
            num_experts=w_gate_up.shape[0],
            top_k=ids_TK.shape[1],
            hidden_size=w_gate_up.shape[2],
            expert_intermediate_size=w_gate_up.shape[1] // 2,
            operand_bits=8 * w_gate_up.element_size(),
            dtype=str(w_gate_up.dtype).removeprefix("torch."),
        )
        # Chosen from the number of tokens alone, since the histogram stays on the device.
        swiglu_tile, chosen_down = choose_tiles(device_name(), shape, len(ids_TK), limits())
        down_tile = down_tile or chosen_down
    looked_at, watch = looks(checked, x_TH)
    report(watch)
    if looked_at:
        check_ids(ids_TK, w_gate_up.shape[0])
    plan = make_plan(ids_TK, w_gate_up.shape[0], swiglu_tile.block_m, routed, watch, weights_TK)
    # The autograd function has its own forward pass, which saves what backward needs.
    if trained(x_TH, weights_TK, weights.w_gate_up, weights.w_down):
        return experts(x_TH, weights_TK, weights.w_gate_up, weights.w_down, plan)
    tiles = (swiglu_tile, down_tile)
    if plan.top_k == 1:
        return _feed_forward(x_TH, weights.w_gate_up, weights.w_down, plan, *tiles, weights_TK)
    y_PH = _feed_forward(x_TH, weights.w_gate_up, weights.w_down, plan, *tiles)
    return combine(y_PH, weights_TK)


def _feed_forward(
    x_TH: torch.Tensor,
    gate_up: Operand,
    down: Operand,
    plan: Plan,
    swiglu_tile: Tile | None = None,
    down_tile: Tile | None = None,
    weights_TK: torch.Tensor | None = None,
) -> torch.Tensor:
    x, dtype = _operand(x_TH, gate_up, quantise_rows), x_TH.dtype
    # Activations are quantized again between the GEMMs if the weights are block-scaled.
    act_PI = grouped_swiglu(x, gate_up, plan, swiglu_tile, out_dtype=dtype)
    return grouped_down(
        _operand(act_PI, down, quantise_rows),
        down,
        plan,
        down_tile,
        out_dtype=dtype,
        weights_TK=weights_TK,
    )


def _feed_forward_reference(
    x_TH: torch.Tensor, gate_up: Operand, down: Operand, plan: Plan
) -> torch.Tensor:
    x, dtype = _operand(x_TH, gate_up, quantise_rows_reference), x_TH.dtype
    act_PI = grouped_swiglu_reference(x, gate_up, plan, out_dtype=dtype)
    return grouped_down_reference(
        _operand(act_PI, down, quantise_rows_reference), down, plan, out_dtype=dtype
    )


def _operand(
    rows: torch.Tensor,
    weights: Operand,
    quantise: Callable[[torch.Tensor, torch.dtype], BlockScaled],
) -> Operand:
    """Return the rows in the format of the weights they are multiplied with."""
    return quantise(rows, weights.values.dtype) if isinstance(weights, BlockScaled) else rows


def expert_phase_reference(
    x_TH: torch.Tensor, ids_TK: torch.Tensor, weights_TK: torch.Tensor, weights: LayerWeights
) -> torch.Tensor:
    """Compute `expert_phase` in torch: float32 inside, rounded to the format of ``x_TH`` where the
    kernels store.
    """
    plan = make_plan_reference(ids_TK, values(weights.w_gate_up).shape[0], block_m=16)
    return combine_reference(
        _feed_forward_reference(x_TH, weights.w_gate_up, weights.w_down, plan), weights_TK
    )


def shared_experts(x_TH: torch.Tensor, weights: LayerWeights) -> torch.Tensor:
    """Return what the shared experts add, as one dense expert as wide as all of them.

    Args:
        x_TH: Tokens in the experts' format, shape (T, H), contiguous.
        weights: Weights of a layer with shared experts.

    Returns:
        A tensor of shape (T, H) in the format of ``x_TH``.

    Raises:
        ValueError: Shapes or formats do not fit each other.
        RuntimeError: Triton cannot launch kernels here.
    """
    plan = dense_plan(len(x_TH), tile_config(len(x_TH), 1).block_m, x_TH.device)
    if trained(x_TH, weights.shared_gate_up, weights.shared_down):
        # A dense expert is a routed one that every token uses with weight 1.
        ones_T1 = torch.ones(len(x_TH), 1, device=x_TH.device)
        return experts(x_TH, ones_T1, weights.shared_gate_up, weights.shared_down, plan)
    return _feed_forward(x_TH, weights.shared_gate_up, weights.shared_down, plan)


def shared_experts_reference(x_TH: torch.Tensor, weights: LayerWeights) -> torch.Tensor:
    """Compute `shared_experts` in torch."""
    plan = dense_plan(len(x_TH), 16, x_TH.device)
    return _feed_forward_reference(x_TH, weights.shared_gate_up, weights.shared_down, plan)


def moe_layer(
    x_TH: torch.Tensor,
    weights: LayerWeights,
    layer: MoELayer,
    backend: Literal["triton", "torch"] = "triton",
    *,
    routing: tuple[torch.Tensor, torch.Tensor] | None = None,
    checked: Checked = True,
    seed: int = 0,
    counts_E: torch.Tensor | None = None,
    missing_E: torch.Tensor | None = None,
    swiglu_tile: Tile | None = None,
    down_tile: Tile | None = None,
) -> torch.Tensor:
    """Compute one whole MoE layer, shared experts included; differentiable.

    Args:
        x_TH: Tokens in the experts' format, shape (T, H), contiguous.
        weights: Weights of the layer.
        layer: Layer that gives the sizes and the gate; number formats are those of the weights.
        backend: "triton", or "torch" for the same numbers without Triton.
        routing: Weights (float32) and expert ids (int32), both of shape (T, K), contiguous, that
            replace the gate's choices.
        checked: Whether NaN, infinities, and ids out of range are refused, with the first token
            named. True does so before anything is launched, and waits for a GPU; "later" waits for
            nothing: on a GPU the next checked call or `moesim_kernels.ops.watch.synchronize`
            raises. With False such input gives wrong answers.
        seed: Seed of a noisy gate's noise; use a new seed for every call in training.
        counts_E: int32 of shape (E,); the number of tokens that chose each expert is added, for the
            update of a bias (`moesim_kernels.ops.selection.updated_bias`).
        missing_E: bool of shape (E,); experts that get no token in this call (expert dropout, see
            `moesim_kernels.ops.router_options.missing_experts`). Flat and group-limited gates only.
        swiglu_tile: Tile of the first GEMM, passed to `expert_phase`.
        down_tile: Tile of the second GEMM, passed to `expert_phase`.

    Returns:
        A tensor of shape (T, H) in the format of ``x_TH``.

    Raises:
        ConfigError: The kernels do not compute this layer.
        ValueError: The backend is unknown; shapes, formats, or strides do not fit; or numbers are
            refused. All checks come before anything is launched.
        RuntimeError: Triton cannot launch kernels here.
    """
    if backend not in ("triton", "torch"):
        raise ValueError(f"backend: expected 'triton' or 'torch', got {backend!r}")
    check_layer(layer)
    check_shapes(x_TH, weights, layer)
    looked_at, watch = looks(checked if backend == "triton" else bool(checked), x_TH)
    report(watch)
    if looked_at:
        check_numbers(x_TH, weights)
    if routing is not None:
        check_routing(routing, len(x_TH), layer, looked_at)
    if routing is not None:
        # Given choices are counted here, the gate's are counted by the gate.
        count(routing[1], counts_E)
    gating = {"seed": seed, "counts_E": counts_E, "missing_E": missing_E, "checked": looked_at}
    if backend == "torch":
        weights_TK, ids_TK = routing or gate_tokens_reference(
            x_TH, layer.gate, weights, layer.top_k, **gating
        )
        out_TH = expert_phase_reference(x_TH, ids_TK, weights_TK, weights)
        return (
            out_TH + shared_experts_reference(x_TH, weights) if layer.num_shared_experts else out_TH
        )
    routed = None
    if routing is None:
        routed = plan_segments(len(x_TH), layer.gate, layer.num_experts, layer.top_k, x_TH.device)
    weights_TK, ids_TK = routing or gate_tokens(
        x_TH, layer.gate, weights, layer.top_k, segments=routed, watch=watch, **gating
    )
    # Given router weights keep the gradient they came with.
    if routing is None:
        weights_TK = _with_gradient(weights_TK, x_TH, layer.gate, weights, ids_TK, seed)
    out_TH = expert_phase(
        x_TH,
        ids_TK,
        weights_TK,
        weights,
        swiglu_tile=swiglu_tile,
        down_tile=down_tile,
        routed=routed,
        # What the gate has chosen exists, and the host has looked before.
        checked="later" if watch is not None and routing is not None else False,
    )
    return out_TH + shared_experts(x_TH, weights) if layer.num_shared_experts else out_TH
