"""Distributions of load: exact sums, caps, and the definitions they claim."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import kstest

from moesim.errors import ConfigError
from moesim.routing import RoutingSpec
from moesim.routing.apportion import apportion
from moesim.routing.measured import PRESETS
from moesim.routing.shapes import truncated_power_law
from moesim.routing.workloads import WORKLOADS

SPECS = [
    "uniform",
    "zipf:0.5",
    "zipf:1",
    "zipf:3",
    "power_law:0.6",
    "power_law:1",
    "power_law:1.2",
    "power_law:4",
    "lognormal:1",
    "lognormal:4",
    "dirichlet:0.05",
    "dirichlet:2",
    "domains:3:0.5",
    *WORKLOADS,
    *PRESETS,
    "zipf:1+drift:0.5@7",
    "olmoe-mix+burst:3:10@2",
]


def rng(seed=0):
    return np.random.default_rng(seed)


@pytest.mark.parametrize(
    "text",
    [
        *SPECS,
        "olmoe-c4:15",
        "mixtral-domains:31",
        "w6@5",
        "trace:a/b.npy",
        "trace:x#y.npy#3",
        "zipf:1+drift:0.1+burst:2:4@9",
    ],
)
def test_specs_print_as_they_are_read(text):
    assert str(RoutingSpec.parse(text)) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "zipf",
        "zipf:",
        "zipf:0",
        "zipf:-1",
        "zipf:x",
        "zipf:nan",
        "zipf:inf",
        "power_law:inf",
        "uniform:1",
        "w8",
        "w1:1",
        "lognormal:-1",
        "domains:0:1",
        "domains:2",
        "domains:2000:1",
        "olmoe-c4:3",
        "olmoe",
        "trace:",
        "uniform@",
        "uniform@-1",
        "uniform@x",
        "zipf:1+drift:2",
        "zipf:1+drift:0",
        "zipf:1+drift:.1+drift:.1",
        "zipf:1+burst:3",
        "zipf:1+burst:0:2",
        "zipf:1+noise:1",
        "uniform@1000000",
        "Uniform",
        "powerlaw:1",
        "zipf:1:2",
    ],
)
def test_wrong_specs(text):
    with pytest.raises(ConfigError) as caught:
        RoutingSpec.parse(text)
    assert str(caught.value).startswith(
        "routing: expected 'uniform', 'zipf:ALPHA', 'power_law:ALPHA', "
    )
    assert str(caught.value).endswith(f", got {text!r}")


@given(
    spec=st.sampled_from(SPECS),
    experts=st.integers(1, 300),
    tokens=st.integers(1, 5000),
    data=st.data(),
)
def test_loads_sum_to_all_choices_and_none_exceeds_the_tokens(spec, experts, tokens, data):
    top_k = data.draw(st.integers(1, min(experts, 16)))
    loads = RoutingSpec.parse(spec).loads(
        experts, top_k, tokens, rng(data.draw(st.integers(0, 99)))
    )
    assert loads.shape == (experts,)
    assert loads.dtype == np.int64
    assert loads.sum() == tokens * top_k
    assert 0 <= loads.min() <= loads.max() <= tokens


@given(experts=st.integers(1, 300), tokens=st.integers(1, 5000))
def test_uniform_loads_differ_by_one_at_most(experts, tokens):
    loads = RoutingSpec.parse("uniform").loads(experts, 1, tokens, rng())
    assert loads.max() - loads.min() <= 1


@pytest.mark.parametrize("alpha", [0.5, 0.8, 1.0])
def test_zipf_is_rank_to_the_minus_alpha(alpha):
    """Within rounding, where no expert is at its cap; which experts are hot is the seed's."""
    tokens, experts, top_k = 200_000, 64, 2
    loads = RoutingSpec.parse(f"zipf:{alpha}").loads(experts, top_k, tokens, rng(3))
    weight = np.arange(1, experts + 1) ** -alpha
    assert weight[0] / weight.sum() * top_k < 1, "capped"
    assert np.abs(np.sort(loads)[::-1] - weight / weight.sum() * tokens * top_k).max() < 2
    other = RoutingSpec.parse(f"zipf:{alpha}").loads(experts, top_k, tokens, rng(4))
    assert sorted(other) == sorted(loads)
    assert other.tolist() != loads.tolist()


