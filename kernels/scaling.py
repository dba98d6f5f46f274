"""A candidate's layer made small enough to run here, its gate kept as it is."""

import math
from dataclasses import replace

from moesim.model import MoELayer, Precision


def scaled_down(layer: MoELayer, *, num_experts: int, hidden_size: int, width: int, fmt: str = "bfloat16") -> MoELayer:
    """The layer with fewer and smaller experts.

    Groups stay, and so does a square number of experts; where fewer experts leave no room for top-k, top-k shrinks.
    Shared experts, the capacity limit and differences of width go, pruned experts with them.

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
        experts = math.isqrt(experts)**2
    return replace(
        layer, hidden_size=hidden_size, expert_intermediate_size=width, num_experts=experts,
        top_k=min(layer.top_k, kept * (experts // groups)), num_shared_experts=0, capacity_factor=None,
        precision=Precision(weights=fmt, activations=fmt, dispatch=fmt, combine=fmt),
        gate=replace(layer.gate, precision=fmt))
