"""The closed loop on this machine, short: files, columns, and numbers that belong together."""

import csv
import subprocess
import sys
from pathlib import Path

import pytest

STUDY = Path(__file__).parents[2] / "studies" / "check_local.py"


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    out = tmp_path_factory.mktemp("check_local")
    done = subprocess.run([sys.executable, str(STUDY), "--quick", "--out", str(out)], capture_output=True, text=True,
                          timeout=240)
    assert done.returncode == 0, done.stderr
    return out, done


def rows(path):
    with path.open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_every_layer_is_simulated_and_measured(written):
    found = rows(written[0] / "layers.csv")
    assert len(found) == 6
    for row in found:
        simulated, measured = float(row["simulated_us"]), float(row["measured_us"])
        assert 0 < float(row["simulated_low_us"]) < simulated < float(row["simulated_high_us"])
        assert float(row["error_percent"]) == pytest.approx(100 * (simulated / measured - 1))
        assert (row["evidence"], row["precision"] in ("float32", "bfloat16")) == ("measured", True)


def test_summary_and_page(written):
    summary = {row["what"]: row for row in rows(written[0] / "summary.csv")}
    assert {"layers", "layers, roofline"} <= set(summary)
    assert float(summary["layers"]["rows"]) == 6
    page = (written[0] / "simulated_against_measured.html").read_text(encoding="utf-8")
    assert "plotly" in page
    assert "Simulated against measured" in written[1].stdout
