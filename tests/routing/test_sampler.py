"""From loads to choices: exact loads, different experts, groups kept, and no structure that nobody
asked for.
"""

from math import comb

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moesim.errors import ConfigError
from moesim.model import Gate
from moesim.routing import RoutingSpec, route
from moesim.routing.sampler import MAX_SAMPLED_TOKENS

SPECS = ["uniform", "zipf:0.8", "zipf:2", "power_law:1.2"]


def draw(spec="uniform", gate="flat", *, experts, top_k, tokens, seed=0):
    return route(
        RoutingSpec.parse(spec),
        Gate.parse(gate),
        num_experts=experts,
        top_k=top_k,
        num_tokens_S=np.atleast_1d(tokens),
        seed=seed,
    )


@st.composite
def cases(draw_):
    """Sizes that go together, a gate with or without groups among them."""
    groups = draw_(st.sampled_from([1, 2, 4, 8]))
    per_group = draw_(st.integers(1, 16))
    kept = draw_(st.integers(1, groups))
    top_k = draw_(st.integers(1, min(kept * per_group, 12)))
    gate = (
        "flat"
        if groups == 1
        else f"{draw_(st.sampled_from(['group_limited', 'two_level']))}:{groups}:{kept}"
    )
    return {
        "spec": draw_(st.sampled_from(SPECS)),
        "gate": gate,
        "experts": groups * per_group,
        "top_k": top_k,
        "tokens": np.array(draw_(st.lists(st.integers(1, 300), min_size=1, max_size=9))),
        "seed": draw_(st.integers(0, 2**31)),
    }


@given(case=cases())
def test_every_token_gets_top_k_different_experts(case):
    routing = draw(**case)
    ids = routing.expert_ids_TK
    assert ids.shape == (case["tokens"].sum(), case["top_k"])
    assert 0 <= ids.min() <= ids.max() < case["experts"]
    ordered = np.sort(ids, axis=1)
    assert (np.diff(ordered, axis=1) > 0).all()


@given(case=cases())
def test_counts_add_up(case):
    routing = draw(**case)
    counts_SE = routing.num_tokens_SE()
    assert counts_SE.sum(axis=1).tolist() == (case["tokens"] * case["top_k"]).tolist()
    assert counts_SE.sum(axis=0).tolist() == routing.num_tokens_E().tolist()
    assert routing.num_tokens_E().max() <= case["tokens"].sum()


@given(case=cases())
def test_same_seed_same_choices(case):
    assert draw(**case).expert_ids_TK.tobytes() == draw(**case).expert_ids_TK.tobytes()


@given(case=cases())
def test_a_limited_token_stays_within_its_groups(case):
    gate = Gate.parse(case["gate"])
    group_TK = draw(**case).expert_ids_TK // (case["experts"] // gate.num_expert_groups)
    used = [len(np.unique(row)) for row in group_TK]
    assert max(used) <= (gate.num_limited_groups if gate.kind != "flat" else 1)


@given(case=cases().filter(lambda c: c["gate"] == "flat"))
def test_a_flat_gate_meets_the_loads_exactly(case):
    routing = draw(**case)
    rng = np.random.default_rng([case["seed"], case["experts"], case["top_k"]])
    loads = RoutingSpec.parse(case["spec"]).loads(
        case["experts"], case["top_k"], int(case["tokens"].sum()), rng
    )
    assert routing.num_tokens_E().tolist() == loads.tolist()


def test_another_seed_other_choices():
    assert (
        draw(experts=16, top_k=2, tokens=100).expert_ids_TK.tobytes()
        != draw(experts=16, top_k=2, tokens=100, seed=1).expert_ids_TK.tobytes()
    )


@pytest.mark.parametrize("top_k", [2, 4, 6, 8, 10])
def test_uniform_is_uniform_over_groups_too(top_k):
    """Also where top_k is no multiple of the groups kept: no group may be the one that gives more,
    always.
    """
    loads = draw(
        "uniform", "group_limited:8:4", experts=128, top_k=top_k, tokens=np.full(8, 1024)
    ).num_tokens_E()
    by_group = loads.reshape(8, 16).sum(axis=1)
    assert by_group.max() / by_group.mean() <= 1.03
    assert loads.max() / loads.mean() <= 1.06


