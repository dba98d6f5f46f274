"""The study of very many experts, small: what breaks is what the numbers say, and remedies are
compared.
"""

import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

#: the study takes a third of a minute
pytestmark = pytest.mark.full
SCRIPT = str(Path(__file__).parent.parent.parent / "studies" / "million_experts.py")


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    out = tmp_path_factory.mktemp("million")
    done = subprocess.run(
        [sys.executable, SCRIPT, "--quick", "--out", str(out)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done, out


def test_files_and_provenance(study):
    done, out = study
    assert {p.name for p in out.iterdir()} == {
        "points.csv",
        "breaks.csv",
        "remedies.csv",
        "million_experts.html",
    }
    assert "against Shazeer et al. 2017" in done.stdout
    rows = pd.read_csv(out / "points.csv")
    assert len(rows) == 12
    assert (
        rows[["evidence", "calibration", "engine", "seed", "version", "profile_hash"]]
        .notna()
        .all(axis=None)
    )
    assert rows["loss_extrapolated"].all()
    assert (rows["loss_low"] <= rows["loss"]).all()


def test_breaks_follow_from_points(study):
    rows = pd.read_csv(study[1] / "points.csv")
    assert (rows["memory_broken"] == ~rows["fits"]).all()
    assert (rows["gate_broken"] == (rows["gate_share"] > 0.25)).all()
    assert (rows["exchange_broken"] == (rows["exchange_share"] > 0.5)).all()
    assert rows["experts_efficiency"].between(0, 1).all()
    first = pd.read_csv(study[1] / "breaks.csv").set_index("cluster")
    assert first.loc["64 H100, rail", "gate_flat"] == "1,048,576"
    assert first.loc["64 H100, rail", "gate_product_key"] == "never"


def test_gates_cost_what_they_should_at_a_million(study):
    rows = pd.read_csv(study[1] / "points.csv")
    many = rows[(rows["num_experts"] == 1048576) & (rows["cluster"] == "64 H100, rail")].set_index(
        "gate_kind"
    )
    assert (
        many.loc["flat", "gate_us"]
        > many.loc["two_level", "gate_us"]
        > many.loc["product_key", "gate_us"]
    )
    assert many.loc["flat", "gate_gib"] > 100 * many.loc["product_key", "gate_gib"]
    assert many["loss"].nunique() == 1  # of the same keys
    assert (many["total_params"] > 2.5e12).all()


def test_remedies(study):
    rows = pd.read_csv(study[1] / "remedies.csv").set_index("remedy")
    assert rows.loc["product keys", "gate_share"] < 0.1 * rows.loc["none", "gate_share"]
    assert rows.loc["fp8", "memory_gib"] < rows.loc["none", "memory_gib"]
    assert rows.loc["two hops (DeepEP)", "exchange_share"] < rows.loc["none", "exchange_share"]
