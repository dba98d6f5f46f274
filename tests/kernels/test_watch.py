"""What kernels note of numbers that they cannot use, and how it is reported."""

import pytest
import torch
from moesim_kernels.ops import watch as watch_module
from moesim_kernels.ops.counting_sort import sorted_plan
from moesim_kernels.ops.fused_gate import fused_gate
from moesim_kernels.ops.gate_logits import gate_parts
from moesim_kernels.ops.hier_gate import two_level_gate
from moesim_kernels.ops.layer import LayerWeights, expert_phase, moe_layer
from moesim_kernels.ops.product_key import product_key_gate
from moesim_kernels.ops.router import route_parts
from moesim_kernels.ops.router_options import Options
from moesim_kernels.ops.watch import looks, new_watch, report, synchronize
from moesim_kernels.timing.bench import random_ids

from moesim.model import MoELayer

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")
NOTHING = 2**31 - 1


@pytest.fixture
def watch(device):
    return new_watch(pinned=device.type == "cuda")


def _noted(watch, device):
    if device.type == "cuda":
        torch.cuda.synchronize()
    return watch.tolist()


def _normal(*shape, seed=0, device="cpu"):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(device)


def _gates(watch, device):
    keys_EH = _normal(16, 64, seed=1, device=device).bfloat16()
    options = Options(checked=False, watch=watch)
    biased = Options(bias_E=_normal(16, device=device), checked=False, watch=watch)
    square_2Sq = _normal(2, 4, 8, seed=2, device=device).bfloat16()
    return {
        "router": lambda x: route_parts(gate_parts(x, keys_EH), 2, options=options),
        "biased": lambda x: route_parts(gate_parts(x, keys_EH), 2, "sigmoid", 4, 2, biased),
        "fused": lambda x: fused_gate(x, keys_EH, 2, "softmax", 1, 1, options),
        "two-level": lambda x: two_level_gate(x, keys_EH[:4], keys_EH, 2, 2, watch),
        "product key": lambda x: product_key_gate(x, keys_EH, square_2Sq, 1, 2, watch),
    }


@pytest.mark.parametrize("gate", ["router", "biased", "fused", "two-level", "product key"])
def test_the_first_token_with_logits_that_are_not_finite(device, watch, gate):
    call, x_TH = _gates(watch, device)[gate], _normal(100, 64, device=device).bfloat16()
    call(x_TH)
    assert _noted(watch, device) == [NOTHING] * 3
    x_TH[40, 3], x_TH[23, 7], x_TH[90] = torch.nan, torch.inf, torch.nan
    call(x_TH)
    assert _noted(watch, device) == [NOTHING, 23, NOTHING]


def test_a_bias_that_is_not_finite(device, watch):
    bias_E = torch.zeros(8, device=device)
    bias_E[5] = torch.nan
    options = Options(bias_E=bias_E, checked=False, watch=watch)
    route_parts(_normal(1, 20, 8, device=device), 2, options=options)
    assert _noted(watch, device) == [NOTHING, 0, NOTHING]


@pytest.mark.parametrize(("tokens", "top_k"), [(40, 3), (1500, 2)])
def test_the_first_token_of_a_routing_that_cannot_be(device, watch, tokens, top_k):
    ids_TK = random_ids(tokens, 16, top_k, device=device)
    weights_TK = torch.ones(tokens, top_k, device=device)
    sorted_plan(ids_TK, 16, 16, watch=watch, weights_TK=weights_TK)
    assert _noted(watch, device) == [NOTHING] * 3
    ids_TK[tokens - 2, 1], ids_TK[tokens // 2, 0], weights_TK[7, 1] = 16, -1, torch.nan
    sorted_plan(ids_TK, 16, 16, watch=watch, weights_TK=weights_TK)
    assert _noted(watch, device) == [tokens // 2, NOTHING, 7]


def test_a_report_names_the_token_once(watch):
    report(watch)
    report(None)
    watch[1] = 12
    with pytest.raises(ValueError, match=r"logits_TE: expected finite numbers.*token 12 of a call"):
        report(watch)
    report(watch)


def test_what_a_call_noted_is_raised_by_the_next(device, monkeypatch, watch):
    layer = MoELayer(hidden_size=64, expert_intermediate_size=48, num_experts=8, top_k=2)
    weights = LayerWeights.random(layer, 0, device=device)
    x_TH = _normal(6, 64, device=device).bfloat16()
    for module in ("layer", "tiny_expert", "prepared"):
        monkeypatch.setattr(
            f"moesim_kernels.ops.{module}.looks",
            lambda checked, _: (False, watch if checked else None),
        )
    want_TH = moe_layer(x_TH, weights, layer)
    x_TH[4, 1] = torch.nan
    moe_layer(x_TH, weights, layer)
    _noted(watch, device)
    with pytest.raises(ValueError, match="token 4 of a call before"):
        expert_phase(x_TH, random_ids(6, 8, 2, device=device), torch.ones(6, 2), weights)
    x_TH[4, 1] = _normal(6, 64).bfloat16()[4, 1].to(device)
    assert torch.equal(moe_layer(x_TH, weights, layer), want_TH)


def test_who_looks(monkeypatch, watch):
    x_TH = torch.zeros(1, 1)
    monkeypatch.setattr(watch_module, "_watch", lambda device: watch)
    for mode, recorded, expected in (
        ("interpreter", False, [(False, None), (True, None), (True, None)]),
        ("gpu", False, [(False, None), (True, None), (False, watch)]),
        ("gpu", True, [(False, None)] * 3),
    ):
        monkeypatch.setattr(watch_module, "triton_mode", lambda mode=mode: mode)
        monkeypatch.setattr(watch_module, "capturing", lambda recorded=recorded: recorded)
        assert [looks(checked, x_TH) for checked in (False, True, "later")] == expected


def test_synchronize_reports(monkeypatch, watch):
    synchronize()
    monkeypatch.setattr(watch_module, "triton_mode", lambda: "gpu")
    monkeypatch.setattr(watch_module, "_watch", lambda device: watch)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    synchronize()
    watch[0] = 3
    with pytest.raises(ValueError, match=r"ids_TK: expected ids of experts that exist.*token 3"):
        synchronize()
