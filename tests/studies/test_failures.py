"""The study of failures, its small version: ways in order, and the same failures for all."""

import csv
import subprocess
import sys
from pathlib import Path

SCRIPT = str(Path(__file__).parent.parent.parent / "studies" / "failures.py")


def test_every_way_on_every_size(tmp_path):
    done = subprocess.run(
        [sys.executable, SCRIPT, "--quick", "--out", str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    rows = list(csv.DictReader((tmp_path / "days.csv").open()))
    assert len(rows) == 2 * 2 * 4
    found = {(r["fleet"], r["devices"], r["way"]): r for r in rows}
    for fleet, devices in {(r["fleet"], r["devices"]) for r in rows}:
        full, copies = (found[fleet, devices, way] for way in ("full", "copies"))
        assert full["interruptions"] == copies["interruptions"]
        assert float(full["ettr"]) < float(copies["ettr"])
        assert float(full["lost_expert_updates"]) == 0 < float(copies["lost_expert_updates"])
    assert (tmp_path / "ettr.html").stat().st_size > 1000
    assert len(list(csv.DictReader((tmp_path / "summary.csv").open()))) == 16
