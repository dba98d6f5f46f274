"""Compare one MoE layer through Triton's interpreter with torch, as a process: JSON in, JSON out.

``TRITON_INTERPRET=1 python -m moesim_kernels.sources.interpreted < request.json``; the request has
num_experts, top_k, gate, hidden_size, expert_intermediate_size, num_tokens, and seed.
"""

import json
import sys

import torch
from moesim_kernels.ops.layer import LayerWeights, gate_tokens, gate_tokens_reference, moe_layer

from moesim.model import Gate, MoELayer
from moesim.processes import follow_parent

#: largest error: outputs are about 1 and stored in bf16 (8 bits of precision), rounded twice before
_LIMIT = 0.03


def compare(request: dict) -> dict[str, float | bool]:
    """Run the layer both ways.

    Args:
        request: Request with the entries that the module's docstring lists.

    Returns:
        ``choices_equal``: whether both gates chose the same experts; ``max_abs_error`` of the
        outputs, whose largest value is about 1; ``limit``: the largest error allowed.
    """
    layer = MoELayer(
        hidden_size=request["hidden_size"],
        num_experts=request["num_experts"],
        top_k=request["top_k"],
        expert_intermediate_size=request["expert_intermediate_size"],
        gate=Gate.parse(request["gate"]),
    )
    weights = LayerWeights.random(layer, request["seed"])
    # Another seed than the weights', so that tokens and weights are independent.
    generator = torch.Generator().manual_seed(request["seed"] + 1)
    x_TH = torch.randn(request["num_tokens"], layer.hidden_size, generator=generator).bfloat16()
    # Choices are compared apart from outputs: a wrong expert may change an output only slightly.
    _, chosen = gate_tokens(x_TH, layer.gate, weights, layer.top_k)
    _, expected = gate_tokens_reference(x_TH, layer.gate, weights, layer.top_k)
    out = moe_layer(x_TH, weights, layer).float()
    reference = moe_layer(x_TH, weights, layer, "torch").float()
    return {
        "choices_equal": bool(torch.equal(chosen, expected)),
        "limit": _LIMIT,
        "max_abs_error": float((out - reference).abs().max()),
    }


if __name__ == "__main__":
    follow_parent()
    json.dump(compare(json.load(sys.stdin)), sys.stdout)
