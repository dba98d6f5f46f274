"""The closed loop on this machine, short: files, columns, and numbers that belong together."""

import csv
import subprocess
import sys
from pathlib import Path

import pytest

#: the loop takes a minute
pytestmark = pytest.mark.full
STUDY = Path(__file__).parents[2] / "studies" / "check_local.py"
FILES = ("layers.csv", "alltoall.csv", "ranks.csv", "candidates.csv", "summary.csv", "targets.csv")


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    out = tmp_path_factory.mktemp("check_local")
    done = subprocess.run(
        [sys.executable, str(STUDY), "--quick", "--out", str(out)],
        capture_output=True,
        text=True,
        timeout=480,
    )
    assert done.returncode == 0, done.stderr
    return out, done


def rows(path):
    with path.open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize(("name", "count"), [("layers", 5), ("ranks", 5), ("candidates", None)])
def test_everything_is_simulated_and_measured(written, name, count):
    found = rows(written[0] / f"{name}.csv")
    assert len(found) == count or count is None
    for row in found:
        simulated, measured = float(row["simulated_us"]), float(row["measured_us"])
        assert 0 < float(row["simulated_low_us"]) < simulated < float(row["simulated_high_us"])
        assert float(row["error_percent"]) == pytest.approx(100 * (simulated / measured - 1))
        assert float(row["roofline_us"]) > 0
        assert (row["evidence"], row["precision"] in ("float32", "bfloat16")) == ("measured", True)
        assert row["contended"] in ("True", "False")


def test_the_line_is_fitted_on_the_first_few(written):
    found = rows(written[0] / "ranks.csv")
    assert [row["in_fit"] for row in found] == ["True"] * 3 + ["False"] * 2
    points = sorted((float(row["simulated_us"]), float(row["fitted_us"])) for row in found)
    (x0, y0), (x1, y1) = points[0], points[-1]
    slope = (y1 - y0) / (x1 - x0)
    assert slope > 0
    for x, y in points:
        assert y == pytest.approx(y0 + slope * (x - x0), rel=1e-6)


def test_winners_and_random_candidates_ran_on_one_rank_and_on_two(written):
    found = rows(written[0] / "candidates.csv")
    kinds = {(row["role"], row["ranks"]) for row in found}
    assert kinds == {("winner", "1"), ("random", "1"), ("winner", "2"), ("random", "2")}
    assert sum(row["role"] == "random" for row in found) == 2
    assert len({(row["candidate"], row["ranks"]) for row in found}) == len(found)


def test_summary_targets_and_page(written):
    summary = {row["what"]: row for row in rows(written[0] / "summary.csv")}
    assert {
        "layers",
        "layers, roofline",
        "all-to-all, 2 ranks",
        "layers on 2 ranks",
        "candidates on 2 ranks",
        "layers on 2 ranks, a + b x simulated",
        "candidates on 1 rank",
        "the whole run",
    } == set(summary)
    assert float(summary["layers"]["rows"]) == 5
    assert float(summary["layers on 2 ranks"]["rows"]) == 2
    targets = rows(written[0] / "targets.csv")
    assert {row["met"] for row in targets} <= {"yes", "no"}
    assert len(targets) == 8
    page = (written[0] / "simulated_against_measured.html").read_text(encoding="utf-8")
    assert "plotly" in page
    for title in ("Simulated against measured", "Targets, for an idle machine"):
        assert title in written[1].stdout
    assert all((written[0] / name).is_file() for name in FILES)