@pytest.mark.parametrize("alpha", [0.5, 1.0, 1.2, 3.0])
@pytest.mark.parametrize(("low", "high"), [(1.0, 800.0), (0.01, 2.0)])
def test_power_law_weights_have_that_density(alpha, low, high):
    """Kolmogorov-Smirnov against the distribution function of density ~ x^-alpha on [low, high],
    written anew.
    """
    drawn = truncated_power_law(alpha, low, high, rng(1).random(20_000))

    def cumulative(x):
        if alpha == 1.0:
            return np.log(x / low) / np.log(high / low)
        return (x ** (1 - alpha) - low ** (1 - alpha)) / (high ** (1 - alpha) - low ** (1 - alpha))

    assert low <= drawn.min() <= drawn.max() <= high
    assert kstest(drawn, cumulative).pvalue > 0.01


def test_power_law_is_continuous_at_exponent_one():
    u = rng().random(100)
    assert truncated_power_law(1.0, 1.0, 100.0, u) == pytest.approx(
        truncated_power_law(1.0 + 1e-6, 1.0, 100.0, u), rel=1e-4
    )


@pytest.mark.parametrize(
    ("tokens", "top_k", "low", "high"), [(10_000, 1, 1.0, 8000.0), (8, 4, 0.01, 2.0)]
)
def test_power_law_loads_are_in_proportion_to_such_weights(tokens, top_k, low, high):
    """From 1 to 0.8 T where there are more choices than experts, else from 0.01 to 2: as the
    measured data has it.
    """
    experts, alpha = 64, 1.2
    loads = RoutingSpec.parse(f"power_law:{alpha}").loads(experts, top_k, tokens, rng(7))
    u = rng(7).random(experts)
    weight = ((high ** (1 - alpha) - low ** (1 - alpha)) * u + low ** (1 - alpha)) ** (
        1 / (1 - alpha)
    )
    share = weight / weight.sum() * tokens * top_k
    assert share.max() < tokens, "capped"
    assert np.abs(loads - share).max() < 2


def test_a_larger_exponent_skews_more():
    def imbalance(spec):
        loads = [RoutingSpec.parse(spec).loads(128, 8, 8192, rng(seed)) for seed in range(20)]
        return np.mean([x.max() / x.mean() for x in loads])

    for kind, alphas in (("zipf", (0.2, 0.5, 0.8)), ("power_law", (0.6, 1.2, 2.0))):
        values = [imbalance(f"{kind}:{alpha}") for alpha in alphas]
        assert 1.0 < values[0] < values[1] < values[2], kind


@given(
    weights=st.lists(st.floats(0.0, 1e6), min_size=1, max_size=60).filter(lambda w: sum(w) > 0),
    data=st.data(),
)
def test_apportion_meets_sum_and_cap_and_keeps_the_order(weights, data):
    cap = data.draw(st.integers(1, 1000))
    total = data.draw(st.integers(0, cap * len(weights)))
    weight = np.array(weights)
    counts = apportion(weight, total, cap)
    assert counts.sum() == total
    assert 0 <= counts.min() <= counts.max() <= cap
    order = np.argsort(-weight, kind="stable")
    assert (np.diff(counts[order]) <= 1).all(), (
        "a lighter expert has more than a heavier one, beyond rounding"
    )


@given(weights=st.lists(st.floats(0.01, 1e4), min_size=1, max_size=60), data=st.data())
def test_apportion_gives_to_the_least_loaded_and_takes_from_the_most(weights, data):
    weight, cap = np.array(weights), data.draw(st.integers(1, 500))
    total = data.draw(st.integers(0, cap * len(weights)))
    rounded = np.minimum(np.rint(weight / weight.sum() * total), cap)
    counts = apportion(weight, total, cap)
    gain = counts - rounded
    assert not ((gain > 0).any() and (gain < 0).any())
    lighter = (rounded[:, None] < rounded) & (counts < cap)[:, None]  # and not full
    assert (gain[:, None] >= gain)[lighter].all()


def test_apportion_refuses_what_cannot_fit():
    with pytest.raises(
        ConfigError, match=r"^cannot give 7 choices to 3 experts of at most 2 each$"
    ):
        apportion(np.ones(3), 7, 2)


def test_a_stale_plan_changes_no_token_and_forgets_the_loads_it_meets():
    fresh, stale = RoutingSpec.parse("power_law:1.2"), RoutingSpec.parse("power_law:1.2+stale:0.5")
    assert str(stale) == "power_law:1.2+stale:0.5"
    assert RoutingSpec.parse(str(stale)) == stale
    drawn = [spec.loads(64, 4, 4096, np.random.default_rng(3)) for spec in (fresh, stale)]
    assert np.array_equal(*drawn)
    load_E = np.linspace(1.0, 9.0, 4096)
    assert fresh.planned_E(load_E, 0) is load_E
    planned_E = stale.planned_E(load_E, 0)
    assert np.array_equal(planned_E, stale.planned_E(load_E, 0))
    assert np.log(planned_E / load_E).std() == pytest.approx(0.5, rel=0.05)
