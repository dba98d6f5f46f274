"""The search over experts: losses with intervals, ties, and what a device decodes."""

import csv
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.full

SCRIPT = Path(__file__).parents[2] / "studies" / "expert_architecture.py"


def test_it_writes_a_front_with_intervals(tmp_path):
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--quick", "--trials", "30", "--out", str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "its loss is extrapolated, beyond the law's " in " ".join(done.stdout.split())
    with (tmp_path / "architectures.csv").open() as file:
        rows = list(csv.DictReader(file))
    losses, days = ([float(row[name]) for row in rows] for name in ("loss", "train_days"))
    assert losses == sorted(losses)
    assert days == sorted(days, reverse=True)
    for row in rows:
        assert float(row["loss_low"]) < float(row["loss"]) < float(row["loss_high"])
        assert float(row["decode_tokens_per_s_per_device"]) > 0
        assert float(row["train_tokens"]) * 6 * float(row["active_params"]) > 0.99e22
    assert "Training qwen3-30b-a3b on h100-rail-8x8" in (tmp_path / "report.html").read_text()
