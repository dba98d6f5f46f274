"""Whole layers through the kernels against torch, in the formats and with the gates a user chooses."""

import pytest
import torch
from moesim_kernels.layer import (
    LayerWeights,
    expert_phase,
    expert_phase_reference,
    gate_tokens,
    gate_tokens_reference,
    moe_layer,
    moe_layer_reference,
)
from moesim_kernels.tiles import Tile

from moesim.errors import ConfigError
from moesim.model import Gate, MoELayer, Precision

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")

# Outputs have a standard deviation of about 0.3. Kernel and reference round at the same places, so they differ by a
# unit in the last place where float32 sums in another order cross a rounding boundary, once per stored result.
TOLERANCE = {torch.float32: {"rtol": 1e-5, "atol": 1e-5}, torch.float16: {"rtol": 2e-3, "atol": 1e-3},
             torch.bfloat16: {"rtol": 1.6e-2, "atol": 8e-3}}


def _layer(hidden, width, experts, top_k, gate="flat", **options):
    return MoELayer(hidden_size=hidden, expert_intermediate_size=width, num_experts=experts, top_k=top_k,
                    gate=Gate.parse(gate), **options)


def _tokens(tokens, hidden, dtype, device):
    return torch.randn(tokens, hidden, generator=torch.Generator().manual_seed(1)).to(dtype).to(device)


@pytest.mark.parametrize(("tokens", "layer", "dtype"), [
    (0, _layer(32, 32, 8, 2), torch.bfloat16),
    (1, _layer(37, 129, 1, 1), torch.float32),
    (64, _layer(129, 37, 61, 4), torch.bfloat16),
    (64, _layer(64, 48, 8, 8), torch.float16),
    (96, _layer(128, 64, 16, 2), torch.bfloat16),
    (64, _layer(96, 64, 60, 6, "group_limited:5:2"), torch.bfloat16),
    (64, _layer(96, 64, 64, 4, "two_level:16:4"), torch.bfloat16),
    (64, _layer(96, 64, 64, 4, "two_level:8:2"), torch.float32),
    (40, _layer(96, 64, 49, 4, "product_key:2:16"), torch.bfloat16),
], ids=lambda value: str(value.gate) if isinstance(value, MoELayer) else str(value))
def test_equals_reference(device, tokens, layer, dtype):
    weights = LayerWeights.random(layer, seed=0, dtype=dtype, device=device)
    x_TH = _tokens(tokens, layer.hidden_size, dtype, device)
    ids_TK = gate_tokens(x_TH, layer.gate, weights, layer.top_k)[1]
    assert torch.equal(ids_TK, gate_tokens_reference(x_TH, layer.gate, weights, layer.top_k)[1])
    out_TH = moe_layer(x_TH, layer.gate, weights, layer.top_k)
    assert (out_TH.shape, out_TH.dtype) == (x_TH.shape, dtype)
    torch.testing.assert_close(out_TH, moe_layer_reference(x_TH, layer.gate, weights, layer.top_k), **TOLERANCE[dtype])


def test_reference_is_the_textbook_sum(device):
    layer = _layer(24, 12, 6, 2)
    weights = LayerWeights.random(layer, seed=3, dtype=torch.float32, device=device)
    x_TH = _tokens(5, 24, torch.float32, device)
    logits_TE = x_TH.bfloat16().float() @ weights.fine_EH.float().T
    want_TH = torch.zeros_like(x_TH)
    for t, (x_H, logits_E) in enumerate(zip(x_TH, logits_TE, strict=True)):
        chosen = logits_E.topk(2)
        for weight, e in zip(chosen.values.softmax(0), chosen.indices, strict=True):
            gate_I, up_I = (weights.w_gate_up[e] @ x_H).chunk(2)
            want_TH[t] += weight * (weights.w_down[e] @ (torch.nn.functional.silu(gate_I) * up_I))
    torch.testing.assert_close(moe_layer_reference(x_TH, layer.gate, weights, 2), want_TH, rtol=1e-5, atol=1e-5)


def test_sigmoid_gate_and_chosen_tiles(device):
    layer = MoELayer(hidden_size=64, expert_intermediate_size=48, num_experts=8, top_k=2,
                     gate=Gate(score="sigmoid", precision="float32"))
    weights = LayerWeights.random(layer, seed=0, dtype=torch.float32, device=device)
    x_TH = _tokens(100, 64, torch.float32, device)
    out_TH = moe_layer(x_TH, layer.gate, weights, 2,
                       swiglu_tile=Tile(block_m=64, block_n=32, block_k=64),
                       down_tile=Tile(block_m=16, block_n=64, block_k=64))
    torch.testing.assert_close(out_TH, moe_layer_reference(x_TH, layer.gate, weights, 2), rtol=1e-5, atol=1e-5)


def test_one_hot_expert(device):
    layer = _layer(64, 32, 16, 1)
    weights = LayerWeights.random(layer, seed=0, device=device)
    x_TH = _tokens(200, 64, torch.bfloat16, device)
    ids_TK = torch.full((200, 1), 11, dtype=torch.int32, device=device)
    operands = (x_TH, ids_TK, torch.ones(200, 1, device=device), weights)
    torch.testing.assert_close(expert_phase(*operands), expert_phase_reference(*operands), **TOLERANCE[torch.bfloat16])


def test_random_weights_follow_layer_and_seed():
    layer = _layer(16, 12, 6, 2, "two_level:3:2", precision=Precision(weights="float16"))
    weights = LayerWeights.random(layer, seed=5)
    assert (weights.w_gate_up.shape, weights.w_down.shape) == ((6, 24, 16), (6, 16, 12))
    assert (weights.fine_EH.shape, weights.coarse_GH.shape) == ((6, 16), (3, 16))
    assert (weights.w_gate_up.dtype, weights.fine_EH.dtype) == (torch.float16, torch.bfloat16)
    assert torch.equal(weights.w_down, LayerWeights.random(layer, seed=5).w_down)
    assert not torch.equal(weights.w_down, LayerWeights.random(layer, seed=6).w_down)
    assert LayerWeights.random(_layer(16, 12, 6, 2), seed=5).coarse_GH is None


@pytest.mark.parametrize(("options", "message"), [
    ({"gated": False}, "gated = true"), ({"capacity_factor": 1.25}, "no capacity_factor"),
    ({"precision": Precision.named("fp8")}, "got 'float8_e4m3'"),
    ({"gate": "product_key:4:8"}, "gate.query_heads: expected a divisor of top_k = 2"),
    ({"width": (16, 16, 16, 32)}, "expected one width"),
])
def test_refuses_layers_it_does_not_compute(options, message):
    with pytest.raises(ConfigError, match=message):
        LayerWeights.random(_layer(**{"hidden": 16, "width": 16, "experts": 4, "top_k": 2} | options), seed=0)


def test_refuses_gates_it_does_not_compute(device):
    layer = _layer(16, 16, 4, 2)
    weights = LayerWeights.random(layer, seed=0, device=device)
    x_TH = _tokens(3, 16, torch.bfloat16, device)
    with pytest.raises(ValueError, match="needs the groups' keys"):
        moe_layer(x_TH, Gate.parse("two_level:2:1"), weights, 2)
    sigmoid = Gate(kind="two_level", num_expert_groups=2, num_limited_groups=1, score="sigmoid")
    with pytest.raises(ConfigError, match="expected softmax for a two-level gate"):
        moe_layer(x_TH, sigmoid, weights, 2)
    with pytest.raises(ValueError, match="needs its projection and keys"):
        moe_layer(x_TH, Gate.parse("product_key:1:8"), weights, 2)
