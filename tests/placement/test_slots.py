"""Slots: who holds what, and how replicas share the tokens of their expert."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moesim.errors import ConfigError
from moesim.model import Gate
from moesim.placement import Placement, place, replica_loads
from moesim.routing import RoutingSpec, route


@given(ranks=st.sampled_from([2, 4, 8]), extra=st.integers(0, 3), seed=st.integers(0, 2**31))
def test_every_choice_goes_to_a_slot_of_its_expert_and_replicas_share_evenly(ranks, extra, seed):
    """In turn: two replicas of an expert never differ by more than one token."""
    routing = route(
        RoutingSpec.parse("zipf:0.9"),
        Gate(),
        num_experts=16,
        top_k=3,
        num_tokens_S=np.full(ranks, 50),
        seed=seed,
    )
    loads = routing.num_tokens_E()
    placement = place("eplb", loads, ranks, ranks * extra)
    slot_TK = placement.slot_of_choice(routing.expert_ids_TK)
    assert (placement.expert_of_slot_P[slot_TK] == routing.expert_ids_TK).all()
    counts_P = np.bincount(slot_TK.ravel(), minlength=placement.num_slots)
    assert counts_P.sum() == routing.expert_ids_TK.size
    assert np.abs(counts_P - replica_loads(placement, loads)).max() < 1.0


def test_without_replicas_a_slot_is_an_expert_moved():
    placement = Placement(
        rank_of_slot_P=np.array([0, 0, 1, 1]),
        expert_of_slot_P=np.array([3, 1, 0, 2]),
        num_ranks=2,
        num_experts=4,
    )
    assert placement.slot_of_choice(np.array([[0, 1], [3, 2]])).tolist() == [[2, 1], [0, 3]]
    assert (placement.num_slots, placement.slots_of_rank().tolist()) == (4, [2, 2])


def test_ranks_may_hold_unequally_many():
    placement = Placement(
        rank_of_slot_P=np.array([0, 1, 1, 1]),
        expert_of_slot_P=np.arange(4),
        num_ranks=3,
        num_experts=4,
    )
    assert placement.slots_of_rank().tolist() == [1, 3, 0]


def test_replica_loads_by_hand():
    placement = Placement(
        rank_of_slot_P=np.array([0, 0, 1]),
        expert_of_slot_P=np.array([0, 1, 0]),
        num_ranks=2,
        num_experts=2,
    )
    assert replica_loads(placement, np.array([10, 3])).tolist() == [5.0, 3.0, 5.0]


@pytest.mark.parametrize(
    ("devices", "experts", "message"),
    [
        ([0, 1], [0, 0], "placement: expected every expert in a slot, expert 1 has none"),
        ([0, 2], [0, 1], "placement: expected ranks below 2, got 2"),
        ([-1, 0], [0, 1], "placement: expected ranks below 2, got -1"),
        ([1, 0], [0, 1], "placement: expected slots in order of their ranks, got rank 0 after 1"),
    ],
)
def test_wrong_placements(devices, experts, message):
    with pytest.raises(ConfigError) as caught:
        Placement(
            rank_of_slot_P=np.array(devices),
            expert_of_slot_P=np.array(experts),
            num_ranks=2,
            num_experts=2,
        )
    assert str(caught.value) == message
