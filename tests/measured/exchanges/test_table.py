"""Measured exchanges: what is read, what may be fitted, and what one row asks of a kernel."""

import math

import numpy as np
import pandas as pd
import pytest

from moesim.measured.exchanges.batches import balanced_copies, distinct_ranks
from moesim.measured.exchanges.fit import (
    FitQuantity,
    fitted_rows,
    in_quadrature,
    release_spread,
    residual,
    spread,
    symmetric_spread,
)
from moesim.measured.exchanges.scoreboard import measured_comm_rows
from moesim.measured.exchanges.table import (
    COLUMNS,
    MEASURED,
    few_shot_rows,
    load_family,
    may_fit,
    systems,
    was_shot,
)
from moesim.measured.kernels import table as silicon

installed = pytest.mark.skipif(
    silicon.unavailable_because() is not None, reason="extra silicon not installed"
)


def test_systems_have_a_profile_and_ports():
    for name, system in systems().items():
        assert system.profile.num_sms > 0, name
        assert system.near_bytes_per_s > 0, name
        assert system.ranks_per_domain >= system.ranks_per_node, name
    assert systems()["h100_sxm"].ports(16).num_ranks == 16


@installed
@pytest.mark.parametrize("family", list(COLUMNS))
def test_rows_of_every_family(family):
    rows = load_family(family)
    assert set(COLUMNS[family]) | set(MEASURED[family]) <= set(rows.columns)
    assert not rows.duplicated(["system", "dataset", *COLUMNS[family]]).any()
    assert (rows[list(MEASURED[family])] > 0).all().all()


@installed
@pytest.mark.parametrize("family", list(COLUMNS))
def test_forbidden_rows_are_never_fitted(family):
    chosen = fitted_rows(family)
    allowed = {"nccl": {"a100_sxm", "h100_sxm"}, "nvl72_alltoall": {"gb200"}}.get(
        family, {"h100_sxm"}
    )
    assert set(chosen["system"]) == allowed
    if family.startswith("deepep"):
        assert not set(chosen["num_topk"]) & {1, 2, 22}
        assert set(chosen["node_num"]) == {1, 2}
    if family == "nvl72_alltoall":
        assert set(chosen["moe_ep_size"]) == {4, 8, 16}


def test_few_shot_rows_are_ten_of_each_and_known_again():
    rows = few_shot_rows()
    assert rows.groupby("system").size().to_dict() == {"b200_sxm": 10, "b300_sxm": 10, "gb200": 10}
    assert was_shot(rows).all()
    assert not was_shot(rows.assign(system="h200_sxm")).any()
    assert not may_fit(rows).any()


@installed
def test_copied_files_count_as_fitted():
    """H200's DeepEP rows of sglang 0.5.6.post2 are H100's to the last digit: no test of a
    prediction for H200.
    """
    rows = measured_comm_rows()
    copied = rows[(rows["system"] == "h200_sxm") & (rows["dataset"] == "sglang/0.5.6.post2")]
    assert len(copied) == 437 + 95
    assert copied["fitted"].all()
    free = rows[(rows["system"] == "h200_sxm") & (rows["dataset"] != "sglang/0.5.6.post2")]
    assert not free["fitted"].any()


def test_distinct_ranks_by_hand():
    """4 ranks of 2 experts, 2 choices: the first hits one rank, the second another with 6 of 7."""
    assert distinct_ranks(8, 2, 4) == pytest.approx(1 + 6 / 7)
    assert distinct_ranks(8, 8, 4) == pytest.approx(4)
    assert distinct_ranks(8, 1, 8) == pytest.approx(1)
    assert distinct_ranks(8, 3, 1) == pytest.approx(1)


