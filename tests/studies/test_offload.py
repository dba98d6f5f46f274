"""The study of experts in host memory: what its rows promise."""

import csv
import subprocess
import sys
from pathlib import Path

import pytest

STUDY = Path(__file__).parent.parent.parent / "studies" / "offload.py"


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    folder = tmp_path_factory.mktemp("offload") / "new"
    done = subprocess.run(
        [sys.executable, str(STUDY), "--quick", "--out", str(folder)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return folder


def rows(path):
    return list(csv.DictReader(path.open()))


def test_fewer_resident_experts_take_less_memory_and_more_time(out):
    found = rows(out / "offload.csv")
    assert len(found) == 2 * 5 * (1 + 4 * 3)
    plain = [r for r in found if r["form"] == "whole, 0% ahead" and r["cluster"] == "h100-sxm"]
    for column, falls in (("peak_memory_gib", True), ("layer_time_us", False)):
        values = [float(row[column]) for row in plain]
        assert values == sorted(values, reverse=falls)
        assert values[0] != values[-1]


def test_the_faster_link_is_faster_in_proportion(out):
    found = rows(out / "offload.csv")
    none = [r for r in found if (r["form"], r["resident_fraction"]) == ("whole, 0% ahead", "0.0")]
    pcie, c2c = (float(row["fetch_us"]) for row in none)
    assert pcie / c2c == pytest.approx(225 / 64, rel=0.01)


def test_the_best_fit(out):
    best = rows(out / "best.csv")
    assert {row["cluster"] for row in best} == {"h100-sxm", "gb200"}
    assert {row["fits"] for row in best} == {"True"}
    assert (out / "offload.html").exists()
