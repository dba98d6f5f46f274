"""The multi-node search, small: its files, the published design among its points, hardware that
varies, continuing.
"""

import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

SCRIPT = str(Path(__file__).parent.parent.parent / "studies" / "codesign_multi_node.py")


def run(*arguments):
    return subprocess.run(
        [sys.executable, SCRIPT, *arguments], capture_output=True, text=True, check=False
    )


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    out = tmp_path_factory.mktemp("nodes")
    done = run("--quick", "--hardware", "--out", str(out))
    assert done.returncode == 0, done.stderr
    return done, out


def test_files_and_what_it_says(study):
    done, out = study
    names = {path.name for path in out.iterdir()}
    assert {
        "trials.csv",
        "pareto.csv",
        "importance.csv",
        "winners.csv",
        "report.html",
    } <= names
    assert "published design: loss" in done.stdout
    assert "rank correlation" in done.stderr
    assert "event engine over the search's" in done.stderr
    trials = pd.read_csv(out / "trials.csv")
    assert len(trials) == 40
    first = trials.iloc[0]
    assert (first["num_experts"], first["top_k"], first["expert_intermediate_size"]) == (
        256,
        8,
        2048,
    )
    assert (
        trials[["evidence", "calibration", "engine", "seed", "version", "profile_hash"]]
        .notna()
        .all(axis=None)
    )


def test_hardware_is_part_of_the_points(study):
    trials = pd.read_csv(study[1] / "trials.csv")
    assert set(trials["nic_gb_per_s"]) == {"1x", "2x"}
    assert (trials["calibration"] != "calibrated").all()
    for rate in (3350.0, 4800.0):
        assert (trials["hbm_gb_per_s"] == rate).any()
    plain = trials[(trials["nic_gb_per_s"] == "1x") & (trials["hbm_gb_per_s"] == 3350.0)]
    assert trials["usd_per_hour"].max() > plain["usd_per_hour"].max()


def test_winners_are_of_the_event_engine(study):
    winners = pd.read_csv(study[1] / "winners.csv")
    assert (winners["engine"] == "event_compiled").all()
    assert winners["event_over_search"].between(0.98, 1.02).all()


def test_an_unknown_phase_is_one_line(tmp_path):
    done = run("--phase", "train", "--out", str(tmp_path))
    assert (done.returncode, done.stderr.strip()) == (
        2,
        "error: --phase: expected prefill or decode, got 'train'",
    )
