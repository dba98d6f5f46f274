"""Layers that follow one another, and steps of a workload that changes."""

import numpy as np
import pytest

from moesim.errors import ConfigError
from moesim.model import Gate
from moesim.routing import RoutingSpec, route_layers, route_steps
from moesim.routing.statistics import shared_information


def layers(affinity, gate="flat", num_layers=2, spec="olmoe-c4", seed=0):
    return route_layers(
        RoutingSpec.parse(spec),
        Gate.parse(gate),
        num_layers=num_layers,
        affinity=affinity,
        num_experts=64,
        top_k=8,
        num_tokens_S=np.full(4, 5000),
        seed=seed,
    )


def information(affinity):
    one, two = layers(affinity)
    return shared_information(one.expert_ids_TK, two.expert_ids_TK, 64)


def test_affinity_sets_what_a_layer_tells_about_the_next():
    found = [information(affinity) for affinity in (0.0, 0.5, 0.9, 1.0)]
    assert found[0] < 0.01
    assert found == sorted(found)
    assert found[-1] > 0.2, "as much as was measured in OLMoE, and more"


@pytest.mark.parametrize("gate", ["flat", "group_limited:8:4"])
@pytest.mark.parametrize("affinity", [0.3, 1.0])
def test_following_tokens_keep_experts_apart_and_groups_limited(gate, affinity):
    for routing in layers(affinity, gate, num_layers=3, spec="zipf:0.6"):
        ids = routing.expert_ids_TK
        assert (np.diff(np.sort(ids, axis=1), axis=1) > 0).all()
        if gate != "flat":
            assert max(len(set(row)) for row in (ids // 8).tolist()) <= 4
        counts = np.sort(routing.num_tokens_E())[::-1]
        drawn = np.sort(layers(0.0, gate, spec="zipf:0.6")[1].num_tokens_E())[::-1]
        assert counts[:8].sum() == pytest.approx(drawn[:8].sum(), rel=0.1)


def test_layers_that_share_a_decision_choose_alike():
    found = layers(0.0, "flat+share_layers:2", num_layers=5)
    assert [found[layer] is found[layer - 1] for layer in range(1, 5)] == [True, False, True, False]


def steps(spec, which, seed=0):
    return [
        r.num_tokens_E()
        for r in route_steps(
            RoutingSpec.parse(spec),
            Gate(),
            which,
            num_experts=64,
            top_k=2,
            num_tokens_S=np.array([10_000]),
            seed=seed,
        )
    ]


def test_drift_keeps_the_skew_and_changes_who_is_hot():
    now, soon, late = steps("zipf:0.8+drift:0.1", (0, 1, 50))
    assert sorted(now) == sorted(soon) == sorted(late)
    assert 2 <= (now != soon).sum() <= 8
    assert np.corrcoef(now, soon)[0, 1] > 0.3 > np.corrcoef(now, late)[0, 1]
    assert steps("zipf:0.8", (0,))[0].tolist() == now.tolist()


def test_bursts_are_others_in_each_step():
    base = steps("uniform", (0,))[0]
    hot = [
        np.flatnonzero(found > 2 * base.mean()).tolist()
        for found in steps("uniform+burst:3:5", range(6))
    ]
    assert all(len(which) == 3 for which in hot)
    assert len({tuple(which) for which in hot}) > 4


def test_same_seed_same_steps():
    for spec in ("lognormal:1+drift:0.2+burst:2:3", "domains:3:0.5+drift:0.5"):
        one, two, other = steps(spec, (4,)), steps(spec, (3, 4))[1:], steps(spec, (4,), seed=1)
        assert one[0].tolist() == two[0].tolist() != other[0].tolist()


def test_wrong_numbers():
    with pytest.raises(ConfigError, match=r"^affinity: expected a number from 0 to 1, got 1.5$"):
        layers(1.5)
    with pytest.raises(ConfigError, match=r"^step: expected from 0 to 100000, got -1$"):
        steps("uniform", (-1,))
