"""The study of gates on few sizes: tables, columns, and pages that need no network."""

import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

pytestmark = pytest.mark.full

SCRIPT = str(Path(__file__).parent.parent.parent / "studies" / "gating_hierarchy.py")


def run(*arguments):
    return subprocess.run(
        [sys.executable, SCRIPT, *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={k: v for k, v in os.environ.items() if k != "COLUMNS"},
    )


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    out = tmp_path_factory.mktemp("gates")
    done = run("--quick", "--seconds", "2", "--out", str(out))
    assert done.returncode == 0, done.stderr
    return done, out


@pytest.mark.full
def test_writes_these_files_and_nothing_else(study):
    done, out = study
    assert {path.name for path in out.iterdir()} == {
        "gates.csv",
        "summary.csv",
        "pairs.csv",
        "gate_time.html",
        "gate_share.html",
        "simulated_against_measured.html",
    }
    assert "the faster gate named right in" in done.stdout


def test_rows_hold_simulated_and_measured_gates(study):
    rows = pd.read_csv(study[1] / "gates.csv")
    on_gpu = rows["device"] == "h100-sxm"
    assert on_gpu.sum() == (~on_gpu).sum() == 10
    assert set(rows["kind"]) == {"flat", "group_limited", "two_level", "product_key"}
    assert rows.loc[~on_gpu, "measured_us"].gt(0).all()
    assert rows.loc[on_gpu, "measured_us"].isna().all()
    assert rows["gate_share"].between(0, 1).all()
    assert (rows["gate_loss_delta_low"] <= rows["gate_loss_delta"]).all()
    many = rows[(rows["num_experts"] == 4096) & on_gpu].set_index("gate")["gate_us"]
    assert many["flat"] < many["group_limited:8:4"]
    summary = pd.read_csv(study[1] / "summary.csv").set_index("gate")
    assert summary.loc["all", "points"] == 10
    assert (
        pd.read_csv(study[1] / "pairs.csv")["pairs"][0]
        + pd.read_csv(study[1] / "pairs.csv")["ties"][0]
        == 20
    )


def test_a_gpu_s_profile_cannot_be_measured_here(tmp_path):
    done = run("--profile", "a100-sxm", "--out", str(tmp_path))
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.strip() == (
        "error: --profile: expected a profile of a CPU, got a100-sxm, whose execution is waves"
    )