@pytest.mark.parametrize(("experts", "top_k"), [(64, 4), (128, 8), (256, 8)])
@pytest.mark.parametrize("seed", range(5))
def test_which_experts_meet_in_a_token_is_chance(experts, top_k, seed):
    """With equal loads a token's experts fall on 8 groups of consecutive experts as drawn without
    replacement.

    Else what a device receives is the luck of the seed: with few different sets of experts, one
    device of a perfectly balanced layer gets 15 % more tokens than the mean, in every dispatch.
    """
    ids = draw(experts=experts, top_k=top_k, tokens=np.full(8, 1024), seed=seed).expert_ids_TK
    hit_TD = np.zeros((len(ids), 8), dtype=bool)
    hit_TD[np.arange(len(ids))[:, None], ids // (experts // 8)] = True
    expected = 1.0 - comb(experts - experts // 8, top_k) / comb(experts, top_k)
    assert hit_TD.mean() == pytest.approx(expected, rel=0.03)
    assert hit_TD.mean(axis=0).max() <= expected * 1.08
    assert len(np.unique(np.sort(ids, axis=1), axis=0)) >= len(ids) / 4


def test_sources_are_alike():
    """No source gets the hot experts to itself: its share of each expert is its share of the
    tokens.
    """
    routing = draw("zipf:0.8", experts=32, top_k=4, tokens=np.array([1000, 2000, 5000]))
    counts_SE = routing.num_tokens_SE()
    share = counts_SE / counts_SE.sum(axis=0)
    assert np.abs(share - np.array([[1 / 8], [2 / 8], [5 / 8]])).max() < 0.08


@pytest.mark.parametrize("tokens", [[0, 5], [5, 0], [3, 0, 4]])
def test_a_source_may_have_no_tokens(tokens):
    routing = draw(experts=4, top_k=2, tokens=np.array(tokens))
    assert routing.num_tokens_SE().sum(axis=1).tolist() == [2 * t for t in tokens]
    assert len(routing.source_T()) == sum(tokens)


@pytest.mark.parametrize("tokens", [0, MAX_SAMPLED_TOKENS + 1])
def test_number_of_tokens_is_bounded(tokens):
    with pytest.raises(
        ConfigError,
        match=(
            rf"^workload: expected 1 to {MAX_SAMPLED_TOKENS} tokens over all devices, "
            rf"got {tokens}$"
        ),
    ):
        draw(experts=4, top_k=1, tokens=tokens)


def test_largest_number_of_tokens():
    routing = draw("power_law:1.2", experts=64, top_k=2, tokens=MAX_SAMPLED_TOKENS)
    assert routing.num_tokens_E().sum() == 2 * MAX_SAMPLED_TOKENS


@given(case=cases(), keep=st.floats(0.0, 1.0))
def test_pruned_experts_get_nothing(case, keep):
    """As many experts of each group are left as a token takes there; the others take
    all choices.
    """
    gate = Gate.parse(case["gate"])
    rng = np.random.default_rng(case["seed"])
    of_each = -(-case["top_k"] // min(gate.num_limited_groups, case["top_k"]))
    left = rng.random((gate.num_expert_groups, case["experts"] // gate.num_expert_groups)) < keep
    for group in left:
        group[rng.permutation(len(group))[:of_each]] = True
    routing = route(
        RoutingSpec.parse(case["spec"]),
        gate,
        num_experts=case["experts"],
        top_k=case["top_k"],
        num_tokens_S=case["tokens"],
        seed=case["seed"],
        left_E=left.ravel(),
    )
    counts = routing.num_tokens_E()
    assert counts[~left.ravel()].sum() == 0
    assert counts.sum() == case["tokens"].sum() * case["top_k"]
    assert (np.diff(np.sort(routing.expert_ids_TK, axis=1), axis=1) > 0).all()


def test_nothing_pruned_changes_nothing():
    case = {"num_experts": 16, "top_k": 2, "num_tokens_S": np.array([50]), "seed": 3}
    for gate in ("flat", "two_level:4:2"):
        arguments = RoutingSpec.parse("zipf:0.8"), Gate.parse(gate)
        assert (
            route(*arguments, **case).expert_ids_TK.tobytes()
            == route(*arguments, **case, left_E=np.ones(16, dtype=bool)).expert_ids_TK.tobytes()
        )


def test_a_product_key_gate_combines_any_experts():
    case = {"experts": 16, "top_k": 2, "tokens": 500}
    assert (
        draw(gate="product_key", **case).expert_ids_TK.tobytes()
        == draw(**case).expert_ids_TK.tobytes()
    )
