"""The study of kernel libraries: its files, and that its winners are what simulations say."""

import csv
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = str(Path(__file__).parent.parent.parent / "studies" / "kernel_libraries.py")


def run(*arguments):
    return subprocess.run(
        [sys.executable, SCRIPT, *arguments], capture_output=True, text=True, check=False
    )


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    out = tmp_path_factory.mktemp("libraries") / "new"
    done = run("--quick", "--devices", "h100-sxm b200-sxm", "--out", str(out))
    assert done.returncode == 0, done.stderr
    return out


def rows(path):
    return list(csv.DictReader(path.open()))


def test_it_writes_rows_winners_and_a_page(study):
    assert {path.name for path in study.iterdir()} == {
        "libraries.csv",
        "winners.csv",
        "libraries.html",
    }
    points = {}
    for row in rows(study / "libraries.csv"):
        key = (row["device"], row["precision"], row["num_tokens"])
        points.setdefault(key, []).append(row)
        low, mid, high = (float(row[f"experts_{k}us"]) for k in ("low_", "", "high_"))
        assert low <= mid <= high
    for own in points.values():
        times = [float(row["experts_us"]) for row in own]
        assert times == sorted(times)
        assert float(own[0]["behind_percent"]) == 0.0
        assert sum(row["wins"] in ("yes", "only") for row in own) <= 1
    assert ("h100-sxm", "mxfp4_a8", "64") not in points
    for row in rows(study / "winners.csv"):
        of = [
            one
            for (device, precision, _), own in points.items()
            if (device, precision) == (row["device"], row["precision"])
            for one in own
            if one["kernels"] == row["kernels"]
        ]
        assert int(row["points"]) == len(of)
        assert int(row["fastest"]) == sum(float(one["behind_percent"]) == 0.0 for one in of)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--hidden", "1"), "--hidden: expected at least 16, got 1"),
        (("--devices", "tpu-v5p"), "no library was measured in "),
        (("--devices", "h10"), "unknown cluster 'h10': did you mean "),
    ],
)
def test_bad_options_are_one_line(tmp_path, arguments, message):
    done = run("--quick", "--out", str(tmp_path), *arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
