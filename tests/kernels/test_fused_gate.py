"""Logits and selection in one kernel, experts that are missing, and choices counted for a plan."""

import pytest
import torch
from moesim_kernels.ops import fused_gate as fused_module
from moesim_kernels.ops.counting_sort import new_segments
from moesim_kernels.ops.fused_gate import fused_gate, fuses
from moesim_kernels.ops.gate_logits import gate_logits, gate_parts
from moesim_kernels.ops.layer import LayerWeights, moe_layer
from moesim_kernels.ops.plan import make_plan, make_plan_reference
from moesim_kernels.ops.router import route, route_parts, route_reference
from moesim_kernels.ops.router_options import UNCHECKED, Options, missing_experts

from moesim.model import Gate, MoELayer

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")
TENSORS = ("sorted_pairs", "expert_offsets_E1", "tile_expert", "tile_row", "num_tiles")


def _normal(*shape, seed=0, device="cpu"):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(device)


def _missing(experts, device, rate=0.4):
    return missing_experts(experts, rate, seed=5, device=device)


OPTIONS = {
    "plain": lambda experts, device: UNCHECKED,
    "bias": lambda experts, device: Options(
        bias_E=_normal(experts, seed=3, device=device), checked=False
    ),
    "noise": lambda experts, device: Options(noise_std=0.5, seed=7, temperature=1.5, checked=False),
    "missing": lambda experts, device: Options(missing_E=_missing(experts, device), checked=False),
    "all": lambda experts, device: Options(
        bias_E=_normal(experts, seed=3, device=device),
        noise_std=0.5,
        missing_E=_missing(experts, device),
        checked=False,
    ),
}


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("score", ["softmax", "sigmoid"])
@pytest.mark.parametrize(
    ("tokens", "experts", "top_k", "groups", "kept"),
    [(150, 8, 2, 1, 1), (130, 64, 6, 1, 1), (70, 60, 5, 5, 2), (64, 256, 8, 8, 4)],
)
def test_one_kernel_chooses_as_two(device, tokens, experts, top_k, groups, kept, score, options):
    x_TH = _normal(tokens, 72, device=device).bfloat16()
    keys_EH = (_normal(experts, 72, seed=1, device=device) / 8).bfloat16()
    made = OPTIONS[options](experts, device)
    weights_TK, ids_TK = fused_gate(x_TH, keys_EH, top_k, score, groups, kept, made)
    logits_TE = gate_logits(x_TH, keys_EH)
    want_weights_TK, want_ids_TK = route_reference(logits_TE, top_k, score, groups, kept, made)
    # Sums in another order may swap experts whose logits are all but equal.
    same = (ids_TK == want_ids_TK).all(1)
    assert same.float().mean() > 0.97
    torch.testing.assert_close(weights_TK[same], want_weights_TK[same], rtol=1e-4, atol=1e-5)
    again = fused_gate(x_TH, keys_EH, top_k, score, groups, kept, made)
    assert torch.equal(weights_TK, again[0])
    assert torch.equal(ids_TK, again[1])


