"""Ways of selecting: what they make of the loads, and sharing of decisions."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from moesim_kernels.ops import selection as reference

from moesim.model import Gate
from moesim.routing import RoutingSpec, route, sample_counts
from moesim.routing.selection import VIOLATION
from moesim.routing.swaps import exchange, lay_out, put


def loads(gate, spec="olmoe-github", seed=0):
    return sample_counts(
        RoutingSpec.parse(spec),
        Gate.parse(gate),
        num_experts=64,
        top_k=8,
        num_tokens=16384,
        seed=seed,
    )


def over(counts):
    return counts.max() / counts.mean() - 1


def test_each_way_of_selecting_flattens_as_it_says():
    plain = over(loads("flat"))
    assert over(loads("flat+bias")) == pytest.approx(VIOLATION["bias"], abs=0.01)
    assert over(loads("flat+aux_loss")) == pytest.approx(VIOLATION["aux_loss"], abs=0.01)
    assert over(loads("flat+aux_loss", "mixtral")) <= VIOLATION["aux_loss"]
    assert plain > over(loads("flat+noisy_top_k:0.5")) > over(loads("flat+noisy_top_k:2")) > 0
    assert (
        loads("flat+noisy_top_k:0.5+temperature:4").tolist() == loads("flat+noisy_top_k:2").tolist()
    )
    assert over(loads("flat+temperature:4")) == plain, (
        "without noise it changes weights, not choices"
    )
    for balanced in ("expert_choice", "sinkhorn"):
        assert loads(f"flat+{balanced}").tolist() == [2048] * 64
    assert over(loads("flat+hash", "uniform")) > 0.1, "words decide, whatever the distribution"
    assert loads("flat+hash").tolist() != loads("flat+hash", seed=1).tolist()


@pytest.mark.parametrize(
    "gate", ["flat", "flat+bias", "flat+hash", "two_level:8:2+aux_loss", "flat+noisy_top_k:1"]
)
def test_counts_are_those_of_the_choices(gate):
    spec = RoutingSpec.parse("zipf:0.9")
    routing = route(
        spec, Gate.parse(gate), num_experts=64, top_k=8, num_tokens_S=np.array([3000]), seed=5
    )
    counts = sample_counts(spec, Gate.parse(gate), num_experts=64, top_k=8, num_tokens=3000, seed=5)
    assert routing.num_tokens_E().tolist() == counts.tolist()


@given(
    share=st.integers(1, 9), tokens=st.lists(st.integers(0, 40), min_size=1, max_size=5).filter(any)
)
def test_tokens_of_a_run_choose_alike(share, tokens):
    gate = Gate(share_tokens=share)
    routing = route(
        RoutingSpec.parse("uniform"),
        gate,
        num_experts=16,
        top_k=2,
        num_tokens_S=np.array(tokens),
        seed=1,
    )
    assert len(routing.expert_ids_TK) == sum(tokens)
    first = 0
    for count in tokens:
        mine = routing.expert_ids_TK[first : first + count]
        for start in range(0, count, share):
            assert (mine[start : start + share] == mine[start]).all()
        first += count


def test_compiled_as_written():
    rng = np.random.default_rng(0)
    ids = np.argsort(rng.random((40, 12)), axis=1)[:, :4].astype(np.int32)
    results = []
    for function in (exchange.compiled, exchange.plain, exchange.py_func):
        one, two = ids[:20].copy(), ids[20:].copy()
        for shift in (0, 7, 19):
            function(one, two, shift, 1, 2)
        results.append([one, two])
    for other in results[1:]:
        assert all((a == b).all() for a, b in zip(results[0], other, strict=True))
    for function in (lay_out.compiled, lay_out.plain, lay_out.py_func):
        out = np.zeros((6, 2), dtype=np.int32)
        function(np.array([2, 0, 1]), np.array([5, 1, 6]), np.array([3, 0, 1, 2, 4, 5]), 2, out)
        results.append(out)
    assert (results[-1] == results[-2]).all()
    assert (results[-1] == results[-3]).all()
    assert sorted(results[-1].ravel().tolist()) == [0] * 5 + [1] + [2] * 6
    for function in (put.compiled, put.plain, put.py_func):
        out = np.zeros((4, 4), dtype=np.int32)
        function(
            out,
            np.array([0, 3, 6]),
            np.array([0, 2]),
            np.array([[1, 2], [3, 4], [5, 6]], dtype=np.int32),
            8,
        )
        assert out.tolist() == [[9, 10, 0, 0], [0, 0, 11, 12], [0, 0, 0, 0], [13, 14, 0, 0]]


# the torch references


@pytest.fixture
def logits():
    return torch.randn(200, 16, generator=torch.Generator().manual_seed(0)) + torch.linspace(
        0, 2, 16
    )


def counts_of(ids, experts=16):
    return torch.bincount(ids.flatten(), minlength=experts).float()


def test_noise_flattens_and_no_noise_is_top_k(logits):
    generator = torch.Generator().manual_seed(1)
    weights, ids = reference.noisy_top_k(logits, 4, torch.tensor(0.0), generator=generator)
    assert ids.tolist() == logits.topk(4, dim=1).indices.tolist()
    assert torch.allclose(weights.sum(dim=1), torch.ones(200))
    noisy = reference.noisy_top_k(logits, 4, torch.full((16,), 3.0), generator=generator)[1]
    assert counts_of(noisy).std() < counts_of(ids).std()


def test_a_bias_balances_without_touching_weights(logits):
    scores, bias = torch.sigmoid(logits), torch.zeros(16)
    before = counts_of(reference.biased_top_k(scores, 4, bias)[1])
    for _ in range(400):
        weights, ids = reference.biased_top_k(scores, 4, bias)
        bias = reference.updated_bias(bias, counts_of(ids), 2e-3)
    after = counts_of(ids)
    assert after.max() / after.mean() - 1 < 0.25 < before.max() / before.mean() - 1
    chosen = scores.gather(1, ids)
    assert torch.allclose(weights, chosen / chosen.sum(dim=1, keepdim=True))


def test_experts_choose_equally_many_tokens(logits):
    weights, tokens = reference.expert_choice(logits, 50)
    assert tokens.shape == (16, 50)
    assert all(len(set(row)) == 50 for row in tokens.tolist())
    assert (weights.diff(dim=1) <= 0).all()


@pytest.mark.parametrize(("experts", "top_k"), [(1, 1), (7, 3), (16, 16), (64, 8), (4, 2)])
def test_hashes_give_different_experts_and_the_same_again(experts, top_k):
    words = torch.arange(5000)
    ids = reference.hash_experts(words, experts, top_k)
    assert all(len(set(row)) == top_k for row in ids.tolist())
    assert 0 <= int(ids.min()) <= int(ids.max()) < experts
    assert ids.tolist() == reference.hash_experts(words, experts, top_k).tolist()
    assert counts_of(ids, experts).max() < 1.2 * counts_of(ids, experts).mean()


def test_sinkhorn_balances(logits):
    ids = reference.sinkhorn(logits, 4)[1]
    assert counts_of(ids).std() < 0.5 * counts_of(logits.topk(4, dim=1).indices).std()


def test_shared_and_local_gates():
    generator = torch.Generator().manual_seed(0)
    x, keys, coarse = (torch.randn(n, 8, generator=generator) for n in (10, 16, 4))
    weights, ids = reference.shared_gate(x, keys, 2, 4)
    assert ids[:4].unique(dim=0).shape[0] == ids[8:].unique(dim=0).shape[0] == 1
    assert ids[0].tolist() == (x[0] @ keys.T).topk(2).indices.tolist()
    assert torch.allclose(weights.sum(dim=1), torch.ones(10))
    weights, ids = reference.local_two_level(x, coarse, keys, 4, 2)
    assert torch.allclose(weights.sum(dim=1), torch.ones(10))
    groups = (ids // 4).tolist()
    assert all(row[0] == row[1] and row[2] == row[3] and row[0] != row[2] for row in groups), (
        "two of each group"
    )
