"""Measured exchanges that users hand in: predicted in order, without using their latency."""

import numpy as np
import pandas as pd
import pytest

from moesim.costs.comm.kernels import comm_kernel
from moesim.costs.comm.work import Work
from moesim.measured.exchanges.predict import predicted_columns
from moesim.measured.exchanges.scoreboard import comm_scores
from moesim.measured.exchanges.shot_nccl import latency_factor, shot_factors
from moesim.measured.exchanges.table import COLUMNS, systems
from moesim.measured.kernels import table as silicon

installed = pytest.mark.skipif(
    silicon.unavailable_because() is not None, reason="extra silicon not installed"
)


def test_order_of_rows_is_kept(mixed, predictions):
    rows = mixed
    together = predictions(rows)
    backwards = predictions(rows[::-1]).iloc[::-1].reset_index(drop=True)
    pd.testing.assert_frame_equal(together, backwards)
    for i in range(len(rows)):
        alone = predictions(rows.iloc[[i]].dropna(axis=1)).iloc[0]
        again = together.loc[i, alone.index]
        assert [*again[:2]] == [*alone[:2]]
        assert again[2:].to_numpy(dtype=float) == pytest.approx(
            alone[2:].to_numpy(dtype=float), nan_ok=True
        )


def test_every_row_has_its_own_columns(mixed, predictions):
    out = predictions(mixed)
    assert list(out.columns) == predicted_columns(COLUMNS)
    deepep = mixed["family"].str.startswith("deepep")
    assert out.loc[~deepep, "predicted_us"].gt(0).all()
    assert out.loc[deepep, "predicted_us"].isna().all()
    assert out.loc[deepep, ["predicted_dispatch_us", "predicted_combine_us"]].gt(0).all().all()
    for name in ("us", "dispatch_us", "combine_us"):
        known = out[out[f"predicted_{name}"].notna()]
        assert (known[f"low_{name}"] <= known[f"predicted_{name}"]).all()
        assert (known[f"high_{name}"] >= known[f"predicted_{name}"]).all()
    assert set(out["calibration"]) == {"calibrated", "few_shot", "spec_sheet"}


def test_spec_mode_knows_no_rows_of_the_target(mixed, predictions, row_of):
    assert "few_shot" not in set(predictions(mixed, few_shot=False)["calibration"])
    few, spec = (
        predictions(pd.DataFrame([row_of("low")]), few_shot=f)["predicted_dispatch_us"][0]
        for f in (True, False)
    )
    assert few > spec


def test_latencies_are_not_looked_at(mixed, predictions):
    rows = mixed.copy()
    for column in (
        "latency",
        "dispatch_transmit_us",
        "combine_transmit_us",
        "dispatch_avg_t_us",
        "combine_avg_t_us",
    ):
        rows[column] = np.random.default_rng(0).uniform(1, 1e6, len(rows))
    pd.testing.assert_frame_equal(predictions(rows), predictions(mixed))


@pytest.mark.parametrize(
    ("family", "change", "name", "copies"),
    [
        ("low", {"system": "h100_sxm"}, "deepep_ll", 8.0),
        ("normal", {"num_topk": 256}, "deepep_normal", 8.0),
    ],
)
@pytest.mark.parametrize("direction", ["dispatch", "combine"])
def test_a_row_costs_what_a_lowered_exchange_costs(
    family, change, name, copies, direction, predictions, row_of
):
    """One model: `Price` of the row's own exchange is the row's prediction."""
    row = row_of(family) | change
    system = systems()[row["system"]]
    kernel = comm_kernel(name, system.ports(8), system.profile)
    size = kernel.copy_bytes(
        direction, row["hidden_size"], row["num_topk"], 1.0 if direction == "dispatch" else 2.0
    )
    tokens = np.array([float(row["num_token"])])
    work = Work(
        tokens_D=tokens,
        copies_D=tokens * copies,
        near_bytes_D=tokens * copies * size * 7 / 8,
        far_bytes_D=np.zeros(1),
        hidden_size=row["hidden_size"],
        top_k=row["num_topk"],
        num_experts=row["num_experts"],
        copy_bytes=size,
    )
    lowered = kernel.price(direction, work).time_s_D(work, kernel.ports)[0] * 1e6
    assert predictions(pd.DataFrame([row]))[f"predicted_{direction}_us"][0] == pytest.approx(
        lowered
    )


def test_scores_by_hand(row_of):
    rows = pd.DataFrame([row_of("nccl")] * 4).assign(
        latency=[1.0, 2.0, 4.0, np.nan], fitted=[False, False, True, False]
    )
    us = np.array([1100.0, 1000.0, 1.0, 1.0])
    found = {
        "predicted_us": us,
        "low_us": us * 0.8,
        "high_us": us * 1.2,
        "calibration": np.full(4, "spec_sheet"),
    }
    [scores] = comm_scores(rows, found)
    assert (scores["rows"], scores["mape"], scores["inside"]) == (2.0, pytest.approx(30.0), 50.0)
    assert (scores["family"], scores["class"]) == ("nccl", "alltoall >= 64 KiB")


#: DeepEP README, H800, 4096 tokens, hidden 7168, top-8 of 256, 24 SMs: bytes of all copies over
#: time, GB/s
@pytest.mark.parametrize(
    ("nodes", "quantity", "copies", "gb_per_s"),
    [
        (1, "dispatch", 5.3, 153),
        (1, "combine", 5.3, 158),
        (2, "dispatch", 1.99, 43),
        (8, "dispatch", 3.99, 51),
    ],
)
def test_published_normal_mode_within_15_percent(
    nodes, quantity, copies, gb_per_s, predictions, row_of
):
    row = row_of("normal") | {
        "system": "h800_sxm",
        "node_num": nodes,
        "dispatch_sms": 24,
        "combine_sms": 24,
    }
    us = predictions(pd.DataFrame([row]))[f"predicted_{quantity}_us"][0]
    size = {"dispatch": 7392, "combine": 14336}[quantity]
    assert 4096 * copies * size / us / 1e3 == pytest.approx(gb_per_s, rel=0.15)