@pytest.mark.parametrize("score", ["softmax", "sigmoid"])
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize(
    ("experts", "top_k", "groups", "kept", "rate"),
    [(61, 8, 1, 1, 0.5), (64, 8, 8, 4, 0.5), (12, 3, 12, 4, 0.3), (24, 6, 4, 1, 0.9)],
)
def test_missing_experts_get_no_token(device, experts, top_k, groups, kept, rate, biased, score):
    logits_TE = _normal(80, experts, device=device)
    logits_TE[0], logits_TE[1] = -torch.inf, torch.nan
    logits_TE[2, ::2] = -torch.inf
    options = Options(
        bias_E=_normal(experts, seed=3, device=device) if biased else None,
        missing_E=_missing(experts, device, rate),
        checked=False,
    )
    weights_TK, ids_TK = route(logits_TE, top_k, score, groups, kept, options)
    want_weights_TK, want_ids_TK = route_reference(logits_TE, top_k, score, groups, kept, options)
    assert torch.equal(ids_TK, want_ids_TK)
    torch.testing.assert_close(weights_TK, want_weights_TK, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(weights_TK.sum(1), torch.ones(80, device=device))
    if rate == 0.5:
        assert not options.missing_E[ids_TK.long()].any()
    else:
        # Where too few are left, the places behind them weigh nothing.
        absent = options.missing_E[ids_TK.long()] & (weights_TK > 0)
        assert not absent[3:].any()


def test_missing_experts_are_as_if_not_there(device):
    logits_TE, missing_E = _normal(50, 32, device=device), _missing(32, device)
    weights_TK, ids_TK = route(logits_TE, 4, options=Options(missing_E=missing_E))
    there = (~missing_E).nonzero().flatten()
    want_weights_TK, want_ids_TK = route(logits_TE[:, there].contiguous(), 4)
    assert torch.equal(ids_TK, there[want_ids_TK.long()].int())
    torch.testing.assert_close(weights_TK, want_weights_TK)


def test_the_draw_of_missing_experts(device):
    drawn = missing_experts(100, 0.25, 3, device)
    assert (drawn.dtype, int(drawn.sum())) == (torch.bool, 25)
    assert torch.equal(drawn.cpu(), missing_experts(100, 0.25, 3))
    assert not torch.equal(drawn.cpu(), missing_experts(100, 0.25, 4))
    assert not missing_experts(7, 0.1, 0).any()
    with pytest.raises(ValueError, match="rate: expected"):
        missing_experts(8, 1.0, 0)


@pytest.mark.parametrize(
    ("tokens", "experts", "top_k"),
    [(1100, 64, 2), (300, 256, 8), (450, 61, 5), (5000, 8, 1), (40, 100, 60)],
)
@pytest.mark.parametrize("fused", [False, True])
def test_choices_counted_by_the_router_give_the_plan(device, tokens, experts, top_k, fused):
    x_TH = _normal(tokens, 64, device=device).bfloat16()
    keys_EH = _normal(experts, 64, seed=1, device=device).bfloat16()
    segments = new_segments(tokens, top_k, experts, x_TH.device)
    assert segments is not None
    assert segments.pairs <= 256
    if fused:
        ids_TK = fused_gate(x_TH, keys_EH, top_k, "softmax", 1, 1, UNCHECKED, segments)[1]
    else:
        parts_STE = gate_parts(x_TH, keys_EH)
        ids_TK = route_parts(parts_STE, top_k, options=UNCHECKED, segments=segments)[1]
    plan = make_plan(ids_TK, experts, 16, segments)
    want = make_plan_reference(ids_TK, experts, 16)
    for name in TENSORS:
        assert torch.equal(getattr(plan, name), getattr(want, name)), name


def test_what_the_plan_counts_itself(device):
    assert new_segments(100, 8, 64, device) is None, "few pairs"
    assert new_segments(4096, 8, 512, device) is None, "many experts"
    assert new_segments(4096, 300, 256, device) is None, "a token with more pairs than a segment"


def test_many_tokens_of_few_experts_are_chosen_by_one_kernel(monkeypatch):
    monkeypatch.setattr(fused_module, "num_sms", lambda: 132)
    many, few = (torch.empty(n, 8, dtype=torch.bfloat16) for n in (8448, 8447))
    assert fuses(many, 256, 8)
    assert not fuses(few, 64, 1)
    assert not fuses(many, 512, 1)
    assert not fuses(many.float(), 64, 1)


def test_a_layer_without_some_experts(device):
    layer = MoELayer(hidden_size=64, expert_intermediate_size=48, num_experts=16, top_k=2)
    weights = LayerWeights.random(layer, 0, dtype=torch.float32, device=device)
    x_TH, missing_E = _normal(40, 64, device=device), _missing(16, device)
    counts_E = torch.zeros(16, dtype=torch.int32, device=device)
    out_TH = moe_layer(x_TH, weights, layer, counts_E=counts_E, missing_E=missing_E)
    want_TH = moe_layer(x_TH, weights, layer, "torch", missing_E=missing_E)
    torch.testing.assert_close(out_TH, want_TH, rtol=1e-3, atol=1e-3)
    assert counts_E.sum() == 80
    assert not counts_E[missing_E].any()
    two_level = MoELayer(
        hidden_size=64,
        expert_intermediate_size=48,
        num_experts=16,
        top_k=2,
        gate=Gate.parse("two_level:4:2"),
    )
    weights_of_groups = LayerWeights.random(two_level, 0, dtype=torch.float32, device=device)
    with pytest.raises(ValueError, match="missing_E: expected a flat"):
        moe_layer(x_TH, weights_of_groups, two_level, missing_E=missing_E)