def test_distinct_ranks_as_drawn():
    rng = np.random.default_rng(0)
    draws = np.array([len(set(rng.choice(64, 6, replace=False) // 8)) for _ in range(4000)])
    assert distinct_ranks(64, 6, 8) == pytest.approx(draws.mean(), rel=0.01)


def test_balanced_copies_by_hand():
    assert balanced_copies(256, 8, 4) == (4.0, 3.0)
    assert balanced_copies(256, 8, 8) == (8.0, 7.0)
    assert balanced_copies(256, 8, 64) == (8.0, 8 * 63 / 64)
    assert balanced_copies(256, 8, 1) == (1.0, 0.0)


def test_spreads():
    assert spread(np.linspace(0.9, 1.1, 101)) == pytest.approx((0.92, 1.08))
    low, high = symmetric_spread(np.exp(np.linspace(-1.0, 0.0, 101)))
    assert (low, high) == pytest.approx((math.exp(-0.8), math.exp(0.8)))
    assert in_quadrature((math.exp(-0.3), math.exp(0.3)), (math.exp(-0.4), 1.0)) == pytest.approx(
        (math.exp(-0.5), math.exp(0.3))
    )
    assert residual((1.02, 1.1), 3, "k")["low"] == 1.0


def made_up(scale=1.0):
    """Low-latency rows as a known kernel would time them, twice: the second release takes ``scale``
    as long.
    """
    rows = pd.DataFrame(
        [
            {
                "family": "deepep_ll",
                "system": "h100_sxm",
                "dataset": dataset,
                "node_num": nodes,
                "hidden_size": hidden,
                "num_token": tokens,
                "num_topk": 8,
                "num_experts": experts,
            }
            for dataset in ("one", "two")
            for nodes in (1, 2)
            for hidden in (2048, 7168)
            for experts in (128, 256)
            for tokens in (1, 16, 128, 1024)
        ]
    )
    bounds = {
        "start_us": (8.0, 1.0, 40.0),
        "expert_us": (4.0, 0.01, 20.0),
        "memory_efficiency": (0.3, 0.02, 1.0),
        "nic_efficiency": (0.9, 0.5, 1.0),
        "node_us": (8.0, 0.1, 30.0),
    }
    quantity = FitQuantity(
        rows=rows.assign(combine_avg_t_us=1.0),
        kind="combine",
        bounds=bounds,
        fixed={"port_efficiency": 0.75},
        factors={},
    )
    truth = {
        "combine_start_us": 10.0,
        "combine_expert_us": 2.0,
        "combine_memory_efficiency": 0.2,
        "combine_nic_efficiency": 0.95,
        "combine_node_us": 12.0,
        "combine_port_efficiency": 0.75,
    }
    seconds = quantity.predict(truth, {}) * np.where(rows["dataset"] == "two", scale, 1.0)
    timed = rows.assign(dispatch_avg_t_us=1.0, combine_avg_t_us=seconds * 1e6)
    return FitQuantity(
        rows=timed, kind="combine", bounds=bounds, fixed={"port_efficiency": 0.75}, factors={}
    ), truth


def test_a_fit_finds_what_made_the_rows():
    quantity, truth = made_up()
    found, factors = quantity.fit()
    assert found == pytest.approx(truth, rel=1e-3)
    assert factors == {}
    held_out = quantity.cross_validate(quantity.rows["hidden_size"])
    assert held_out == pytest.approx(quantity.measured, rel=1e-3)


def test_factors_of_a_device_are_found():
    quantity, truth = made_up()
    slow = quantity.rows["num_token"] > 0
    rows = pd.concat(
        [quantity.rows, quantity.rows.assign(system="h200_sxm")[slow]], ignore_index=True
    )
    both = FitQuantity(
        rows=rows,
        kind="combine",
        bounds=quantity.bounds,
        fixed=quantity.fixed,
        factors={"h200_sxm": ("start_us",)},
    )
    seconds = both.predict(truth, {"h200_sxm": {"combine_start_us": 1.7}})
    both = FitQuantity(
        rows=rows.assign(combine_avg_t_us=seconds * 1e6),
        kind="combine",
        bounds=both.bounds,
        fixed=both.fixed,
        factors=both.factors,
    )
    found, factors = both.fit()
    assert found == pytest.approx(truth, rel=1e-3)
    assert factors == {"h200_sxm": {"combine_start_us": pytest.approx(1.7, rel=1e-3)}}


def test_spread_between_releases():
    quantity, _ = made_up(scale=1.1)
    low, high = release_spread(quantity.rows, quantity)
    assert high == pytest.approx(math.exp(1.9 / math.sqrt(2) * math.log(1.1)))
    assert low == pytest.approx(1 / high)
