"""One MoE layer through the kernels, and the same layer in torch.

Gate, plan, routed experts with SwiGLU, combine, shared experts; no token dropped. Capacity limits, plain two-matrix
experts and different widths are not computed: they are refused. With block-scaled weights, tokens and activations are
quantised on the way (`moesim_kernels.fp8`), forward only.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import Literal

import torch
from moesim_kernels.expert_grad import experts, gate_weights
from moesim_kernels.fp8 import quantise_rows, quantise_rows_reference
from moesim_kernels.gate_logits import gate_parts
from moesim_kernels.grouped_down import combine, combine_reference, grouped_down, grouped_down_reference
from moesim_kernels.grouped_linear import dense_plan
from moesim_kernels.grouped_swiglu import grouped_swiglu, grouped_swiglu_reference
from moesim_kernels.hier_gate import two_level_gate, two_level_gate_reference
from moesim_kernels.layer_checks import check_numbers, check_routing, check_shapes
from moesim_kernels.operands import BlockScaled, Operand, tensors, values
from moesim_kernels.plan import Plan, make_plan, make_plan_reference
from moesim_kernels.product_key import product_key_gate, product_key_gate_reference
from moesim_kernels.router import Options, route_parts, route_reference
from moesim_kernels.runtime import capturing, device_name, limits
from moesim_kernels.tile_choice import Shape, choose_tiles
from moesim_kernels.tiles import Tile, tile_config
from moesim_kernels.weights import LayerWeights, check_gate, check_layer, check_selection, torch_dtype

from moesim.model import Gate, MoELayer

__all__ = ["LayerWeights", "expert_phase", "expert_phase_reference", "gate_tokens", "gate_tokens_reference",
           "moe_layer", "shared_experts", "shared_experts_reference", "torch_dtype"]


def _groups_keys(weights: LayerWeights) -> torch.Tensor:
    if weights.coarse_GH is None:
        raise ValueError("weights.coarse_GH: a two-level gate needs the groups' keys")
    return weights.coarse_GH


def _product_keys(weights: LayerWeights) -> tuple[torch.Tensor, torch.Tensor]:
    if weights.query_QH is None or weights.keys_2Sq is None:
        raise ValueError("weights.query_QH: a product-key gate needs its projection and keys")
    return weights.query_QH, weights.keys_2Sq


def _options(gate: Gate, weights: LayerWeights, seed: int, counts_E: torch.Tensor | None, checked: bool) -> Options:
    check_selection(gate)
    if gate.balancing == "bias" and weights.bias_E is None:
        raise ValueError("weights.bias_E: a gate with a bias needs it")
    return Options(bias_E=weights.bias_E if gate.balancing == "bias" else None, noise_std=gate.noise_std, seed=seed,
                   temperature=gate.temperature, counts_E=counts_E, checked=checked)


def gate_tokens(x_TH: torch.Tensor, gate: Gate, weights: LayerWeights, top_k: int, *, seed: int = 0,
                counts_E: torch.Tensor | None = None, checked: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    """Choose experts with any of the four gates, in the format of the gate's keys.

    Args:
        x_TH: Tokens of shape (T, H), contiguous.
        gate: Kind, groups, score, noise, bias and temperature.
        weights: The gate's keys, and its bias.
        top_k: Experts a token uses.
        seed: Of the noise.
        counts_E: int32 of shape (E,): the number of tokens that chose each expert is added to it.
        checked: Refuse NaN logits; on a GPU that is a wait.

    Returns:
        Weights, float32 of shape (T, K); expert ids, int32 of shape (T, K).

    Raises:
        ConfigError: A two-level or product-key gate with sigmoid, heads that do not divide top_k, or a way of choosing
            the kernels do not compute.
        ValueError: Shapes or numbers that do not fit each other.
        RuntimeError: No Triton to launch with.
    """
    check_gate(gate, top_k)
    options = _options(gate, weights, seed, counts_E, checked)
    x_TH = x_TH.to(weights.fine_EH.dtype)
    if gate.kind in ("flat", "group_limited"):
        return route_parts(gate_parts(x_TH, weights.fine_EH), top_k, gate.score, gate.num_expert_groups,
                           gate.num_limited_groups, options)
    if gate.kind == "two_level":
        chosen = two_level_gate(x_TH, _groups_keys(weights), weights.fine_EH, top_k, gate.num_limited_groups)
    else:
        chosen = product_key_gate(x_TH, *_product_keys(weights), gate.query_heads, top_k)
    _count(chosen[1], counts_E)
    return chosen


def _count(ids_TK: torch.Tensor, counts_E: torch.Tensor | None) -> None:
    """Without a wait: torch.bincount would ask the device for the highest id."""
    if counts_E is not None:
        counts_E.index_add_(0, ids_TK.flatten(), torch.ones_like(ids_TK).flatten())


def gate_tokens_reference(x_TH: torch.Tensor, gate: Gate, weights: LayerWeights, top_k: int, *, seed: int = 0,
                          counts_E: torch.Tensor | None = None,
                          checked: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    """`gate_tokens` in torch."""
    check_gate(gate, top_k)
    options = _options(gate, weights, seed, counts_E, checked)
    x_TH = x_TH.to(weights.fine_EH.dtype)
    if gate.kind in ("flat", "group_limited"):
        logits_TE = x_TH.float() @ weights.fine_EH.float().T
        return route_reference(logits_TE, top_k, gate.score, gate.num_expert_groups, gate.num_limited_groups, options)
    if gate.kind == "two_level":
        chosen = two_level_gate_reference(x_TH, _groups_keys(weights), weights.fine_EH, top_k, gate.num_limited_groups)
    else:
        chosen = product_key_gate_reference(x_TH, *_product_keys(weights), gate.query_heads, top_k)
    _count(chosen[1], counts_E)
    return chosen


def trained(*operands: Operand | None) -> bool:
    """Whether one of these asks for a gradient.

    Raises:
        ValueError: One does, and another is block-scaled, which has no gradients.
    """
    given = [operand for operand in operands if operand is not None]
    if not torch.is_grad_enabled() or not any(tensor.requires_grad for tensor in tensors(*given)):
        return False
    if any(isinstance(operand, BlockScaled) for operand in given):
        raise ValueError("expected experts of 16 bits or more for training: block-scaled ones have no gradients; "
                         "call it under torch.no_grad()")
    return True


def _with_gradient(weights_TK: torch.Tensor, x_TH: torch.Tensor, gate: Gate, weights: LayerWeights,
                   ids_TK: torch.Tensor, seed: int) -> torch.Tensor:
    if trained(x_TH, weights.fine_EH, weights.query_QH, weights.keys_2Sq):
        return gate_weights(x_TH, gate, weights, ids_TK, seed=seed)
    return weights_TK


def expert_phase(x_TH: torch.Tensor, ids_TK: torch.Tensor, weights_TK: torch.Tensor, weights: LayerWeights, *,
                 swiglu_tile: Tile | None = None, down_tile: Tile | None = None) -> torch.Tensor:
    """Everything after the gate: plan, both grouped GEMMs, combine; differentiable (then with the default tiles).

    Args:
        x_TH: Tokens in the experts' format, shape (T, H), contiguous.
        ids_TK: Expert ids, int32 of shape (T, K), contiguous.
        weights_TK: Router weights, float32 of shape (T, K), contiguous.
        weights: The experts' weights.
        swiglu_tile: Tile of the first GEMM; its block_m is the plan's. By default that of
            `moesim_kernels.tile_choice.choose_tiles`.
        down_tile: Tile of the second, likewise; its block_m gives way to the plan's.

    Returns:
        Shape (T, H) in the format of ``x_TH``.

    Raises:
        ValueError: Shapes or formats that do not fit each other.
        ConfigError: A table of tuned tiles that is not valid.
        RuntimeError: No Triton to launch with.
    """
    w_gate_up = values(weights.w_gate_up)
    if swiglu_tile is None:
        shape = Shape(num_experts=w_gate_up.shape[0], top_k=ids_TK.shape[1], hidden_size=w_gate_up.shape[2],
                      expert_intermediate_size=w_gate_up.shape[1] // 2, operand_bits=8 * w_gate_up.element_size(),
                      dtype=str(w_gate_up.dtype).removeprefix("torch."))
        swiglu_tile, chosen_down = choose_tiles(device_name(), shape, len(ids_TK), limits())
        down_tile = down_tile or chosen_down
    plan = make_plan(ids_TK, w_gate_up.shape[0], swiglu_tile.block_m)
    if trained(x_TH, weights_TK, weights.w_gate_up, weights.w_down):
        return experts(x_TH, weights_TK, weights.w_gate_up, weights.w_down, plan)
    return combine(_feed_forward(x_TH, weights.w_gate_up, weights.w_down, plan, swiglu_tile, down_tile), weights_TK)


def _feed_forward(x_TH: torch.Tensor, gate_up: Operand, down: Operand, plan: Plan, swiglu_tile: Tile | None = None,
                  down_tile: Tile | None = None) -> torch.Tensor:
    x, dtype = _operand(x_TH, gate_up, quantise_rows), x_TH.dtype
    act_PI = grouped_swiglu(x, gate_up, plan, swiglu_tile, out_dtype=dtype)
    return grouped_down(_operand(act_PI, down, quantise_rows), down, plan, down_tile, out_dtype=dtype)


def _feed_forward_reference(x_TH: torch.Tensor, gate_up: Operand, down: Operand, plan: Plan) -> torch.Tensor:
    x, dtype = _operand(x_TH, gate_up, quantise_rows_reference), x_TH.dtype
    act_PI = grouped_swiglu_reference(x, gate_up, plan, out_dtype=dtype)
    return grouped_down_reference(_operand(act_PI, down, quantise_rows_reference), down, plan, out_dtype=dtype)


def _operand(rows: torch.Tensor, weights: Operand,
             quantise: Callable[[torch.Tensor, torch.dtype], BlockScaled]) -> Operand:
    """Rows in the format of the weights they meet."""
    return quantise(rows, weights.values.dtype) if isinstance(weights, BlockScaled) else rows


def expert_phase_reference(x_TH: torch.Tensor, ids_TK: torch.Tensor, weights_TK: torch.Tensor,
                           weights: LayerWeights) -> torch.Tensor:
    """`expert_phase` in torch: float32 inside, rounded to the format of ``x_TH`` where the kernels store."""
    plan = make_plan_reference(ids_TK, values(weights.w_gate_up).shape[0], block_m=16)
    return combine_reference(_feed_forward_reference(x_TH, weights.w_gate_up, weights.w_down, plan), weights_TK)


def _kept_plan(num_rows: int, block_m: int, device: torch.device) -> Plan:
    """The dense plan of so many rows, made once: it is the same every time.

    One made while a graph is recorded has no numbers before the graph runs, so that one is not kept.
    """
    return dense_plan(num_rows, block_m, device) if capturing() else _dense_plan(num_rows, block_m, device)


_dense_plan = lru_cache(maxsize=64)(dense_plan)


def shared_experts(x_TH: torch.Tensor, weights: LayerWeights) -> torch.Tensor:
    """What the shared experts add to each token: one dense expert as wide as all of them.

    Args:
        x_TH: Tokens in the experts' format, shape (T, H), contiguous.
        weights: With shared experts.

    Returns:
        Shape (T, H) in the format of ``x_TH``.

    Raises:
        ValueError: Shapes or formats that do not fit each other.
        RuntimeError: No Triton to launch with.
    """
    plan = _kept_plan(len(x_TH), tile_config(len(x_TH), 1).block_m, x_TH.device)
    if trained(x_TH, weights.shared_gate_up, weights.shared_down):
        ones_T1 = torch.ones(len(x_TH), 1, device=x_TH.device)
        return experts(x_TH, ones_T1, weights.shared_gate_up, weights.shared_down, plan)
    return _feed_forward(x_TH, weights.shared_gate_up, weights.shared_down, plan)


def shared_experts_reference(x_TH: torch.Tensor, weights: LayerWeights) -> torch.Tensor:
    """`shared_experts` in torch."""
    plan = dense_plan(len(x_TH), 16, x_TH.device)
    return _feed_forward_reference(x_TH, weights.shared_gate_up, weights.shared_down, plan)


def moe_layer(x_TH: torch.Tensor, weights: LayerWeights, layer: MoELayer,
              backend: Literal["triton", "torch"] = "triton", *,
              routing: tuple[torch.Tensor, torch.Tensor] | None = None, checked: bool = True,
              seed: int = 0, counts_E: torch.Tensor | None = None,
              swiglu_tile: Tile | None = None, down_tile: Tile | None = None) -> torch.Tensor:
    """One whole MoE layer: gate, plan, routed experts, combine, and shared experts on top; differentiable.

    Args:
        x_TH: Tokens in the experts' format, shape (T, H), contiguous.
        weights: The layer's weights.
        layer: Its sizes and its gate; formats are those of the weights.
        backend: "triton", or "torch" for the same numbers without Triton.
        routing: Weights (float32) and expert ids (int32), both of shape (T, K), contiguous, in place of the gate's.
        checked: Refuse NaN, infinities and ids out of range. To know, it waits for the device; without it such input
            gives wrong answers.
        seed: Of a noisy gate's noise; another one for every call in training.
        counts_E: int32 of shape (E,): the number of tokens that chose each expert is added to it, as the update of a
            bias wants it (`moesim_kernels.selection.updated_bias`).
        swiglu_tile: See `expert_phase`.
        down_tile: See `expert_phase`.

    Returns:
        Shape (T, H) in the format of ``x_TH``.

    Raises:
        ConfigError: A layer the kernels do not compute.
        ValueError: An unknown backend; shapes, formats or strides that do not fit; refused numbers. All before
            anything is launched.
        RuntimeError: No Triton to launch with.
    """
    if backend not in ("triton", "torch"):
        raise ValueError(f"backend: expected 'triton' or 'torch', got {backend!r}")
    check_layer(layer)
    check_shapes(x_TH, weights, layer)
    if checked:
        check_numbers(x_TH, weights)
    if routing is not None:
        check_routing(routing, len(x_TH), layer, checked)
    if routing is not None:
        _count(routing[1], counts_E)
    gating = {"seed": seed, "counts_E": counts_E, "checked": checked}
    if backend == "torch":
        weights_TK, ids_TK = routing or gate_tokens_reference(x_TH, layer.gate, weights, layer.top_k, **gating)
        out_TH = expert_phase_reference(x_TH, ids_TK, weights_TK, weights)
        return out_TH + shared_experts_reference(x_TH, weights) if layer.num_shared_experts else out_TH
    weights_TK, ids_TK = routing or gate_tokens(x_TH, layer.gate, weights, layer.top_k, **gating)
    if routing is None:
        weights_TK = _with_gradient(weights_TK, x_TH, layer.gate, weights, ids_TK, seed)
    out_TH = expert_phase(x_TH, ids_TK, weights_TK, weights, swiglu_tile=swiglu_tile, down_tile=down_tile)
    return out_TH + shared_experts(x_TH, weights) if layer.num_shared_experts else out_TH
