"""Measured profiles, named skews and other shapes: the statistics they claim."""

import numpy as np
import pytest

from moesim.errors import ConfigError
from moesim.model import Gate
from moesim.routing import RoutingSpec, route, sample_counts
from moesim.routing.measured import PRESETS, counts_NE, layers
from moesim.routing.statistics import contiguous_imbalance, gini, load_statistics, zipf_exponent
from moesim.routing.workloads import WORKLOADS

TOKENS = 208_896
#: max/mean, CV, Gini, contiguous EP8 max/mean: ranges over the layers that were counted
TABLE = {
    "olmoe-c4": ((2.5, 3.0), (0.32, 0.51), (0.14, 0.29), (1.09, 1.20)),
    "olmoe-github": ((4.5, 6.2), (0.66, 1.35), (0.29, 0.59), (1.27, 2.14)),
    "olmoe-mix": ((2.1, 2.8), (0.34, 0.52), (0.17, 0.27), None),
    "mixtral": ((1.08, 1.33), (0.04, 0.25), (0.02, 0.12), (1.08, 1.33)),
}
FIFTEEN = ((2.5, 7.8), (0.32, 1.35), (0.14, 0.63), (1.09, 2.14))


def counts(text, experts=64, top_k=8, tokens=TOKENS, gate="flat", seed=0):
    return sample_counts(
        RoutingSpec.parse(text),
        Gate.parse(gate),
        num_experts=experts,
        top_k=top_k,
        num_tokens=tokens,
        seed=seed,
    )


def check(found, ranges):
    names = ("max_over_mean", "cv", "gini", "contiguous_ep8_imbalance")
    statistics = load_statistics(found)
    for name, bounds in zip(names, ranges, strict=True):
        if bounds is not None:  # the table has two digits after the point, or one
            digits = 1 if name == "max_over_mean" and bounds[0] >= 2 else 2
            assert bounds[0] <= round(statistics[name], digits) <= bounds[1], name


@pytest.mark.parametrize(
    ("name", "layer"), [(name, layer) for name in TABLE for layer in layers(name)]
)
@pytest.mark.parametrize("tokens", [TOKENS, 4096])
def test_profiles_have_the_statistics_that_were_measured(name, layer, tokens):
    experts, top_k = (8, 2) if name == "mixtral" else (64, 8)
    check(counts(f"{name}:{layer}", experts, top_k, tokens), TABLE[name])


def test_all_fifteen_domain_layers():
    rows = [
        counts(f"olmoe-{domain}:{layer}")
        for domain in ("c4", "github", "arxiv", "book", "wikipedia")
        for layer in (0, 7, 15)
    ]
    assert len(rows) == 15
    for found in rows:
        check(found, FIFTEEN)


def test_at_as_many_experts_the_counts_are_the_measured_ones():
    assert counts("olmoe-arxiv:0").tolist() == counts_NE("olmoe-arxiv", 0)[0].tolist()


@pytest.mark.parametrize("experts", [32, 128, 256])
def test_other_numbers_of_experts_are_about_as_skewed(experts):
    one, other = (
        load_statistics(counts("olmoe-c4")),
        load_statistics(counts("olmoe-c4", experts, 4)),
    )
    assert other["cv"] == pytest.approx(one["cv"], rel=0.25)
    assert other["gini"] == pytest.approx(one["gini"], rel=0.25)


@pytest.mark.parametrize("name", list(PRESETS))
def test_a_layer_nobody_counted(name):
    with pytest.raises(
        ConfigError, match=rf"^routing: {name}: expected layer \d+, \d+, \d+, got 3$"
    ):
        counts_NE(name, 3)


