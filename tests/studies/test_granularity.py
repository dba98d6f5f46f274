"""The granularity study on eight devices: its files, and that device granularity is within what it
promises.
"""

import csv
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = str(Path(__file__).parent.parent.parent / "studies" / "granularity.py")
TRAFFIC = {"uniform", "skewed", "sparse", "node_limited", "domain_per_source", "staggered"}


def run(*arguments):
    return subprocess.run(
        [sys.executable, SCRIPT, *arguments], capture_output=True, text=True, check=False
    )


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    out = tmp_path_factory.mktemp("granularity") / "new"
    done = run("--quick", "--seeds", "1", "--out", str(out))
    assert done.returncode == 0, done.stderr
    assert "wrote" in done.stderr + done.stdout
    return out


def rows(path):
    return list(csv.DictReader(path.open()))


def test_it_writes_a_row_per_case_a_summary_and_a_page(study):
    assert {path.name for path in study.iterdir()} == {
        "granularity.csv",
        "summary.csv",
        "granularity.html",
    }
    cases = rows(study / "granularity.csv")
    assert {(row["topology"], row["traffic"], row["micro_batches"]) for row in cases} == {
        (topology, traffic, parts)
        for topology in ("star", "rail", "torus")
        for traffic in TRAFFIC
        for parts in "12"
    }
    for row in cases:
        expected = 100 * (float(row["device_us"]) / float(row["pair_us"]) - 1)
        assert float(row["error_percent"]) == pytest.approx(expected)
    for row in rows(study / "summary.csv"):
        errors = [
            abs(float(c["error_percent"]))
            for c in cases
            if c["topology"] == row["topology"] and row["traffic"] in ("all", c["traffic"])
        ]
        assert int(row["cases"]) == len(errors)
        assert float(row["worst_error_percent"]) == pytest.approx(max(errors))
        assert float(row["mean_error_percent"]) == pytest.approx(sum(errors) / len(errors))


def test_device_granularity_keeps_its_promise_on_eight_devices(study):
    for row in rows(study / "summary.csv"):
        mean, worst = (8.0, 12.0) if row["topology"] == "torus" else (2.0, 6.0)
        assert float(row["mean_error_percent"]) <= mean
        assert float(row["worst_error_percent"]) <= worst


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--reference", "bound"), "--reference: expected event_compiled or flow, got 'bound'"),
        (
            ("--tokens", "1"),
            "--tokens, --seeds: expected at least 8 tokens and 1 seed, got 1 and 2",
        ),
        (("--exchange", "pigeon"), "unknown exchange 'pigeon'"),
        (
            ("--out", "/dev/null/x"),
            "/dev/null/x: cannot write to this output folder: Not a directory",
        ),
    ],
)
def test_bad_options_are_one_line(arguments, message):
    done = run("--quick", *arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
