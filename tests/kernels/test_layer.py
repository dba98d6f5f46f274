"""Whole layers through the kernels against torch, in the formats and with the gates a
user chooses.
"""

from dataclasses import replace

import pytest
import torch
from moesim_kernels.ops.layer import (
    LayerWeights,
    expert_phase,
    expert_phase_reference,
    gate_tokens,
    gate_tokens_reference,
    moe_layer,
)
from moesim_kernels.ops.plan import make_plan, make_plan_reference
from moesim_kernels.ops.runtime import triton_mode
from moesim_kernels.tiles.tiles import Tile

from moesim.errors import ConfigError
from moesim.model import Gate, MoELayer, Precision

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")

# Outputs have a standard deviation of about 0.3. Kernel and reference round at the same places, so
# they differ by a unit in the last place where float32 sums in another order cross a rounding
# boundary, once per stored result.
TOLERANCE = {
    torch.float32: {"rtol": 1e-5, "atol": 1e-5},
    torch.float16: {"rtol": 2e-3, "atol": 1e-3},
    torch.bfloat16: {"rtol": 1.6e-2, "atol": 8e-3},
}


def _layer(hidden, width, experts, top_k, gate="flat", **options):
    return MoELayer(
        hidden_size=hidden,
        expert_intermediate_size=width,
        num_experts=experts,
        top_k=top_k,
        gate=Gate.parse(gate),
        **options,
    )


def _tokens(tokens, hidden, dtype, device):
    return (
        torch.randn(tokens, hidden, generator=torch.Generator().manual_seed(1)).to(dtype).to(device)
    )


@pytest.mark.parametrize(
    ("tokens", "layer", "dtype"),
    [
        (0, _layer(32, 32, 8, 2), torch.bfloat16),
        (1, _layer(37, 129, 1, 1), torch.float32),
        (64, _layer(129, 37, 61, 4), torch.bfloat16),
        (64, _layer(64, 48, 8, 8), torch.float16),
        (96, _layer(128, 64, 16, 2), torch.bfloat16),
        (64, _layer(96, 64, 60, 6, "group_limited:5:2"), torch.bfloat16),
        (64, _layer(96, 64, 64, 4, "two_level:16:4"), torch.bfloat16),
        (64, _layer(96, 64, 64, 4, "two_level:8:2"), torch.float32),
        (40, _layer(96, 64, 49, 4, "product_key:2:16"), torch.bfloat16),
        (33, _layer(96, 40, 8, 2, num_shared_experts=2), torch.bfloat16),
        (1, _layer(64, 33, 5, 3, num_shared_experts=1), torch.float32),
    ],
    ids=lambda value: str(value.gate) if isinstance(value, MoELayer) else str(value),
)
def test_equals_reference(device, tokens, layer, dtype):
    weights = LayerWeights.random(layer, seed=0, dtype=dtype, device=device)
    x_TH = _tokens(tokens, layer.hidden_size, dtype, device)
    ids_TK = gate_tokens(x_TH, layer.gate, weights, layer.top_k)[1]
    assert torch.equal(ids_TK, gate_tokens_reference(x_TH, layer.gate, weights, layer.top_k)[1])
    out_TH = moe_layer(x_TH, weights, layer)
    assert (out_TH.shape, out_TH.dtype) == (x_TH.shape, dtype)
    torch.testing.assert_close(out_TH, moe_layer(x_TH, weights, layer, "torch"), **TOLERANCE[dtype])


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
    torch.testing.assert_close(
        moe_layer(x_TH, weights, layer, "torch"), want_TH, rtol=1e-5, atol=1e-5
    )


def test_sigmoid_gate_and_chosen_tiles(device):
    layer = MoELayer(
        hidden_size=64,
        expert_intermediate_size=48,
        num_experts=8,
        top_k=2,
        gate=Gate(score="sigmoid", precision="float32"),
    )
    weights = LayerWeights.random(layer, seed=0, dtype=torch.float32, device=device)
    x_TH = _tokens(100, 64, torch.float32, device)
    out_TH = moe_layer(
        x_TH,
        weights,
        layer,
        swiglu_tile=Tile(block_m=64, block_n=32, block_k=64),
        down_tile=Tile(block_m=16, block_n=64, block_k=64),
    )
    torch.testing.assert_close(
        out_TH, moe_layer(x_TH, weights, layer, "torch"), rtol=1e-5, atol=1e-5
    )


