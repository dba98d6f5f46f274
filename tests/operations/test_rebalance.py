"""Re-balancing on a cluster: what moves, how long, and when it has paid back."""

from dataclasses import replace

import numpy as np
import pytest

from moesim import Workload, load_cluster, load_preset
from moesim.errors import ConfigError
from moesim.operations.rebalance import Rebalance, migration_s, rebalance, rebalanced
from moesim.simulation.prepare import prepare

WORK = Workload(num_tokens_per_device=256, routing="zipf:0.8+drift:0.1")


def test_migration_is_bytes_over_the_fabric(hgx):
    """One rank sends 45 GB to another over NVLink at 450 GB/s: 0.1 s; in shares of two devices half
    of it.
    """
    moved = np.zeros((8, 8))
    moved[0, 1] = 45e9
    assert migration_s(hgx, moved) == pytest.approx(0.1, rel=1e-3)
    assert migration_s(hgx, moved[:4, :4], tp=2) == pytest.approx(0.05, rel=1e-3)
    assert migration_s(hgx, np.zeros((8, 8))) == 0.0


def test_payback_by_hand():
    move = Rebalance(before_s=3.0, after_s=2.0, moved_bytes=1.0, migration_s=20.0, num_layers=10)
    assert move.payback_passes == pytest.approx(2.0)
    assert move.row()["payback_s"] == pytest.approx(2.0 * 2.0 * 10)
    assert replace(move, after_s=3.5).payback_passes == float("inf")
    assert replace(move, after_s=3.5, migration_s=0.0).payback_passes == 0.0


def test_a_new_plan_for_a_workload_that_drifted(hgx, make_candidate):
    dense = load_preset("qwen3-30b-a3b").dense_part
    candidate = make_candidate(
        hidden_size=2048,
        num_experts=64,
        top_k=4,
        placement="eplb",
        num_replicas=8,
        dense_part=dense,
    )
    now = replace(WORK, routing=WORK.routing + "@20")
    old = prepare(candidate, hgx, WORK).placement
    move = rebalance(candidate, hgx, now, old)
    assert move.after_s < move.before_s
    assert move.num_layers == dense.num_moe_layers
    assert 0 < move.moved_bytes <= 72 * candidate.layer.bytes_per_expert * dense.num_moe_layers
    assert 0 < move.payback_passes < float("inf")
    nothing = rebalance(candidate, hgx, now, old, old)
    assert (nothing.moved_bytes, nothing.migration_s, nothing.payback_passes) == (0.0, 0.0, 0.0)
    # within nodes first: on a rail the same move takes longer
    rail = load_cluster("h100-rail-8x8").with_(num_nodes=4, devices_per_node=2)
    assert rebalance(candidate, rail, now, old).migration_s > move.migration_s


def test_plans_renewed_step_by_step(hgx, make_candidate):
    candidate = make_candidate(num_experts=64, top_k=4, placement="eplb", num_replicas=8)
    rows = rebalanced(candidate, hgx, WORK, range(6), every=2, passes_per_step=1e6)
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5]
    assert [row["moved_gib"] > 0 for row in rows] == [False, False, True, False, True]
    assert all(row["with_migration_us"] >= row["layer_time_us"] for row in rows)
    kept = rebalanced(candidate, hgx, WORK, range(3), every=0, passes_per_step=1)
    assert all(row["layer_time_us"] == row["first_plan_us"] for row in kept)


def test_wrong_steps(hgx, make_candidate):
    with pytest.raises(
        ConfigError, match="expected a routing without '@STEP' and at least two steps"
    ):
        rebalanced(make_candidate(), hgx, WORK, [0], every=1, passes_per_step=1)