def test_domains_have_profiles_of_their_own():
    """Source s serves domain s modulo five, and its experts are that domain's."""
    routing = route(
        RoutingSpec.parse("olmoe-domains:7"),
        Gate(),
        num_experts=64,
        top_k=8,
        seed=0,
        num_tokens_S=np.full(10, 2000),
    )
    per_source = routing.num_tokens_SE()
    assert routing.domain_S.tolist() == [0, 1, 2, 3, 4] * 2
    profiles = counts_NE("olmoe-domains", 7) / TOKENS
    for s in range(10):
        assert np.corrcoef(per_source[s], profiles[s % 5])[0, 1] > 0.99
    flat = route(
        RoutingSpec.parse("olmoe-mix"),
        Gate(),
        num_experts=64,
        top_k=8,
        seed=0,
        num_tokens_S=np.full(10, 2000),
    )
    assert flat.domain_S is None


def test_sharper_domains_are_less_alike():
    def likeness(alpha):
        weights = RoutingSpec.parse(f"domains:2:{alpha}").weights_NE(
            256, 8, 1, np.random.default_rng(0)
        )
        return weights[0] @ weights[1] / np.linalg.norm(weights[0]) / np.linalg.norm(weights[1])

    assert likeness(0.2) < likeness(1) < likeness(9)


@pytest.mark.parametrize(
    ("name", "max_over_mean", "rank_imbalance"),
    [
        ("w0", 1.0, 1.0),
        ("w2", 3.25, 3.25),
        ("w3", 1.75, 1.0),
        ("w4", 1.0, 1.0),
        ("w5", 2.0, 2.0),
        ("w6", 3.25, 3.25),
        ("w7", 1.0, 1.0),
        ("w7@3", 2.5, 2.5),
    ],
)
def test_named_skews_isolate_one_thing(name, max_over_mean, rank_imbalance):
    found = counts(name, tokens=20_000)
    assert found.max() / found.mean() == pytest.approx(max_over_mean, abs=0.01)
    assert contiguous_imbalance(found, 4) == pytest.approx(rank_imbalance, abs=0.01)


def test_w1_is_as_hot_as_w2_elsewhere():
    one, two = counts("w1", tokens=20_000), counts("w2", tokens=20_000)
    assert sorted(one) == sorted(two)
    assert contiguous_imbalance(one, 4) < contiguous_imbalance(two, 4)


def test_w4_has_sources_of_different_sizes():
    routing = route(
        RoutingSpec.parse("w4"),
        Gate(),
        num_experts=16,
        top_k=2,
        num_tokens_S=np.full(4, 100),
        seed=0,
    )
    assert routing.num_tokens_S.tolist() == [40, 80, 120, 160]


def test_w6_moves_every_three_steps():
    hot = [
        int(counts(f"w6@{step}", tokens=1000).reshape(4, 16).sum(axis=1).argmax())
        for step in range(15)
    ]
    assert hot == [0] * 3 + [1] * 3 + [2] * 3 + [3] * 3 + [0] * 3


@pytest.mark.parametrize("name", WORKLOADS)
def test_named_skews_fit_few_experts(name):
    assert counts(name, 2, 2, 10).tolist() == [10, 10]


@pytest.mark.parametrize(
    ("text", "cv"),
    [("lognormal:0.5", np.sqrt(np.exp(0.25) - 1)), ("dirichlet:4", 0.5), ("dirichlet:25", 0.2)],
)
def test_drawn_shapes_have_their_spread(text, cv):
    """A log-normal's CV is sqrt(exp(s^2) - 1); of many weights of a Dirichlet, 1 / sqrt(alpha)."""
    assert load_statistics(counts(text, 4096, 1, 10**7))["cv"] == pytest.approx(cv, rel=0.1)


def test_statistics_by_hand():
    assert gini(np.array([1, 1, 1, 1])) == 0
    assert gini(np.array([0, 0, 0, 4])) == 0.75
    assert contiguous_imbalance(np.array([3, 1, 0, 0]), 2) == 2
    ranks = np.arange(1, 65.0)
    assert zipf_exponent(ranks**-0.7) == pytest.approx(0.7, abs=1e-6)
    found = load_statistics(np.array([0, 2, 4, 2]))
    assert (found["max_over_mean"], found["cv"], found["unused_fraction"]) == (
        2,
        pytest.approx(np.sqrt(0.5)),
        0.25,
    )