def test_one_hot_expert(device):
    layer = _layer(64, 32, 16, 1)
    weights = LayerWeights.random(layer, seed=0, device=device)
    x_TH = _tokens(200, 64, torch.bfloat16, device)
    ids_TK = torch.full((200, 1), 11, dtype=torch.int32, device=device)
    operands = (x_TH, ids_TK, torch.ones(200, 1, device=device), weights)
    torch.testing.assert_close(
        expert_phase(*operands), expert_phase_reference(*operands), **TOLERANCE[torch.bfloat16]
    )


def test_random_weights_follow_layer_and_seed():
    layer = _layer(16, 12, 6, 2, "two_level:3:2", precision=Precision(weights="float16"))
    weights = LayerWeights.random(layer, seed=5)
    assert (weights.w_gate_up.shape, weights.w_down.shape) == ((6, 24, 16), (6, 16, 12))
    assert (weights.fine_EH.shape, weights.coarse_GH.shape) == ((6, 16), (3, 16))
    assert (weights.w_gate_up.dtype, weights.fine_EH.dtype) == (torch.float16, torch.bfloat16)
    assert torch.equal(weights.w_down, LayerWeights.random(layer, seed=5).w_down)
    assert not torch.equal(weights.w_down, LayerWeights.random(layer, seed=6).w_down)
    assert LayerWeights.random(_layer(16, 12, 6, 2), seed=5).coarse_GH is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gated": False}, "gated = true"),
        ({"capacity_factor": 1.25}, "no capacity_factor"),
        ({"precision": Precision.named("int8")}, "got 'int8'"),
        ({"gate": "low_rank"}, "gate.kind: expected flat, group_limited, two_level, product_key"),
        ({"gate": "product_key:4:8"}, "gate.query_heads: expected a divisor of top_k = 2"),
        ({"width": (16, 16, 16, 32)}, "expected one width"),
    ],
)
def test_refuses_layers_it_does_not_compute(options, message):
    with pytest.raises(ConfigError, match=message):
        LayerWeights.random(
            _layer(**{"hidden": 16, "width": 16, "experts": 4, "top_k": 2} | options), seed=0
        )


@pytest.mark.parametrize("gate", ["flat", "group_limited:4:2", "two_level:4:2"])
@pytest.mark.parametrize(("tokens", "hidden", "width"), [(911, 96, 65), (3, 1023, 130)])
def test_float32_is_close(device, gate, tokens, hidden, width):
    layer = _layer(hidden, width, 12, 3, gate, num_shared_experts=1)
    weights = LayerWeights.random(layer, seed=0, dtype=torch.float32, device=device)
    x_TH = _tokens(tokens, hidden, torch.float32, device)
    want_TH = moe_layer(x_TH, weights, layer, "torch")
    assert (moe_layer(x_TH, weights, layer) - want_TH).abs().max() <= 2e-6 * want_TH.abs().max()


def test_shared_experts_are_added_once_to_each_token(device):
    layer = _layer(24, 12, 6, 2, num_shared_experts=2)
    weights = LayerWeights.random(layer, seed=3, dtype=torch.float32, device=device)
    x_TH = _tokens(5, 24, torch.float32, device)
    gate_TI, up_TI = (x_TH @ weights.shared_gate_up[0].T).chunk(2, dim=1)
    shared_TH = (torch.nn.functional.silu(gate_TI) * up_TI) @ weights.shared_down[0].T
    routed_TH = moe_layer(
        x_TH,
        replace(weights, shared_gate_up=None, shared_down=None),
        replace(layer, num_shared_experts=0),
        "torch",
    )
    torch.testing.assert_close(
        moe_layer(x_TH, weights, layer, "torch"), routed_TH + shared_TH, rtol=1e-5, atol=1e-5
    )


def test_a_routing_of_ones_own(device):
    layer = _layer(32, 16, 6, 2)
    weights = LayerWeights.random(layer, seed=0, dtype=torch.float32, device=device)
    x_TH = _tokens(9, 32, torch.float32, device)
    routing = gate_tokens_reference(x_TH, layer.gate, weights, 2)
    for backend in ("triton", "torch"):
        torch.testing.assert_close(
            moe_layer(x_TH, weights, layer, backend, routing=routing),
            moe_layer(x_TH, weights, layer, backend),
        )