@installed
def test_targets_on_rows_not_fitted():
    """Guards the figures that were reached, in %, MAPE and P90."""
    from moesim.measured.exchanges.scoreboard import scoreboard

    rows = {(r["family"], r["quantity"], r["system"], r["class"]): r for r in scoreboard("spec")}
    for key, mape, p90 in (
        (("nccl", "-", "h200_sxm", "alltoall < 64 KiB"), 11, 25),
        (("nccl", "-", "h200_sxm", "alltoall >= 64 KiB"), 7, 14),
        (("nccl", "-", "h200_sxm", "all_gather < 64 KiB"), 6, 13),
        (("nccl", "-", "h200_sxm", "all_gather >= 64 KiB"), 5, 11),
        (("nccl", "-", "h200_sxm", "reduce_scatter < 64 KiB"), 5, 12),
        (("nccl", "-", "h200_sxm", "reduce_scatter >= 64 KiB"), 6, 12),
        (("deepep_normal", "dispatch", "h200_sxm", "EP8"), 6, 12),
        (("deepep_normal", "combine", "h200_sxm", "EP8"), 6, 12),
        (("deepep_ll", "dispatch", "h200_sxm", "EP8"), 11, 18),
        (("deepep_ll", "combine", "h200_sxm", "EP8"), 9, 18),
        (("deepep_ll", "combine", "h100_sxm", "EP32"), 4, 7),
        (("deepep_ll", "combine", "h100_sxm", "EP64"), 4, 7),
        (("deepep_normal", "dispatch", "h100_sxm", "EP8 top-k 1, 2, 22"), 8, 16),
        (("deepep_normal", "combine", "h100_sxm", "EP8 top-k 1, 2, 22"), 8, 16),
        (("nvl72_alltoall", "-", "gb200", "EP32"), 8, 16),
    ):
        assert rows[key]["mape"] < mape, key
        assert rows[key]["p90"] < p90, key
    for (family, _, system, label), row in rows.items():
        if family == "nccl" and system == "h200_sxm":
            assert 70 < row["inside"] < 90, label
        if system in ("l40s", "rtx_pro_6000_server"):
            assert row["calibration"] == "none"
            assert row["inside"] > 80, label


def test_short_and_long_rows_of_nccl_have_intervals_of_their_own(predictions, row_of):
    sizes = [1 << 10, 1 << 14, 1 << 16, 1 << 26]
    out = predictions(pd.DataFrame([row_of("nccl") | {"message_size": n} for n in sizes]))
    low, high = (out[f"{end}_us"] / out["predicted_us"] for end in ("low", "high"))
    for ends in (low, high):
        assert ends[0] == pytest.approx(ends[1])
        assert ends[2] == pytest.approx(ends[3])
        assert ends[1] != pytest.approx(ends[2])


def test_ten_rows_of_an_alltoall_tell_all_collectives():
    starts = {f"alltoall_{n}": v for n, v in (("start_us", 6.0), ("hop_us", 0.6))}
    others = ("ceiling_us", "port_efficiency", "ramp_kb")
    parameters = starts | {f"alltoall_{n}": 1.0 for n in others}

    class Shot:
        measured = np.array([12.0, 13.2])

        def predict(self, p, factors):
            return np.array([p["alltoall_start_us"], p["alltoall_start_us"] + p["alltoall_hop_us"]])

    factors = shot_factors(Shot(), parameters, ("alltoall", "all_gather"))
    assert factors["alltoall_start_us"] == factors["alltoall_hop_us"]
    assert factors["alltoall_start_us"] == pytest.approx(2.0, rel=0.3)
    names = [f"{p}{n}" for p in ("", "middle_", "bulk_") for n in ("start_us", "hop_us")]
    latency = latency_factor(Shot(), parameters)
    assert all(factors[f"all_gather_{n}"] == latency for n in names)
    assert factors["all_gather_middle_efficiency"] == factors["alltoall_port_efficiency"]


@pytest.mark.parametrize(
    ("columns", "old"),
    [
        ({}, [False, False]),
        ({"dataset": ["nccl/2.23", "nccl/2.29.2"]}, [True, False]),
        ({"dataset": ["trtllm/1.3.0rc10", None]}, [False, False]),
        ({"version": ["2.23.4", "2.27.3"]}, [True, False]),
        (
            {"version": ["2.29.2", "2.29.2"], "dataset": ["nccl/2.23", "nccl/2.29.2"]},
            [False, False],
        ),
        ({"version": [None, "2.29.2"]}, [True, False]),
        ({"version": [None, None]}, [False, False]),
        ({"version": [None, "2.29.2"], "dataset": ["nccl/2.27.3", "nccl/2.29.2"]}, [False, False]),
    ],
)
def test_old_nccl_is_known_by_its_version(columns, old, predictions, row_of):
    rows = pd.DataFrame([row_of("nccl") | {"num_gpus": 2, "message_size": 1 << 17}] * 2).assign(
        **columns
    )
    times = predictions(rows)["predicted_us"]
    newest = predictions(rows[["family", *COLUMNS["nccl"], "system"]])["predicted_us"]
    assert (times < newest).tolist() == old
