"""The timed layer computes what it says, and its timing has every phase; never how long
it takes.
"""

import numpy as np
import pytest
import torch
from moesim_kernels.cpu.layer import PHASES, CpuLayer, Sentinel, align, measuring, time_layer

from moesim.errors import ConfigError
from moesim.model import Gate, MoELayer
from moesim.routing import RoutingSpec, route


def layer_of(experts, top_k, hidden=48, width=32, gate="flat", gated=True):
    return MoELayer(
        hidden_size=hidden,
        expert_intermediate_size=width,
        num_experts=experts,
        top_k=top_k,
        gated=gated,
        gate=Gate.parse(gate),
    )


def ids_of(layer, tokens, routing="uniform", seed=0):
    return route(
        RoutingSpec.parse(routing),
        layer.gate,
        num_experts=layer.num_experts,
        top_k=layer.top_k,
        num_tokens_S=np.array([tokens]),
        seed=seed,
    ).expert_ids_TK


def naive_layer(case):
    """Token by token, expert by expert, in float32."""
    width = case.layer.expert_intermediate_size
    weights_TK, _ = case.gate()
    out_TH = torch.zeros(case.x_TH.shape)
    for t, x_H in enumerate(case.x_TH.float()):
        for j, e in enumerate(case.ids_TK[t].tolist()):
            up_N = case.w_up_ENH[e].float() @ x_H
            act_I = torch.nn.functional.silu(up_N[:width])
            if case.layer.gated:
                act_I = act_I * up_N[width:]
            out_TH[t] += weights_TK[t, j] * (case.w_down_EHI[e].float() @ act_I)
    return out_TH


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("tokens", "experts", "top_k"), [(1, 8, 2), (33, 1, 1), (29, 7, 3), (20, 5, 5), (64, 31, 4)]
)
def test_layer_is_the_naive_loop(tokens, experts, top_k, dtype):
    layer = layer_of(experts, top_k)
    case = CpuLayer(layer, ids_of(layer, tokens), dtype, seed=1)
    out_TH, times = case.forward()
    torch.testing.assert_close(out_TH.float(), naive_layer(case), **tolerance(dtype))
    assert len(times) == len(PHASES) + 1
    assert times == sorted(times)


def tolerance(dtype):
    return {"rtol": 1e-4, "atol": 1e-4} if dtype == torch.float32 else {"rtol": 5e-2, "atol": 5e-2}


def test_one_hot_expert_and_empty_ones():
    layer = layer_of(13, 1)
    case = CpuLayer(layer, np.full((50, 1), 11), torch.float32)
    torch.testing.assert_close(case.forward()[0], naive_layer(case), **tolerance(torch.float32))


def test_plain_experts():
    layer = layer_of(4, 2, gated=False)
    case = CpuLayer(layer, ids_of(layer, 17), torch.float32)
    assert case.w_up_ENH.shape == (4, 32, 48)
    torch.testing.assert_close(case.forward()[0], naive_layer(case), **tolerance(torch.float32))


def test_repeats_change_order_but_not_histogram():
    layer = layer_of(6, 2)
    ids_TK = ids_of(layer, 40, "zipf:1.2")
    case = CpuLayer(layer, ids_TK, torch.float32)
    first = case.ids_TK.clone()
    case.select(1)
    assert not torch.equal(first, case.ids_TK)
    for ids in (first, case.ids_TK):
        assert (
            ids.flatten().bincount(minlength=6).tolist()
            == np.bincount(ids_TK.ravel(), minlength=6).tolist()
        )


def test_align_sorts_stably():
    order_P, token_P, ends_E = align(torch.tensor([2, 0, 2, 0, 3, 2]), 5, 2)
    assert order_P.tolist() == [1, 3, 0, 2, 5, 4]
    assert token_P.tolist() == [0, 1, 0, 1, 2, 2]
    assert ends_E.tolist() == [2, 2, 5, 6, 6]