NAN = float("nan")


@pytest.mark.parametrize("backend", ["triton", "torch"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda x, w, r: (x.double(), w, r),
            "x_TH: expected bfloat16, float16 or float32, got torch.float64",
        ),
        (lambda x, w, r: (x.to(torch.float8_e4m3fn), w, r), "x_TH: expected bfloat16"),
        (lambda x, w, r: (x[:, :8], w, r), r"x_TH: expected shape \(T, 16\)"),
        (lambda x, w, r: (x.T.contiguous().T, w, r), "x_TH: expected a contiguous tensor"),
        (
            lambda x, w, r: (x.half(), w, r),
            "weights.w_gate_up: expected torch.float16 as x_TH, got torch.float32",
        ),
        (
            lambda x, w, r: (x * NAN, w, r),
            "x_TH: expected finite numbers, got NaN or infinity for token 0",
        ),
        (lambda x, w, r: (x / 0, w, r), "x_TH: expected finite numbers"),
        (
            lambda x, w, r: (x, replace(w, fine_EH=w.fine_EH * NAN), r),
            "weights.fine_EH: expected finite numbers",
        ),
        (
            lambda x, w, r: (x, replace(w, w_down=w.w_down[:3]), r),
            r"weights.w_down: expected shape \(4, 16, 8\)",
        ),
        (
            lambda x, w, r: (x, replace(w, w_down=w.w_down.mT.contiguous().mT), r),
            "weights.w_down: expected a contiguous",
        ),
        (
            lambda x, w, r: (x, replace(w, w_down=w.w_down.half()), r),
            "weights.w_down: expected torch.float32 as x_TH",
        ),
        (
            lambda x, w, r: (x, replace(w, coarse_GH=w.fine_EH), r),
            "weights.coarse_GH: expected shape None",
        ),
        (lambda x, w, r: (x, w, (r[0], r[1] + 3)), "ids_TK: expected ids from 0 to 3, got"),
        (lambda x, w, r: (x, w, (r[0], r[1] - 4)), "ids_TK: expected ids from 0 to 3, got -"),
        (
            lambda x, w, r: (x, w, (r[0], r[1].long())),
            "routing: expected contiguous ids of torch.int32",
        ),
        (
            lambda x, w, r: (x, w, (r[0][:2], r[1])),
            "routing: expected contiguous weights of torch.float32",
        ),
        (
            lambda x, w, r: (x, w, (r[0] * NAN, r[1])),
            "routing: expected finite weights, .* for token 0",
        ),
    ],
)
def test_refuses_bad_input_before_a_launch(device, monkeypatch, backend, change, message):
    layer = _layer(16, 8, 4, 2)
    weights = LayerWeights.random(layer, seed=0, dtype=torch.float32, device=device)
    x_TH = _tokens(3, 16, torch.float32, device)
    routing = gate_tokens_reference(x_TH, layer.gate, weights, 2)
    monkeypatch.setattr("moesim_kernels.ops.layer.gate_tokens", None)
    monkeypatch.setattr("moesim_kernels.ops.layer.expert_phase", None)
    x_TH, weights, routing = change(x_TH, weights, routing)
    with pytest.raises(ValueError, match=message):
        moe_layer(x_TH, weights, layer, backend, routing=routing)


def test_plans_refuse_experts_that_do_not_exist():
    for make in (make_plan_reference, *([make_plan] if triton_mode() == "interpreter" else [])):
        for bad in (-1, 4):
            with pytest.raises(ValueError, match=f"ids_TK: expected ids from 0 to 3, got {bad}"):
                make(torch.tensor([[0, bad]], dtype=torch.int32), 4, 16)


def test_refuses_gates_it_does_not_compute(device):
    layer = _layer(16, 16, 4, 2)
    weights = LayerWeights.random(layer, seed=0, device=device)
    x_TH = _tokens(3, 16, torch.bfloat16, device)
    with pytest.raises(ValueError, match="backend: expected 'triton' or 'torch', got 'cuda'"):
        moe_layer(x_TH, weights, layer, "cuda")
    for gate, message in (
        ("two_level:2:1", r"weights.coarse_GH: expected shape \(2, 16\)"),
        ("product_key:1:8", r"weights.fine_EH: expected shape \(0, 16\)"),
    ):
        with pytest.raises(ValueError, match=message):
            moe_layer(x_TH, weights, replace(layer, gate=Gate.parse(gate)))
        with pytest.raises(ValueError, match="needs"):
            gate_tokens(x_TH, Gate.parse(gate), weights, 2)
    sigmoid = Gate(kind="two_level", num_expert_groups=2, num_limited_groups=1, score="sigmoid")
    with pytest.raises(ConfigError, match="expected softmax for a two-level gate"):
        moe_layer(x_TH, weights, replace(layer, gate=sigmoid))


