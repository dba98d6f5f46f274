"""The study of growth, its small version: stages of every way."""

import csv
import subprocess
import sys
from pathlib import Path

SCRIPT = str(Path(__file__).parent.parent.parent / "studies" / "growth.py")


def test_stages_of_every_way(tmp_path):
    done = subprocess.run(
        [sys.executable, SCRIPT, "--quick", "--out", str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    rows = list(csv.DictReader((tmp_path / "stages.csv").open()))
    assert len({row["way"] for row in rows}) == 4
    assert [int(row["num_experts"]) for row in rows[:4]] == [1000, 10000, 99856, 1000000]
    assert int(rows[3]["devices"]) > int(rows[0]["devices"])
    for name in ("devices.html", "loss.html"):
        assert (tmp_path / name).stat().st_size > 1000
    assert (tmp_path / "refused.csv").read_text() == "way,reason\n"
