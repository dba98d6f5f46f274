"""The study of what a change is worth: its tables, its figure, and that economics and options reach
it.
"""

import math
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

SCRIPT = str(Path(__file__).parent.parent.parent / "studies" / "what_if_hardware.py")


def run(*arguments):
    return subprocess.run(
        [sys.executable, SCRIPT, *arguments], capture_output=True, text=True, check=False
    )


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    out = tmp_path_factory.mktemp("what_if")
    done = run("--quick", "--out", str(out))
    assert done.returncode == 0, done.stderr
    return done, out, pd.read_csv(out / "what_if.csv").set_index("change")


def test_answers_the_question(study):
    done, out, rows = study
    assert {path.name for path in out.iterdir()} == {"what_if.csv", "what_if.html"}
    assert ("worth most: " in done.stdout) != ("not told apart: " in done.stdout)
    assert {"2x nvlink_gb_per_s", "2x HBM bandwidth and GiB", "2x experts at equal loss"} <= set(
        rows.index
    )
    assert "2x nic_gb_per_s" not in rows.index  # one node


def test_rows_are_consistent(study):
    rows = study[2][study[2]["gain"].notna()]
    assert (rows["gain_low"] <= rows["gain"] * (1 + 1e-9)).all()
    assert (rows["gain"] <= rows["gain_high"] * (1 + 1e-9)).all()
    assert (
        rows.loc["none", "gain"]
        == rows.loc["none", "gain_low"]
        == rows.loc["none", "gain_high"]
        == 1
    )
    hardware = rows[rows["kind"] == "hardware"]
    assert (hardware["calibration"] == "spec_sheet").all()
    assert hardware["loss_change"].isna().all()
    assert (rows[["evidence", "engine", "version", "profile_hash", "cost_model"]].notna()).all(
        axis=None
    )
    # a number's elasticity and what twice of it gains tell the same story
    assert (
        rows.loc["2x hbm_gb_per_s", "elasticity"] > rows.loc["2x nvlink_gb_per_s", "elasticity"] > 0
    )
    assert rows.loc["2x hbm_gb_per_s", "gain"] > rows.loc["2x nvlink_gb_per_s", "gain"] > 1
    # what fills a cache with sequences: capacity, and 2x HBM is both
    assert (
        rows.loc["2x hbm_gib", "num_tokens_per_device"]
        > 2 * rows.loc["none", "num_tokens_per_device"]
    )
    assert rows.loc["2x HBM bandwidth and GiB", "gain"] > rows.loc["2x hbm_gib", "gain"]


def test_design_rows_have_a_loss(study):
    rows = study[2]
    for change in ("2x experts", "2x top-k, half width"):
        low, mid, high = rows.loc[change, ["loss_change_low", "loss_change", "loss_change_high"]]
        assert low <= mid <= high
    assert rows.loc["2x experts", "loss_change"] < 0
    equal = rows.loc["2x experts at equal loss"]
    assert equal["loss_change"] <= 0 < equal["loss_change"] + 0.01
    assert int(equal["expert_intermediate_size"]) < int(
        rows.loc["none", "expert_intermediate_size"]
    )
    assert math.isclose(
        rows.loc["2x num_sms", "tokens_per_usd_gain"],
        rows.loc["2x num_sms", "gain"] / rows.loc["2x num_sms", "usd_per_hour_ratio"],
    )


def test_bad_options_are_one_line(tmp_path):
    done = run("--model", "deepseek-v3", "--out", str(tmp_path))
    assert done.returncode == 2
    assert (
        done.stderr.strip()
        == "error: --model and --cluster: expected both or neither, got 'deepseek-v3' alone"
    )
