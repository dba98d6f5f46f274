"""Make a candidate's layer small enough to run here, with the kind and groups of its gate kept."""

import math
from dataclasses import replace

from moesim.model import Gate, MoELayer, Precision


def scaled_down(
    layer: MoELayer, *, num_experts: int, hidden_size: int, width: int, fmt: str = "bfloat16"
) -> MoELayer:
    """Return the layer with fewer and smaller experts.

    Groups stay, and so does a square number of experts; if fewer experts leave no room for top-k,
    top-k shrinks. Shared experts, the capacity limit, and differences of width are dropped, and
    pruned experts with them; so are ways of selecting, balancing, and sharing that the kernels here
    do not know.

    Args:
        layer: Layer of the candidate.
        num_experts: Largest number of experts; a multiple of the gate's groups is used.
        hidden_size: Hidden size of the small layer.
        width: Width of its experts.
        fmt: Number format of weights, tokens, and gate.
    """
    groups, kept = layer.gate.num_expert_groups, layer.gate.num_limited_groups
    # Every group keeps the same number of experts, and at least one.
    experts = max(min(layer.num_experts, num_experts) // groups, 1) * groups
    if layer.gate.kind == "product_key":
        # A product-key gate needs a square number of experts.
        experts = math.isqrt(experts) ** 2
    return replace(
        layer,
        hidden_size=hidden_size,
        expert_intermediate_size=width,
        num_experts=experts,
        # A token can only use experts of the groups it keeps.
        top_k=min(layer.top_k, kept * (experts // groups)),
        num_shared_experts=0,
        capacity_factor=None,
        overflow="drop",
        padded=False,
        precision=Precision(weights=fmt, activations=fmt, dispatch=fmt, combine=fmt),
        gate=plain_gate(replace(layer.gate, precision=fmt)),
    )


def plain_gate(gate: Gate) -> Gate:
    """Return the gate in the form the kernels here know: every token decides alone, by top-k."""
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
