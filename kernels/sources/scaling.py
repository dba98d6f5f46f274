"""A candidate's layer made small enough to run here, the kind and groups of its gate kept."""

import math
from dataclasses import replace

from moesim.model import Gate, MoELayer, Precision


def scaled_down(
    layer: MoELayer, *, num_experts: int, hidden_size: int, width: int, fmt: str = "bfloat16"
) -> MoELayer:
    """The layer with fewer and smaller experts.

    Groups stay, and so does a square number of experts; where fewer experts leave no room for
    top-k, top-k shrinks. Shared experts, the capacity limit and differences of width go, pruned
    experts with them; so do ways of selecting, balancing and sharing that the kernels here do not
    know.

    Args:
        layer: The candidate's.
        num_experts: Experts at most; a multiple of the gate's groups is used.
        hidden_size: Of the small layer.
        width: Of its experts.
        fmt: Format of weights, tokens and gate.
    """
    groups, kept = layer.gate.num_expert_groups, layer.gate.num_limited_groups
    experts = max(min(layer.num_experts, num_experts) // groups, 1) * groups
    if layer.gate.kind == "product_key":
        experts = math.isqrt(experts) ** 2
    return replace(
        layer,
        hidden_size=hidden_size,
        expert_intermediate_size=width,
        num_experts=experts,
        top_k=min(layer.top_k, kept * (experts // groups)),
        num_shared_experts=0,
        capacity_factor=None,
        overflow="drop",
        padded=False,
        precision=Precision(weights=fmt, activations=fmt, dispatch=fmt, combine=fmt),
        gate=plain_gate(replace(layer.gate, precision=fmt)),
    )


def plain_gate(gate: Gate) -> Gate:
    """The gate as the kernels here know it: every token decides for itself, by top-k."""
    return replace(
        gate,
        selection="top_k",
        noise_std=0.0,
        temperature=1.0,
        balancing="none",
        local_routers=False,
        share_tokens=1,
        share_layers=1,
    )
