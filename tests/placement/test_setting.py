"""Devices that differ, memory, nearest replicas, and what is refused with the number that breaks
the rule.
"""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moesim.errors import CapacityError, ConfigError
from moesim.model import Gate
from moesim.placement import (
    OF_ROUTING,
    Placement,
    PlacementSpec,
    Setting,
    place,
    replica_loads,
)
from moesim.routing import RoutingSpec, route
from moesim.units import GIB


def rank_loads(placement, load_E):
    return np.bincount(
        placement.rank_of_slot_P,
        weights=replica_loads(placement, load_E),
        minlength=placement.num_ranks,
    )


@pytest.mark.parametrize("strategy", ["balanced", "eplb", "hierarchical", "local_search"])
def test_faster_ranks_take_more(strategy):
    """Two of four ranks twice as fast: within 5 % of the 2 : 1 that ends together."""
    load = np.random.default_rng(0).uniform(1, 2, 64)
    placement = place(
        strategy, load, 4, setting=Setting(speed=(1.0, 1.0, 2.0, 2.0), ranks_per_node=2)
    )
    done = rank_loads(placement, load) / np.array([1, 1, 2, 2])
    assert done.max() <= 1.05 * load.sum() / 6
    assert placement.slots_of_rank().sum() == 64


@given(seed=st.integers(0, 2**32 - 1), slack=st.floats(1.3, 3.0))
def test_memory_limits_hold(seed, slack):
    """Small experts carry the load, large ones the bytes."""
    rng = np.random.default_rng(seed)
    size = rng.integers(1, 8, 32).astype(float)
    load = rng.uniform(0, 10, 32)
    setting = Setting(
        expert_bytes=tuple(size), room_bytes=(float(np.ceil(size.sum() * slack / 4)),) * 4
    )
    for strategy in ("balanced", "eplb", "local_search:20"):
        placement = place(strategy, load, 4, setting=setting)
        held = np.bincount(
            placement.rank_of_slot_P, weights=size[placement.expert_of_slot_P], minlength=4
        )
        assert (held <= setting.room_bytes[0]).all()


def test_more_replicas_than_memory():
    setting = Setting(expert_bytes=(GIB,) * 8, room_bytes=(2.0 * GIB,) * 4)
    assert place("eplb", np.arange(8.0), 4, 0, setting=setting).num_slots == 8
    with pytest.raises(CapacityError) as caught:
        place("eplb", np.arange(8.0), 4, 4, setting=setting)
    assert str(caught.value) == (
        "placement: a slot of 1.00 GiB fits on no rank: 12 slots need 12.00 GiB, the 4 ranks "
        "have 8.00, none more than 2.00"
    )
    with pytest.raises(CapacityError) as caught:
        place(
            "eplb",
            np.arange(8.0),
            4,
            setting=Setting(expert_bytes=(GIB,) * 8, room_bytes=(GIB,) * 4),
        )
    assert str(caught.value) == "placement: 8 experts need 8.00 GiB, the 4 ranks have room for 4.00"


def test_nearest_replicas_keep_tokens_in_their_node():
    routing = route(
        RoutingSpec.parse("uniform"),
        Gate(),
        num_experts=8,
        top_k=2,
        num_tokens_S=np.full(4, 64),
        seed=0,
    )
    placement = Placement(
        rank_of_slot_P=np.repeat(np.arange(4), 4),
        expert_of_slot_P=np.tile(np.arange(8), 2),
        num_ranks=4,
        num_experts=8,
        nearest_within=2,
    )
    slot_TK = placement.nearest_slot_of_choice(routing.expert_ids_TK, routing.source_T())
    assert (placement.expert_of_slot_P[slot_TK] == routing.expert_ids_TK).all()
    assert (placement.rank_of_slot_P[slot_TK] // 2 == routing.source_T()[:, None] // 2).all()


@pytest.mark.parametrize(
    ("text", "strategy", "number", "nearest"),
    [
        ("eplb", "eplb", 0.0, False),
        ("random:7", "random", 7.0, False),
        ("local_search", "local_search", 200.0, False),
        ("affinity:0.1/nearest", "affinity", 0.1, True),
        ("eplb/nearest", "eplb", 0.0, True),
    ],
)
def test_placement_text(text, strategy, number, nearest):
    assert PlacementSpec.parse(text) == PlacementSpec(
        strategy=strategy, number=number, nearest=nearest
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("eplb:3", "placement: eplb takes no number, got 'eplb:3'"),
        (
            "random:x",
            "placement: expected 'random' or 'random:SEED' with an integer >= 0, got 'random:x'",
        ),
        (
            "affinity:-1",
            (
                "placement: expected 'affinity' or 'affinity:TOLERANCE' with a number >= 0, got "
                "'affinity:-1'"
            ),
        ),
        ("eplb/far", "placement: expected 'nearest' after the '/', got 'eplb/far'"),
        ("ebpl", "unknown placement 'ebpl': did you mean eplb?"),
    ],
)
def test_wrong_placement_text(text, message):
    with pytest.raises(ConfigError) as caught:
        PlacementSpec.parse(text)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"speed": (1.0,)}, "placement.speed: expected 2 numbers, got 1"),
        ({"ranks_per_node": 3}, "placement: expected ranks divisible by the 3 of a node, got 2"),
    ],
)
def test_settings_of_other_sizes(setting, message):
    with pytest.raises(ConfigError) as caught:
        place("hierarchical", np.ones(4), 2, setting=Setting(**setting))
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"speed": (1.0, 0.0)}, "placement.speed: expected numbers > 0, got 0.0"),
        ({"ranks_per_node": 0}, "placement.ranks_per_node: expected a number >= 1, got 0"),
        ({"room_bytes": (1.0,)}, "placement.room_bytes: expected expert_bytes, too"),
    ],
)
def test_wrong_settings(setting, message):
    with pytest.raises(ConfigError) as caught:
        Setting(**setting)
    assert str(caught.value) == message


@pytest.mark.parametrize("strategy", [s for s in OF_ROUTING if s != "local_search"])
def test_needs_a_routing(strategy):
    with pytest.raises(
        ConfigError, match=f"placement: {strategy} needs a routing, got loads alone"
    ):
        place(strategy, np.ones(4), 2)


def test_plans_are_cached_by_content_and_cannot_be_written():
    load = np.arange(16.0)
    first = place("eplb", load, 4, 4)
    assert place("eplb", load.copy(), 4, 4) is first
    assert place("eplb", load, 4, 4, setting=Setting(copy_work=1.0)) is not first
    with pytest.raises(ValueError, match="read-only"):
        first.expert_of_slot_P[0] = 3


@pytest.mark.parametrize("load", [np.array([1.0, np.nan]), np.array([1.0, -2.0])])
def test_wrong_loads(load):
    with pytest.raises(ConfigError, match=r"placement: expected loads >= 0, got .* for expert 1"):
        place("eplb", load, 2)
