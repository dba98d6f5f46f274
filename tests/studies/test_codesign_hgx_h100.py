"""The HGX H100 study, small: its files, and that a killed run continues to the same ones."""

import csv
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from moesim.measured.check import CHECK_COLUMNS
from moesim.search.study import TRIAL_COLUMNS

ROOT = Path(__file__).parent.parent.parent
SCRIPT = str(ROOT / "studies" / "codesign_hgx_h100.py")


def rows(path):
    return [
        {k: v for k, v in row.items() if not k.startswith("wall_")}
        for row in csv.DictReader(path.open())
    ]


def test_quick_searches_screens_and_confirms(tmp_path):
    done = subprocess.run(
        [sys.executable, SCRIPT, "--quick", "--out", str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "HGX H100: Pareto winners by the event engine" in done.stdout
    assert "rank correlation" in done.stderr
    names = {path.name for path in tmp_path.iterdir() if not path.name.startswith(".")}
    assert {
        "trials.csv",
        "pareto.csv",
        "importance.csv",
        "winners.csv",
        "report.html",
    } <= names
    winners = rows(tmp_path / "winners.csv")
    assert all(
        row["engine"] == "event_compiled" and row["layer_joules_per_token"] and row["cost_model"]
        for row in winners
    )
    assert all(abs(float(row["event_over_search"]) - 1) < 0.02 for row in winners)
    groups = [int(row["group"]) for row in rows(tmp_path / "pareto.csv")]
    assert groups[0] == 0
    assert set(groups) == set(range(max(groups) + 1))


@pytest.mark.full
def test_main_job_writes_its_tables_and_survives_a_kill(tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    command = [sys.executable, SCRIPT, "--trials", "150", "--seed", "3", "--screen", "2000"]
    done = subprocess.run(
        [*command, "--out", str(whole)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    for line in (
        "Pareto winners",
        "Winners, simulated and measured",
        "kernels compute the right numbers",
        "Kendall tau",
        "Next: ",
    ):
        assert line in done.stdout

    journal = killed / "study.journal"
    process = subprocess.Popen(
        [*command, "--out", str(killed)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    while not journal.exists() or journal.read_bytes().count(b"\n") < 60:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    kept = journal.read_bytes().count(b"\n")
    assert kept < 150
    again = subprocess.run(
        [*command, "--out", str(killed), "--workers", "2"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert again.returncode == 0, again.stderr
    assert rows(whole / "trials.csv") == rows(killed / "trials.csv")
    assert rows(whole / "winners.csv") == rows(killed / "winners.csv")

    trials = rows(whole / "trials.csv")
    assert len(trials) == 150
    assert list(csv.DictReader((whole / "trials.csv").open()).fieldnames) == list(TRIAL_COLUMNS)
    assert [int(t["number"]) for t in trials] == list(range(150))
    assert all(
        t["evidence"] and t["calibration"] and t["profile_hash"] and t["version"] for t in trials
    )
    checks = list(csv.DictReader((whole / "check.csv").open()))
    assert tuple(checks[0]) == CHECK_COLUMNS
    kinds = {(c["source"], c["status"]) for c in checks}
    assert {("silicon", "checked"), ("interpret", "checked"), ("torch-cpu", "checked")} <= kinds
    assert not [c for c in checks if c["limit"] and float(c["measured"]) > float(c["limit"])]


def test_bad_options_are_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    done = subprocess.run(
        [sys.executable, SCRIPT, "--trials", "2", "--out", str(tmp_path / "file" / "x")],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"COLUMNS": "100"},
    )
    assert done.returncode == 2
    assert (
        done.stderr.strip()
        .splitlines()[-1]
        .endswith("cannot write to this output folder: Not a directory")
    )
    assert "Traceback" not in done.stderr
