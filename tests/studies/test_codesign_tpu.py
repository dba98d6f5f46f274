"""The comparison of a torus and GPUs at equal price, small: prices, verdicts from intervals, honest
calibration.
"""

import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

SCRIPT = str(Path(__file__).parent.parent.parent / "studies" / "codesign_tpu.py")


def run(*arguments):
    return subprocess.run(
        [sys.executable, SCRIPT, *arguments], capture_output=True, text=True, check=False
    )


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    out = tmp_path_factory.mktemp("tpu")
    done = run("--quick", "--out", str(out))
    assert done.returncode == 0, done.stderr
    return done, out


def test_prices_are_equal_and_said(study):
    assert study[0].stdout.startswith("48 v5p at 201.60 USD/h against 64 H100 at 201.60 USD/h: ")
    fronts = pd.read_csv(study[1] / "fronts.csv").set_index("machine")
    assert fronts.loc["tpu", "usd_per_hour"].max() == pytest.approx(
        fronts.loc["gpu", "usd_per_hour"].max()
    )
    assert (fronts.loc["tpu", "calibration"] == "none").all()
    assert (fronts.loc["gpu", "calibration"] != "none").all()
    assert (
        fronts[["evidence", "engine", "seed", "version", "profile_hash", "cost_model"]]
        .notna()
        .all(axis=None)
    )


def test_verdicts_follow_from_intervals(study):
    rows = pd.read_csv(study[1] / "verdicts.csv")
    assert len(rows) > 3
    for _, row in rows[rows["ratio"].notna()].iterrows():
        apart = (
            row["tpu_tokens_per_usd_low"] > row["gpu_tokens_per_usd_high"]
            or row["gpu_tokens_per_usd_low"] > row["tpu_tokens_per_usd_high"]
        )
        assert (row["verdict"] == "tie") != apart
        assert (
            row["tpu_tokens_per_usd_low"]
            < row["tpu_tokens_per_usd"]
            < row["tpu_tokens_per_usd_high"]
        )
    # more loss allowed, no fewer tokens
    for name in ("tpu", "gpu"):
        assert rows[f"{name}_tokens_per_usd"].dropna().is_monotonic_increasing
    assert {p.name for p in study[1].iterdir()} == {
        "fronts.csv",
        "verdicts.csv",
        "fronts.html",
        "tpu",
        "gpu",
    }


def test_bad_axes_are_one_line(tmp_path):
    for axes, said in (
        ("4x4xtwo", "--axes: expected sizes such as '4x4x12', got '4x4xtwo'"),
        ("2x2x1", "--axes: expected a slice worth at least 2 nodes of 8 H100, got 4 chips"),
    ):
        done = run("--axes", axes, "--out", str(tmp_path))
        assert (done.returncode, done.stderr.strip()) == (2, f"error: {said}")
