"""Choose experts with any of the four gates of a layer, and with their references.

flat, group-limited:  logits in parts -> router        # gate_logits.py, router.py
                      or both at once for many tokens  # fused_gate.py
two-level:            coarse logits -> router -> logits of kept groups -> router
product key:          queries -> logits of both halves -> router -> pairs
"""

import torch
from moesim_kernels.ops.counting_sort import Segments, new_segments
from moesim_kernels.ops.fused_gate import fused_gate, fuses
from moesim_kernels.ops.gate_logits import gate_parts
from moesim_kernels.ops.hier_gate import two_level_gate, two_level_gate_reference
from moesim_kernels.ops.product_key import product_key_gate, product_key_gate_reference
from moesim_kernels.ops.router import route_parts, route_reference
from moesim_kernels.ops.router_options import Options
from moesim_kernels.ops.weights import LayerWeights, check_gate, check_selection

from moesim.model import Gate


def _groups_keys(weights: LayerWeights) -> torch.Tensor:
    if weights.coarse_GH is None:
        raise ValueError("weights.coarse_GH: a two-level gate needs the groups' keys")
    return weights.coarse_GH


def _product_keys(weights: LayerWeights) -> tuple[torch.Tensor, torch.Tensor]:
    if weights.query_QH is None or weights.keys_2Sq is None:
        raise ValueError("weights.query_QH: a product-key gate needs its projection and keys")
    return weights.query_QH, weights.keys_2Sq


def _options(
    gate: Gate,
    weights: LayerWeights,
    seed: int,
    counts_E: torch.Tensor | None,
    missing_E: torch.Tensor | None,
    checked: bool,
    watch: torch.Tensor | None = None,
) -> Options:
    check_selection(gate)
    if missing_E is not None and gate.kind not in ("flat", "group_limited"):
        raise ValueError(
            "missing_E: expected a flat or group-limited gate, whose tokens see all experts, got "
            f"{gate.kind!r}"
        )
    if gate.balancing == "bias" and weights.bias_E is None:
        raise ValueError("weights.bias_E: a gate with a bias needs it")
    return Options(
        bias_E=weights.bias_E if gate.balancing == "bias" else None,
        noise_std=gate.noise_std,
        seed=seed,
        temperature=gate.temperature,
        counts_E=counts_E,
        missing_E=missing_E,
        checked=checked,
        watch=watch,
    )


def gate_tokens(
    x_TH: torch.Tensor,
    gate: Gate,
    weights: LayerWeights,
    top_k: int,
    *,
    seed: int = 0,
    counts_E: torch.Tensor | None = None,
    missing_E: torch.Tensor | None = None,
    segments: Segments | None = None,
    checked: bool = False,
    watch: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Choose experts with any of the four gates, in the format of the gate's keys.

    Args:
        x_TH: Tokens of shape (T, H), contiguous.
        gate: Kind, groups, score, noise, bias, and temperature of the gate.
        weights: Weights that hold the gate's keys and its bias.
        top_k: Number of experts each token uses.
        seed: Seed of the noise.
        counts_E: int32 of shape (E,); the number of tokens that chose each expert is added.
        missing_E: bool of shape (E,); experts that get no token in this call (see
            `moesim_kernels.ops.router_options.missing_experts`). Flat and group-limited gates only.
        segments: Memory from `plan_segments` in which the choices are counted for a plan.
        checked: Whether NaN logits are refused; on a GPU this check waits for the device.
        watch: Memory where the first token with logits that are not finite is noted
            (`moesim_kernels.ops.watch`); None for no watch.

    Returns:
        Weights, float32 of shape (T, K); expert ids, int32 of shape (T, K).

    Raises:
        ConfigError: A two-level or product-key gate uses sigmoid, its heads do not divide top_k, or
            the kernels do not compute its way of choosing.
        ValueError: Shapes or numbers do not fit each other.
        RuntimeError: Triton cannot launch kernels here.
    """
    check_gate(gate, top_k)
    options = _options(gate, weights, seed, counts_E, missing_E, checked, watch)
    # The gate may have a wider format than the experts; its keys decide.
    x_TH = x_TH.to(weights.fine_EH.dtype)
    if gate.kind in ("flat", "group_limited"):
        rule = (top_k, gate.score, gate.num_expert_groups, gate.num_limited_groups, options)
        if not checked and fuses(x_TH, len(weights.fine_EH), gate.num_expert_groups):
            return fused_gate(x_TH, weights.fine_EH, *rule, segments)
        return route_parts(gate_parts(x_TH, weights.fine_EH), *rule, segments=segments)
    if gate.kind == "two_level":
        chosen = two_level_gate(
            x_TH, _groups_keys(weights), weights.fine_EH, top_k, gate.num_limited_groups, watch
        )
    else:
        chosen = product_key_gate(x_TH, *_product_keys(weights), gate.query_heads, top_k, watch)
    # The flat kernel counts on its own; the choices of composed gates are counted here.
    count(chosen[1], counts_E)
    return chosen


def plan_segments(
    num_tokens: int, gate: Gate, num_experts: int, top_k: int, device: torch.device
) -> Segments | None:
    """Return memory in which `gate_tokens` counts its choices for a plan, None if it does not."""
    if gate.kind not in ("flat", "group_limited"):
        return None
    return new_segments(num_tokens, top_k, num_experts, device)


def count(ids_TK: torch.Tensor, counts_E: torch.Tensor | None) -> None:
    """Add the choices to a histogram without a wait: torch.bincount would ask the device for the
    highest id.
    """
    if counts_E is not None:
        counts_E.index_add_(0, ids_TK.flatten(), torch.ones_like(ids_TK).flatten())


def gate_tokens_reference(
    x_TH: torch.Tensor,
    gate: Gate,
    weights: LayerWeights,
    top_k: int,
    *,
    seed: int = 0,
    counts_E: torch.Tensor | None = None,
    missing_E: torch.Tensor | None = None,
    checked: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute `gate_tokens` in torch."""
    check_gate(gate, top_k)
    options = _options(gate, weights, seed, counts_E, missing_E, checked)
    x_TH = x_TH.to(weights.fine_EH.dtype)
    if gate.kind in ("flat", "group_limited"):
        logits_TE = x_TH.float() @ weights.fine_EH.float().T
        return route_reference(
            logits_TE, top_k, gate.score, gate.num_expert_groups, gate.num_limited_groups, options
        )
    if gate.kind == "two_level":
        chosen = two_level_gate_reference(
            x_TH, _groups_keys(weights), weights.fine_EH, top_k, gate.num_limited_groups
        )
    else:
        chosen = product_key_gate_reference(x_TH, *_product_keys(weights), gate.query_heads, top_k)
    count(chosen[1], counts_E)
    return chosen
