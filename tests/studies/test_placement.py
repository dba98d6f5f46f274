"""The placement study in its quick form: its tables, what they must say, and pages that need no
network.
"""

import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from moesim.placement import REPLICATING

pytestmark = pytest.mark.full

SCRIPT = str(Path(__file__).parent.parent.parent / "studies" / "placement.py")
PAGES = ("imbalance.html", "layer_time.html", "drift.html")


def run(*arguments):
    return subprocess.run(
        [sys.executable, SCRIPT, *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={k: v for k, v in os.environ.items() if k != "COLUMNS"},
    )


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    folder = tmp_path_factory.mktemp("placement") / "new"
    done = run("--quick", "--refine-steps", "1", "--out", str(folder))
    assert done.returncode == 0, done.stderr
    assert "the fastest placement" in done.stdout
    return folder


def test_writes_these_files_and_nothing_else(out):
    assert {path.name for path in out.iterdir()} == {
        "placements.csv",
        "best.csv",
        "drift.csv",
        *PAGES,
    }


def test_every_strategy_that_may_is_there_and_simulated(out):
    rows = pd.read_csv(out / "placements.csv")
    planned = rows[rows["placement"] != "refined"]
    assert planned["reason"].isna().all()
    assert set(planned["num_devices"]) == {8, 64}
    sizes = planned.groupby(["cluster", "distribution", "num_replicas"]).size()
    assert set(sizes.loc[:, :, 0]) == {13}
    assert set(sizes.loc[:, :, 64]) == {9}
    names = (
        planned.loc[planned["num_replicas"] == 64, "placement"].str.split("[:/]", regex=True).str[0]
    )
    assert set(names) == set(REPLICATING) - {"exact"}
    columns = [
        "load_imbalance",
        "layer_time_us",
        "layer_time_next_step_us",
        "speed_up",
        "evidence",
        "calibration",
        "engine",
        "seed",
        "version",
        "profile_hash",
    ]
    assert planned[columns].notna().all(axis=None)
    assert (planned["load_imbalance"] >= 1).all()


def test_refined_is_at_least_as_fast_as_where_it_may_begin(out):
    rows = pd.read_csv(out / "placements.csv")
    for _, part in rows.groupby(["cluster", "distribution", "num_replicas"]):
        refined = part.loc[part["placement"] == "refined", "layer_time_us"].item()
        assert refined <= part.loc[
            part["placement"].isin(["eplb", "balanced"]), "layer_time_us"
        ].min() * (1 + 1e-9)


def test_best_is_the_fastest(out):
    rows, best = pd.read_csv(out / "placements.csv"), pd.read_csv(out / "best.csv")
    keys = ["cluster", "distribution", "num_replicas"]
    fastest = rows.groupby(keys)["layer_time_us"].min()
    assert best.set_index(keys)["layer_time_us"].to_dict() == pytest.approx(fastest.to_dict())


def test_drift_is_followed_by_new_plans(out):
    rows = pd.read_csv(out / "drift.csv")
    assert set(rows["renewed_every"]) == {0, 1, 4}
    kept = rows[rows["renewed_every"] == 0]
    assert (kept["migration_us"] == 0).all()
    assert (rows.loc[(rows["renewed_every"] == 1) & (rows["step"] > 1), "moved_gib"] > 0).all()


@pytest.mark.parametrize("page", PAGES)
def test_pages_need_no_network(out, page):
    text = (out / page).read_text(encoding="utf-8")
    assert "http:" not in text
    assert "https:" not in text
    assert " src=" not in text
    assert "<title>" in text
    assert "h100-rail-8x8" in text


def test_bad_output_folder_is_one_line(tmp_path):
    file = tmp_path / "file"
    file.write_text("")
    done = run("--quick", "--out", str(file / "x"))
    assert done.returncode == 2
    assert done.stderr == f"error: {file}/x: cannot write to this output folder: Not a directory\n"
