"""The study of real training steps: its files, from rows that stand in for measured ones."""

import csv
import importlib.util
from pathlib import Path

import pytest

STUDY = Path(__file__).parent.parent.parent / "studies" / "train_local.py"


@pytest.fixture
def study():
    spec = importlib.util.spec_from_file_location("train_local", STUDY)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def rows_of(ranks, fitted_on):
    return [
        {
            "layer": number,
            "ranks": ranks,
            "precision": "float32",
            "simulated_us": 100.0 * (number + 1),
            "fitted_us": 110.0 * (number + 1),
            "measured_us": 110.0 * (number + 1),
            "phases_us": 105.0 * (number + 1),
            "in_fit": ranks > 1 and number < fitted_on,
            "contended": False,
        }
        for number in range(6)
    ]


class Machine:
    host_fabric = "two ranks"


def test_steps_are_scored_and_drawn(study, tmp_path, monkeypatch):
    cpu_profile = pytest.importorskip("moesim_kernels.profile.cpu_profile")
    train_loop = pytest.importorskip("moesim_kernels.sources.train_loop")
    # where it takes them from when it runs
    monkeypatch.setattr(cpu_profile, "write_profile", lambda path, *_, **__: path.touch())
    monkeypatch.setattr(study, "load_profile", lambda _: Machine())
    monkeypatch.setattr(
        train_loop,
        "training_rows",
        lambda _, __, ___, ranks, fitted_on, **____: rows_of(ranks, fitted_on),
    )
    study.main(quick=True, out=tmp_path)
    steps = list(csv.DictReader((tmp_path / "steps.csv").open()))
    assert [row["ranks"] for row in steps] == ["1"] * 6 + ["2"] * 6
    summary = {row["what"]: row for row in csv.DictReader((tmp_path / "summary.csv").open())}
    alone = summary["training steps"]
    assert float(alone["mape"]) == pytest.approx(100 * (1 - 1 / 1.1))
    fitted = summary["training steps on 2 ranks, a + b x simulated"]
    assert (fitted["rows"], float(fitted["mape"])) == ("4.0", 0.0)
    phases = summary["training steps on 2 ranks, sum of phases"]
    assert float(phases["mape"]) == pytest.approx(100 * (1 - 1 / 1.05))
    assert (tmp_path / "simulated_against_measured.html").exists()
