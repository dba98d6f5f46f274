"""Local search against the integer program's optimum and against its bound."""

import numpy as np
import pytest

from moesim.errors import CapacityError, ConfigError
from moesim.placement import Setting, place, replica_loads
from moesim.placement.exact import exact_slots


def busiest(placement, load_E, speed_W=1.0):
    loads = np.bincount(
        placement.rank_of_slot_P,
        weights=replica_loads(placement, load_E),
        minlength=placement.num_ranks,
    )
    return (loads / speed_W).max()


@pytest.mark.parametrize(
    ("experts", "ranks", "replicas"), [(8, 2, 0), (8, 4, 0), (12, 3, 3), (10, 5, 5), (16, 4, 0)]
)
@pytest.mark.parametrize("seed", [0, 1])
def test_local_search_is_within_2_percent_of_the_optimum(experts, ranks, replicas, seed):
    load = np.random.default_rng(seed).lognormal(0, 1, experts).round(2)
    found = exact_slots(load, ranks, replicas, Setting(), seconds=0.5)
    searched = busiest(place("local_search", load, ranks, replicas), load)
    assert searched <= 1.02 * found.makespan
    assert searched >= found.bound * (1 - 1e-6)
    assert found.bound <= found.makespan * (1 + 1e-6)


def test_exact_by_hand():
    """8 + 5 + 3 + 2 = 7 + 6 + 4 + 1 = 18."""
    load = np.array([8.0, 7, 6, 5, 4, 3, 2, 1])
    found = exact_slots(load, 2, 0, Setting())
    assert found.optimal
    assert found.makespan == pytest.approx(18.0)
    assert np.bincount(found.rank_P).tolist() == [4, 4]


def test_exact_replicates_and_counts_speed():
    """One hot expert: two copies halve it; a rank of speed 3 takes three quarters of
    equal experts.
    """
    found = exact_slots(np.array([10.0, 1, 1, 0]), 2, 2, Setting())
    assert found.makespan == pytest.approx(6.0)
    fast = exact_slots(np.ones(8), 2, 0, Setting(speed=(1.0, 3.0)))
    assert np.bincount(fast.rank_P, minlength=2).tolist() == [2, 6]


def test_exact_honours_memory():
    setting = Setting(expert_bytes=(4.0, 1, 1, 1), room_bytes=(5.0, 2.0))
    found = exact_slots(np.array([1.0, 9, 1, 1]), 2, 0, setting)
    assert found.rank_P[found.expert_P == 0].tolist() == [0]
    with pytest.raises(
        CapacityError, match=r"no placement of 4 \+ 0 slots on 2 ranks fits in memory"
    ):
        exact_slots(
            np.ones(4), 2, 0, Setting(expert_bytes=(4.0, 4.0, 4.0, 1.0), room_bytes=(7.0, 6.0))
        )


def test_exact_refuses_large_cases():
    with pytest.raises(ConfigError, match=r"up to 20000, got 1064960"):
        place("exact", np.ones(256), 64, 64)


def test_search_never_loses_to_its_starts():
    for seed in range(30):
        load = np.random.default_rng(seed).lognormal(0, 1.2, 32)
        eplb = busiest(place("eplb", load, 8, 8), load)
        assert busiest(place("local_search:50", load, 8, 8), load) <= eplb * (1 + 1e-12)
