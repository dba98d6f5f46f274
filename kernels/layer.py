"""One MoE layer through the kernels, and the same layer in torch.

Routed experts with SwiGLU, no token dropped. Shared experts are dense GEMMs and not part of it; neither are capacity
limits, plain two-matrix experts or 8-bit formats: `LayerWeights.random` refuses what the kernels do not compute.
"""

import math
from dataclasses import dataclass

import torch
from moesim_kernels.grouped_down import combine, combine_reference, grouped_down, grouped_down_reference
from moesim_kernels.grouped_linear import gate_logits
from moesim_kernels.grouped_swiglu import grouped_swiglu, grouped_swiglu_reference
from moesim_kernels.hier_gate import two_level_gate, two_level_gate_reference
from moesim_kernels.plan import make_plan, make_plan_reference
from moesim_kernels.product_key import product_key_gate, product_key_gate_reference
from moesim_kernels.router import route, route_reference
from moesim_kernels.tiles import Tile, tile_config

from moesim.errors import ConfigError
from moesim.model import Gate, MoELayer

_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


def torch_dtype(name: str) -> torch.dtype:
    """The torch format of this name.

    Raises:
        ConfigError: A format the kernels do not compute in.
    """
    if name not in _DTYPES:
        raise ConfigError(f"precision: expected one of {', '.join(_DTYPES)} for the Triton kernels, got {name!r}")
    return _DTYPES[name]


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerWeights:
    """Weights of one layer's gate and routed experts.

    Attributes:
        fine_EH: Keys of the experts, in the gate's format, shape (E, H).
        coarse_GH: Keys of the groups of a two-level gate, shape (G, H); None for other gates.
        query_QH: Projection of a product-key gate, whose fine_EH is empty, shape (heads x query_size, H); else None.
        keys_2Sq: Its keys, shape (2, sqrt(E), query_size / 2); else None.
        w_gate_up: Gate rows, then up rows of every expert, shape (E, 2I, H).
        w_down: Down projections, shape (E, H, I).
    """

    fine_EH: torch.Tensor
    coarse_GH: torch.Tensor | None
    w_gate_up: torch.Tensor
    w_down: torch.Tensor
    query_QH: torch.Tensor | None = None
    keys_2Sq: torch.Tensor | None = None

    @classmethod
    def random(cls, layer: MoELayer, seed: int, dtype: torch.dtype | None = None,
               device: torch.device | str = "cpu") -> "LayerWeights":
        """Normal weights that keep activations near 1: standard deviation 1 / sqrt(inputs).

        Args:
            layer: Sizes, gate and formats.
            seed: Of a generator on ``device``; the same numbers on every machine with the same kind of device.
            dtype: Format of the experts; by default the layer's.
            device: Where the weights live.

        Raises:
            ConfigError: A layer the kernels do not compute: ungated, with a capacity or experts of different widths, a
                two-level or product-key gate with sigmoid, heads that do not divide top_k, or an 8-bit format.
        """
        if not layer.gated or layer.capacity_factor is not None:
            raise ConfigError("layer: expected gated = true and no capacity_factor for the Triton kernels, got "
                              f"gated = {layer.gated}, capacity_factor = {layer.capacity_factor}")
        if not isinstance(layer.expert_intermediate_size, int):
            raise ConfigError("layer.expert_intermediate_size: expected one width for the Triton kernels, got several")
        _check_gate(layer.gate, layer.top_k)
        dtype, gate_dtype = dtype or torch_dtype(layer.precision.weights), torch_dtype(layer.gate.precision)
        generator = torch.Generator(device).manual_seed(seed)

        def normal(*shape: int, dtype: torch.dtype) -> torch.Tensor:
            return torch.empty(shape, dtype=dtype, device=device).normal_(0.0, shape[-1]**-0.5, generator=generator)

        experts, hidden, width = layer.num_experts, layer.hidden_size, layer.expert_intermediate_size
        two_level, product_key = (layer.gate.kind == kind for kind in ("two_level", "product_key"))
        queries, side = layer.gate.query_heads * layer.gate.query_size, math.isqrt(experts)
        return cls(
            fine_EH=normal(0 if product_key else experts, hidden, dtype=gate_dtype),
            coarse_GH=normal(layer.gate.num_expert_groups, hidden, dtype=gate_dtype) if two_level else None,
            w_gate_up=normal(experts, 2 * width, hidden, dtype=dtype),
            w_down=normal(experts, hidden, width, dtype=dtype),
            query_QH=normal(queries, hidden, dtype=gate_dtype) if product_key else None,
            keys_2Sq=normal(2, side, layer.gate.query_size // 2, dtype=gate_dtype) if product_key else None)


def _check_gate(gate: Gate, top_k: int) -> None:
    if gate.kind in ("two_level", "product_key") and gate.score != "softmax":
        raise ConfigError(f"gate.score: expected softmax for a {gate.kind.replace('_', '-')} gate, got {gate.score!r}")
    if gate.kind == "product_key" and top_k % gate.query_heads:
        raise ConfigError(f"gate.query_heads: expected a divisor of top_k = {top_k} for the Triton kernels, "
                          f"got {gate.query_heads}")


def _groups_keys(weights: LayerWeights) -> torch.Tensor:
    if weights.coarse_GH is None:
        raise ValueError("weights.coarse_GH: a two-level gate needs the groups' keys")
    return weights.coarse_GH


def _product_keys(weights: LayerWeights) -> tuple[torch.Tensor, torch.Tensor]:
    if weights.query_QH is None or weights.keys_2Sq is None:
        raise ValueError("weights.query_QH: a product-key gate needs its projection and keys")
    return weights.query_QH, weights.keys_2Sq


def gate_tokens(x_TH: torch.Tensor, gate: Gate, weights: LayerWeights,
                top_k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Choose experts with any of the four gates, in the format of the gate's keys.

    Args:
        x_TH: Tokens of shape (T, H), contiguous.
        gate: Kind, groups and score.
        weights: The gate's keys.
        top_k: Experts a token uses.

    Returns:
        Weights, float32 of shape (T, K); expert ids, int32 of shape (T, K).

    Raises:
        ConfigError: A two-level or product-key gate with sigmoid, or heads that do not divide top_k.
        ValueError: Shapes or numbers that do not fit each other.
        RuntimeError: No Triton to launch with.
    """
    _check_gate(gate, top_k)
    x_TH = x_TH.to(weights.fine_EH.dtype)
    if gate.kind == "two_level":
        return two_level_gate(x_TH, _groups_keys(weights), weights.fine_EH, top_k, gate.num_limited_groups)
    if gate.kind == "product_key":
        return product_key_gate(x_TH, *_product_keys(weights), gate.query_heads, top_k)
    return route(gate_logits(x_TH, weights.fine_EH), top_k, gate.score, gate.num_expert_groups, gate.num_limited_groups)


def gate_tokens_reference(x_TH: torch.Tensor, gate: Gate, weights: LayerWeights,
                          top_k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """`gate_tokens` in torch."""
    _check_gate(gate, top_k)
    x_TH = x_TH.to(weights.fine_EH.dtype)
    if gate.kind == "two_level":
        return two_level_gate_reference(x_TH, _groups_keys(weights), weights.fine_EH, top_k, gate.num_limited_groups)
    if gate.kind == "product_key":
        return product_key_gate_reference(x_TH, *_product_keys(weights), gate.query_heads, top_k)
    logits_TE = x_TH.float() @ weights.fine_EH.float().T
    return route_reference(logits_TE, top_k, gate.score, gate.num_expert_groups, gate.num_limited_groups)


def expert_phase(x_TH: torch.Tensor, ids_TK: torch.Tensor, weights_TK: torch.Tensor, weights: LayerWeights, *,
                 swiglu_tile: Tile | None = None, down_tile: Tile | None = None) -> torch.Tensor:
    """Everything after the gate: plan, both grouped GEMMs, combine.

    Args:
        x_TH: Tokens in the experts' format, shape (T, H), contiguous.
        ids_TK: Expert ids, int32 of shape (T, K), contiguous.
        weights_TK: Router weights, float32 of shape (T, K), contiguous.
        weights: The experts' weights.
        swiglu_tile: Tile of the first GEMM, by default from the mean load; its block_m is the plan's.
        down_tile: Tile of the second; its block_m gives way to the plan's.

    Returns:
        Shape (T, H) in the format of ``x_TH``.

    Raises:
        ValueError: Shapes or formats that do not fit each other.
        RuntimeError: No Triton to launch with.
    """
    num_experts = weights.w_gate_up.shape[0]
    block_m = (swiglu_tile or tile_config(ids_TK.numel() / num_experts, 1)).block_m
    plan = make_plan(ids_TK, num_experts, block_m)
    act_PI = grouped_swiglu(x_TH, weights.w_gate_up, plan, swiglu_tile)
    return combine(grouped_down(act_PI, weights.w_down, plan, down_tile), weights_TK)


def moe_layer(x_TH: torch.Tensor, gate: Gate, weights: LayerWeights, top_k: int, *,
              swiglu_tile: Tile | None = None, down_tile: Tile | None = None) -> torch.Tensor:
    """One MoE layer: gate, plan, experts, combine.

    Args:
        x_TH: Tokens in the experts' format, shape (T, H), contiguous.
        gate: Kind, groups and score.
        weights: The layer's weights.
        top_k: Experts a token uses.
        swiglu_tile: See `expert_phase`.
        down_tile: See `expert_phase`.

    Returns:
        Shape (T, H) in the format of ``x_TH``.

    Raises:
        ConfigError: See `gate_tokens`.
        ValueError: Shapes or formats that do not fit each other.
        RuntimeError: No Triton to launch with.
    """
    weights_TK, ids_TK = gate_tokens(x_TH, gate, weights, top_k)
    return expert_phase(x_TH, ids_TK, weights_TK, weights, swiglu_tile=swiglu_tile, down_tile=down_tile)


def expert_phase_reference(x_TH: torch.Tensor, ids_TK: torch.Tensor, weights_TK: torch.Tensor,
                           weights: LayerWeights) -> torch.Tensor:
    """`expert_phase` in torch: float32 inside, rounded to the format of ``x_TH`` where the kernels store."""
    plan = make_plan_reference(ids_TK, weights.w_gate_up.shape[0], block_m=16)
    act_PI = grouped_swiglu_reference(x_TH, weights.w_gate_up, plan)
    return combine_reference(grouped_down_reference(act_PI, weights.w_down, plan), weights_TK)


def moe_layer_reference(x_TH: torch.Tensor, gate: Gate, weights: LayerWeights, top_k: int) -> torch.Tensor:
    """`moe_layer` in torch."""
    weights_TK, ids_TK = gate_tokens_reference(x_TH, gate, weights, top_k)
    return expert_phase_reference(x_TH, ids_TK, weights_TK, weights)