@pytest.mark.parametrize("gate", ["flat", "group_limited:4:2", "two_level:4:2", "two_level:12:3"])
def test_gate_is_the_naive_gate(gate):
    layer = layer_of(12, 3, gate=gate)
    case = CpuLayer(layer, ids_of(layer, 25), torch.float32, seed=2)
    weights_TK, ids_TK = case.gate()
    groups, kept = layer.gate.num_expert_groups, layer.gate.num_limited_groups
    keys_XH = [keys for keys in (case.coarse_GH, case.fine_EH) if keys is not None]
    logits_TX = case.x_TH @ torch.cat(keys_XH).T
    for t in range(25):
        coarse = logits_TX[t, :groups] if layer.gate.kind == "two_level" else None
        fine_GS = logits_TX[t, -12:].view(groups, -1)
        if coarse is None and groups > 1:
            coarse = (
                fine_GS.flatten()
                .softmax(0)
                .view(groups, -1)
                .topk(min(2, fine_GS.shape[1]))
                .values.sum(1)
            )
        logits_E = fine_GS.clone()
        if coarse is not None:
            logits_E[
                [g for g in range(groups) if g not in coarse.topk(kept).indices.tolist()]
            ] = -torch.inf
        best = logits_E.flatten().topk(3)
        assert set(ids_TK[t].tolist()) == set(best.indices.tolist())
        torch.testing.assert_close(
            weights_TK[t].sort(descending=True).values, best.values.softmax(0), rtol=1e-4, atol=1e-5
        )


@pytest.mark.parametrize(
    ("experts", "top_k", "heads"), [(16, 3, 1), (49, 4, 2), (49, 6, 3), (1, 1, 1), (4, 4, 1)]
)
def test_product_keys_find_the_best_of_all_experts(experts, top_k, heads):
    """Each head's finds are the best sums over all rows and columns, as if every expert had been
    scored.
    """
    layer = layer_of(experts, top_k, gate=f"product_key:{heads}:8")
    case = CpuLayer(layer, ids_of(layer, 25), torch.float32, seed=2)
    weights_TK, ids_TK = case.gate()
    queries = (case.x_TH @ case.query_QH.T).view(25, heads, 2, 4)
    side = case.keys_2Sq.shape[1]
    for t in range(25):
        for h in range(heads):
            rows, columns = (case.keys_2Sq[i] @ queries[t, h, i] for i in range(2))
            best = torch.tensor([rows[e // side] + columns[e % side] for e in range(experts)]).topk(
                top_k // heads
            )
            mine = slice(h * top_k // heads, (h + 1) * top_k // heads)
            assert ids_TK[t, mine].tolist() == best.indices.tolist()
            torch.testing.assert_close(
                weights_TK[t, mine], best.values.softmax(0) / heads, rtol=1e-4, atol=1e-5
            )


@pytest.mark.parametrize("gate", ["product_key", "product_key:3:8"])
def test_heads_that_find_too_many_leave_the_best(gate):
    layer = layer_of(25, 5, gate=gate)
    weights_TK, ids_TK = CpuLayer(layer, ids_of(layer, 9), torch.float32).gate()
    assert weights_TK.shape == ids_TK.shape == (9, 5)
    assert 0 <= ids_TK.min() <= ids_TK.max() < 25
    torch.testing.assert_close(weights_TK.sum(dim=1), torch.ones(9))


def test_refuses():
    with pytest.raises(ConfigError, match="expected one width"):
        CpuLayer(layer_of(4, 2, width=(8, 8, 16, 16)), np.zeros((3, 2)), torch.bfloat16)
    with pytest.raises(ConfigError, match="multiples of 8"):
        CpuLayer(layer_of(4, 2, width=20), np.zeros((3, 2)), torch.bfloat16)
    with pytest.raises(ConfigError, match=r"expected shape \(T, 2\)"):
        CpuLayer(layer_of(4, 2), np.zeros((3, 1)), torch.float32)


def test_timing_has_every_phase_and_restores_threads():
    threads = torch.get_num_threads()
    layer = layer_of(8, 2)
    timing = time_layer(layer, ids_of(layer, 16), torch.float32, seconds=0.0, min_repeats=7)
    assert list(timing.phases) == [*PHASES, "total"]
    assert timing.repeats == 7
    for spread in timing.phases.values():
        assert 0 < spread.min_s <= spread.p10_s <= spread.median_s <= spread.p90_s
    assert torch.get_num_threads() == threads
    assert torch.is_grad_enabled()


def test_contended_run_is_tried_twice_and_reported(monkeypatch):
    with measuring():
        sentinel = Sentinel()
    asked = []
    monkeypatch.setattr(sentinel, "slowdown", lambda: asked.append(1) or 0.3)
    layer = layer_of(4, 1)
    timing = time_layer(layer, ids_of(layer, 8), torch.float32, seconds=0.0, sentinel=sentinel)
    assert (timing.contended, timing.slowdown, len(asked)) == (True, 0.3, 4)
