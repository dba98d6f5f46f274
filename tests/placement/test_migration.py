"""Moves between placements, and plans on the past: bytes by hand, conservation, and what
is gained.
"""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moesim.errors import ConfigError
from moesim.placement import Placement, place
from moesim.placement.migration import forecast, imbalance, migration_bytes, predict, renamed


def placed(*ranks):
    experts_P = [e for rank in ranks for e in rank]
    return Placement(
        rank_of_slot_P=np.repeat(np.arange(len(ranks)), [len(r) for r in ranks]),
        expert_of_slot_P=np.array(experts_P),
        num_ranks=len(ranks),
        num_experts=max(experts_P) + 1,
    )


def test_bytes_by_hand():
    """Rank 1 fetches expert 0 from rank 0; rank 3 expert 2 from its own node's rank 2, not from
    rank 1.
    """
    old = placed([0, 1], [1, 2], [2, 3], [3, 0])
    new = placed([0, 1], [1, 0], [2, 3], [3, 2])
    moved = migration_bytes(old, new, np.array([10.0, 20, 30, 40]), ranks_per_node=2)
    assert moved.nonzero() == (pytest.approx([0, 2]), pytest.approx([1, 3]))
    assert (moved[0, 1], moved[2, 3]) == (10.0, 30.0)


@given(seed=st.integers(0, 2**32 - 1), ranks=st.sampled_from([2, 4, 8]), extra=st.integers(0, 2))
def test_every_missing_expert_arrives_once_from_a_holder(seed, ranks, extra):
    rng = np.random.default_rng(seed)
    old, new = (
        place("eplb", rng.integers(1, 100, ranks * 3), ranks, ranks * extra) for _ in range(2)
    )
    size = rng.integers(1, 5, ranks * 3).astype(float)
    moved = migration_bytes(old, new, size)
    for rank in range(ranks):
        had, wants = (
            set(p.expert_of_slot_P[p.rank_of_slot_P == rank].tolist()) for p in (old, new)
        )
        assert moved[:, rank].sum() == pytest.approx(sum(size[e] for e in wants - had))
    assert (np.diag(moved) == 0).all()
    assert migration_bytes(old, old, size).sum() == 0


@given(seed=st.integers(0, 2**32 - 1), nodes=st.sampled_from([1, 2]))
def test_renaming_moves_less_and_keeps_the_plan(seed, nodes):
    rng = np.random.default_rng(seed)
    load = rng.lognormal(0, 1, 32)
    old, new = place("eplb", load, 4, 4), place("eplb", load * rng.uniform(0.9, 1.1, 32), 4, 4)
    found = renamed(old, new, 4 // nodes)
    size = np.ones(32)
    assert migration_bytes(old, found, size).sum() <= migration_bytes(old, new, size).sum()
    assert imbalance(found, load) == pytest.approx(imbalance(new, load))
    kinds = [
        sorted(tuple(sorted(p.expert_of_slot_P[p.rank_of_slot_P == r].tolist())) for r in range(4))
        for p in (new, found)
    ]
    assert kinds[0] == kinds[1]


def test_renaming_finds_a_mere_exchange_of_ranks():
    old, new = placed([0, 1], [2, 3], [4, 5], [6, 7]), placed([6, 7], [4, 5], [2, 3], [0, 1])
    assert migration_bytes(old, renamed(old, new, 2), np.ones(8)).sum() == 0


def test_imbalance_counts_speed():
    assert imbalance(placed([0, 1], [2, 3]), np.array([1, 1, 3, 3])) == pytest.approx(1.5)
    assert imbalance(
        placed([0, 1], [2, 3]), np.array([1, 1, 3, 3]), np.array([1.0, 3.0])
    ) == pytest.approx(1.0)


def test_prediction_by_hand():
    past = np.array([[8.0, 0], [2, 4], [4, 8]])
    assert predict(past).tolist() == [4, 8]
    assert predict(past, window=2).tolist() == [3, 6]
    assert predict(past, window=2, decay=0.5).tolist() == pytest.approx([10 / 3, 20 / 3])


def test_forecast_of_a_workload_that_drifts():
    """New plans follow slow drift; a plan kept for ever falls behind; knowing the window
    is best.
    """
    rng = np.random.default_rng(0)
    load = rng.lognormal(0, 1, 64)
    windows = []
    for _ in range(30):
        windows.append(load.copy())
        i, j = rng.integers(64, size=2)
        load[[i, j]] = load[[j, i]]
    rows = forecast(np.array(windows), lambda load: place("eplb", load, 8, 8))
    late = rows[-10:]
    mean = {key: np.mean([row[key] for row in late]) for key in rows[0]}
    assert mean["imbalance_known"] <= mean["imbalance"] < mean["imbalance_first"]
    assert 0 < mean["moved_experts"] < 72
    kept = forecast(np.array(windows), lambda load: place("eplb", load, 8, 8), every=100)
    assert all(
        row["imbalance"] == row["imbalance_first"] and row["moved_experts"] == 0 for row in kept
    )


def test_wrong_moves_and_forecasts():
    with pytest.raises(ConfigError, match="expected 4 experts on 2 ranks as before, got 6 on 2"):
        migration_bytes(placed([0, 1], [2, 3]), placed([0, 1, 2], [3, 4, 5]), np.ones(4))
    with pytest.raises(ConfigError, match="expected two windows"):
        forecast(np.ones((1, 4)), lambda load: place("eplb", load, 2))