@pytest.mark.parametrize(
    "gate",
    [
        "flat+sigmoid+bias",
        "flat+noisy_top_k:0.7+temperature:1.5",
        "group_limited:4:2+sigmoid+noisy_top_k:0.5+bias",
    ],
)
def test_biased_and_noisy_gates(device, gate):
    layer = _layer(48, 32, 16, 3, gate)
    weights = LayerWeights.random(layer, seed=0, dtype=torch.float32, device=device)
    counts_E = torch.zeros(16, dtype=torch.int32, device=device)
    x_TH = _tokens(40, 48, torch.float32, device)
    if weights.bias_E is not None:
        weights = replace(weights, bias_E=torch.linspace(-0.3, 0.3, 16, device=device))
    chosen = [
        call(x_TH, layer.gate, weights, 3, seed=4)[1]
        for call in (gate_tokens, gate_tokens_reference)
    ]
    assert torch.equal(*chosen)
    noisy = not torch.equal(
        chosen[0], gate_tokens_reference(x_TH, layer.gate, weights, 3, seed=5)[1]
    )
    assert noisy == (layer.gate.noise_std > 0)
    out_TH = moe_layer(x_TH, weights, layer, seed=4, counts_E=counts_E)
    torch.testing.assert_close(
        out_TH, moe_layer(x_TH, weights, layer, "torch", seed=4), rtol=1e-5, atol=1e-5
    )
    assert torch.equal(counts_E, torch.bincount(chosen[0].flatten(), minlength=16).int())
    # Trained weights are those of the router.
    x_TH.requires_grad_()
    torch.testing.assert_close(
        moe_layer(x_TH, weights, layer, seed=4), out_TH, rtol=1e-5, atol=1e-5
    )


def test_counts_of_gates_without_a_fused_histogram(device):
    layer = _layer(48, 32, 16, 4, "two_level:4:2")
    weights = LayerWeights.random(layer, seed=0, dtype=torch.float32, device=device)
    x_TH, counts_E = (
        _tokens(40, 48, torch.float32, device),
        torch.zeros(16, dtype=torch.int32, device=device),
    )
    ids_TK = gate_tokens(x_TH, layer.gate, weights, 4, counts_E=counts_E)[1]
    assert torch.equal(counts_E, torch.bincount(ids_TK.flatten(), minlength=16).int())


@pytest.mark.parametrize(
    ("gate", "message"),
    [
        ("flat+expert_choice", "expected top_k or noisy_top_k of every token"),
        ("flat+share_tokens:2", "pass its choices"),
        ("two_level:2:2+local", "expected top_k"),
        ("two_level:2:1+noisy_top_k:1", "no noise, bias or temperature"),
        ("product_key:1:8+bias", "no noise, bias or temperature for a product-key gate"),
    ],
)
def test_refuses_selections_it_does_not_compute(device, gate, message):
    layer = _layer(16, 16, 4, 2, gate)
    weights = LayerWeights.random(layer, seed=0, device=device)
    for call in (gate_tokens, gate_tokens_reference):
        with pytest.raises(ConfigError, match=message):
            call(_tokens(4, 16, torch.bfloat16, device), layer.gate, weights, 2)


def test_nan_logits_are_refused_where_that_is_checked(device):
    layer = _layer(16, 8, 4, 2)
    weights = LayerWeights.random(layer, seed=0, dtype=torch.float32, device=device)
    weights = replace(weights, fine_EH=weights.fine_EH * NAN)
    for call in (gate_tokens, gate_tokens_reference):
        with pytest.raises(ValueError, match="logits_TE: expected numbers, got NaN"):
            call(_tokens(3, 16, torch.float32, device), layer.gate, weights, 2, checked=True)
        assert (
            call(_tokens(3, 16, torch.float32, device), layer.gate, weights, 2)[1].tolist()
            == [[0, 1]] * 3
        )
