"""Affinity: experts chosen together meet, experts follow their tokens, and balance stays within the
tolerance.
"""

import numpy as np
import pytest

from moesim.errors import ConfigError
from moesim.placement import Setting, place
from moesim.placement.affinity import (
    MOST_EXPERTS,
    attracted,
    coactivation,
    place_layers,
    source_pull,
    stay_fraction,
    transitions,
)
from moesim.routing import Routing


def clustered(seed=0, tokens=400, experts=16, cluster=4):
    """Every token chooses two experts of one cluster; clusters are scattered over the experts'
    numbers.
    """
    rng = np.random.default_rng(seed)
    members = rng.permutation(experts).reshape(-1, cluster)
    which = np.arange(tokens) % len(members)
    ids = np.stack([rng.permuted(np.arange(cluster))[:2] for _ in range(tokens)])
    return members[which[:, None], ids].astype(np.int32), members, which


def copies(placement, ids_TK):
    """Distinct ranks of each token, on average."""
    ranks = np.sort(placement.rank_of_slot_P[placement.slot_of_choice(ids_TK)], axis=1)
    return float((1 + (np.diff(ranks, axis=1) != 0).sum(axis=1)).mean())


def test_coactivation_by_hand():
    assert coactivation(np.array([[0, 1], [0, 2], [1, 0]]), 3).tolist() == [
        [0, 2, 1],
        [2, 0, 0],
        [1, 0, 0],
    ]


def test_transitions_by_hand():
    assert transitions(np.array([[0], [1], [1]]), np.array([[1], [0], [0]]), 2).tolist() == [
        [0, 1],
        [2, 0],
    ]


def test_clusters_come_together_and_ranks_stay_balanced():
    ids, _, _ = clustered()
    routing = Routing(expert_ids_TK=ids, num_tokens_S=np.full(4, 100), num_experts=16)
    load = routing.num_tokens_E()
    found, balanced = (place(s, load, 4, routing=routing) for s in ("affinity:0.2", "balanced"))
    assert copies(found, ids) < 1.15 < copies(balanced, ids)
    assert (
        np.bincount(found.rank_of_slot_P, weights=load[found.expert_of_slot_P]).max()
        <= 1.2 * load.sum() / 4
    )
    searched = place("local_search", load, 4, routing=routing, setting=Setting(copy_work=1.0))
    assert copies(searched, ids) < 1.15


def test_nodes_attract_before_ranks():
    """A cluster larger than a rank stays in its node."""
    ids, _, _ = clustered(cluster=8)
    routing = Routing(expert_ids_TK=ids, num_tokens_S=np.full(4, 100), num_experts=16)
    found = place(
        "affinity:0.3",
        routing.num_tokens_E(),
        4,
        routing=routing,
        setting=Setting(ranks_per_node=2),
    )
    node_E = np.zeros(16, dtype=int)
    node_E[found.expert_of_slot_P] = found.rank_of_slot_P // 2
    crossing = (node_E[ids[:, 0]] != node_E[ids[:, 1]]).mean()
    assert crossing < 0.1


def test_domains_are_served_at_home():
    """Each of four sources uses its own experts: all tokens stay, where expert order sends three
    quarters away.
    """
    ids, _, which = clustered()
    order = np.argsort(which, kind="stable")
    routing = Routing(expert_ids_TK=ids[order], num_tokens_S=np.full(4, 100), num_experts=16)
    load = routing.num_tokens_E()

    def at_home(placement):
        return (
            placement.rank_of_slot_P[placement.slot_of_choice(routing.expert_ids_TK)]
            == routing.source_T()[:, None]
        ).mean()

    assert at_home(place("domain:0.3", load, 4, routing=routing)) > 0.95
    assert at_home(place("contiguous", load, 4)) < 0.5


def test_pull_of_ranks_of_two_devices():
    assert source_pull(np.array([[1, 0], [2, 0], [0, 5], [0, 0]]), 2, tp=2).tolist() == [
        [3, 0],
        [0, 5],
    ]


def test_copies_of_an_expert_avoid_each_other():
    pair = np.zeros((4, 4))
    expert_P, rank_P = attracted(
        np.array([3.5, 1, 1, 1]), 4, 4, Setting(), tolerance=0.5, pair_EE=pair
    )
    own = rank_P[expert_P == 0]
    assert len(set(own.tolist())) == len(own) == 4


def test_layers_follow_each_other():
    """Tokens of one cluster choose the same cluster, renumbered, in the next layer."""
    ids, _, _ = clustered()
    renumbered = np.random.default_rng(1).permutation(16)
    layers = [ids, renumbered[ids], ids]
    found = place_layers(layers, 16, 4, tolerance=0.2)
    plain = [place("contiguous", np.ones(16), 4)] * 3
    moves = transitions(layers[0], layers[1], 16)
    assert stay_fraction(found[0], found[1], moves) > 0.9
    assert stay_fraction(plain[0], plain[1], moves) < 0.4
    assert stay_fraction(plain[0], plain[1], moves, ranks_per_node=4) == pytest.approx(1.0)


def test_too_many_experts_and_layers_of_other_tokens():
    with pytest.raises(
        ConfigError, match=f"at most {MOST_EXPERTS} experts, got {MOST_EXPERTS + 1}"
    ):
        coactivation(np.zeros((1, 2), dtype=int), MOST_EXPERTS + 1)
    with pytest.raises(ConfigError, match="expected the same tokens in both layers, got 1 and 2"):
        transitions(np.zeros((1, 1), dtype=int), np.zeros((2, 1), dtype=int), 4)
