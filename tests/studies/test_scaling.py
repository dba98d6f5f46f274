"""The scaling study on 8 and 64 devices: its files, and that what does not fit is left out with the
reason.
"""

import csv
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.full

SCRIPT = str(Path(__file__).parent.parent.parent / "studies" / "scaling.py")


def run(*arguments):
    return subprocess.run(
        [sys.executable, SCRIPT, *arguments], capture_output=True, text=True, check=False
    )


def test_every_point_or_why_there_is_none(tmp_path):
    done = run("--quick", "--gib", "0.01", "--out", str(tmp_path / "new"))
    assert done.returncode == 0, done.stderr
    rows = list(csv.DictReader((tmp_path / "new" / "scaling.csv").open()))
    assert {(row["topology"], row["engine"], row["num_devices"]) for row in rows} == {
        (topology, engine, size)
        for topology in ("star", "rail", "torus")
        for engine in ("bound", "flow", "event_compiled")
        for size in ("8", "64")
    }
    for row in rows:
        if row["num_devices"] == "8":
            assert float(row["time_us"]) > 0
            assert float(row["wall_s"]) > 0
            assert 0.01 < float(row["peak_memory_gib"]) < 2
        else:  # Python alone takes more
            assert row["left_out"].startswith("would take about ")
            assert row["time_us"] == ""
    for topology in ("star", "rail", "torus"):
        bound, flow, _ = (
            float(row["time_us"])
            for row in rows
            if (row["topology"], row["num_devices"]) == (topology, "8")
        )
        assert bound <= flow * (1 + 1e-9)
    assert "left out" in done.stderr
    assert (tmp_path / "new" / "scaling.html").stat().st_size > 1000


def test_a_bad_folder_is_one_line():
    done = run("--quick", "--out", "/dev/null/x")
    assert (done.returncode, done.stderr.strip()) == (
        2,
        "error: /dev/null/x: cannot write to this output folder: Not a directory",
    )


@pytest.mark.full
def test_64_devices_too(tmp_path):
    done = run("--quick", "--out", str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert all(
        float(row["wall_s"]) > 0 for row in csv.DictReader((tmp_path / "scaling.csv").open())
    )
