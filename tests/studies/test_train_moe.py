"""The study of training ranks what it simulates."""

import csv
import subprocess
import sys
from pathlib import Path

STUDY = Path(__file__).parent.parent.parent / "studies" / "train_moe.py"


def test_ways_are_ranked(tmp_path):
    words = ["olmoe-1b-7b", "--gpus", "64", "--batch", "512", "--formats", "bf16"]
    subprocess.run(
        [sys.executable, str(STUDY), *words, "--quick", "--out", str(tmp_path)],
        check=True,
        capture_output=True,
    )
    rows = list(csv.DictReader((tmp_path / "steps.csv").open()))
    rates = [float(row["tokens_per_s_per_device"]) for row in rows]
    assert rates == sorted(rates, reverse=True)
    assert {row["pipeline"] for row in rows} >= {"1f1b", "dualpipe"}
    assert all(float(row["days"]) > 0 for row in rows)
