"""Logits of a gate in parts, and routers that add the parts up, list by id and map columns to
experts.
"""

import pytest
import torch
from moesim_kernels.ops import gate_logits as gate_module
from moesim_kernels.ops.gate_logits import gate_logits, gate_parts, part_steps
from moesim_kernels.ops.router import route, route_parts, route_reference
from moesim_kernels.ops.router_options import UNCHECKED, Options

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")


def _normal(*shape, seed=0, device="cpu"):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(device)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("tokens", "experts", "hidden", "multiprocessors"),
    [
        (0, 3, 16, 132),
        (1, 1, 37, 132),
        (17, 61, 1024, 132),
        (5, 200, 1000, 2),
        (130, 33, 520, 7),
        (40, 9, 2048, 132),
    ],
)
def test_parts_add_up_to_the_logits(
    device, monkeypatch, tokens, experts, hidden, multiprocessors, dtype
):
    monkeypatch.setattr(gate_module, "num_sms", lambda: multiprocessors)
    x_TH = _normal(tokens, hidden, device=device).to(dtype)
    keys_EH = (_normal(experts, hidden, seed=1, device=device) * hidden**-0.5).to(dtype)
    parts_STE = gate_parts(x_TH, keys_EH)
    want_TE = x_TH.float() @ keys_EH.float().T
    assert parts_STE.shape[1:] == (tokens, experts)
    torch.testing.assert_close(parts_STE.sum(0), want_TE, rtol=1e-5, atol=2e-5)
    torch.testing.assert_close(gate_logits(x_TH, keys_EH), want_TE, rtol=1e-5, atol=2e-5)
    assert torch.equal(parts_STE, gate_parts(x_TH, keys_EH)), "the same bits every time"


def test_parts_fill_the_multiprocessors_and_have_some_depth(monkeypatch):
    monkeypatch.setattr(gate_module, "num_sms", lambda: 132)
    # 132 // 32 = 4 parts of 1,024; 16 parts at most; at least 256 deep; rows of very many experts
    # whole.
    assert part_steps(32, 256, 4096, 64) == 16
    assert part_steps(1, 64, 4096, 128) == 2
    assert part_steps(1, 64, 512, 128) == 2
    assert part_steps(1, 8192, 4096, 64) == 64


@pytest.mark.parametrize("parts", [1, 3, 16])
def test_routers_add_parts_up(device, parts):
    parts_STE = _normal(parts, 40, 24, device=device)
    logits_TE = parts_STE[0].clone()
    for part_TE in parts_STE[1:]:
        logits_TE += part_TE
    for options in (
        UNCHECKED,
        Options(temperature=1.3),
        Options(bias_E=_normal(24, seed=2, device=device)),
    ):
        got, want = (
            route_parts(parts_STE, 4, "softmax", 6, 2, options),
            route(logits_TE, 4, "softmax", 6, 2, options),
        )
        assert torch.equal(got[1], want[1])
        torch.testing.assert_close(got[0], want[0], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("top_k", [1, 3, 8])
def test_experts_are_listed_by_id(device, top_k):
    logits_TE = _normal(30, 20, device=device)
    logits_TE[3] = 0.0
    weights_TK, ids_TK = route_parts(logits_TE[None], top_k, options=UNCHECKED, ascending=True)
    want_weights_TK, want_ids_TK = route_reference(logits_TE, top_k, options=UNCHECKED)
    want_ids_TK, order_TK = want_ids_TK.sort(dim=1)
    assert torch.equal(ids_TK, want_ids_TK)
    torch.testing.assert_close(
        weights_TK, want_weights_TK.gather(1, order_TK), rtol=1e-5, atol=1e-7
    )


def test_columns_of_kept_groups_are_their_experts(device):
    kept_Tg = torch.stack(
        [torch.randperm(9, generator=torch.Generator().manual_seed(i))[:3] for i in range(12)]
    )
    kept_Tg = kept_Tg.sort(dim=1).values.int().to(device)
    logits = _normal(12, 3 * 5, device=device)
    ids_TK = route_parts(logits[None], 4, options=UNCHECKED, kept_Tg=kept_Tg)[1]
    slots_TK = route_reference(logits, 4, options=UNCHECKED)[1].long()
    assert torch.equal(ids_TK, (kept_Tg.gather(1, slots_TK // 5) * 5 + slots_TK % 5).int())


def test_refuses(device):
    x_TH = torch.zeros(2, 8, device=device)
    for keys_EH in (
        torch.zeros(3, 7, device=device),
        torch.zeros(3, 8, device=device).half(),
        x_TH[0],
    ):
        with pytest.raises(ValueError, match="expected x_TH of shape"):
            gate_parts(x_TH, keys_EH)
    parts_STE = torch.zeros(2, 2, 8, device=device)
    parts_STE[0, 1, 3], parts_STE[1, 1, 3] = float("inf"), float("-inf")
    with pytest.raises(ValueError, match="logits_TE: expected numbers, got NaN"):
        route_parts(parts_STE, 2, options=Options())
