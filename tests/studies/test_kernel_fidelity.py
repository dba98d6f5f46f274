"""The fidelity study on few rows: its tables, their columns, and pages that need no network."""

import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from moesim.measured.kernels import table as silicon
from moesim.measured.kernels.predict import PREDICTED
from moesim.version import VERSION

pytestmark = pytest.mark.full

SCRIPT = str(Path(__file__).parent.parent.parent / "studies" / "kernel_fidelity.py")
CLASS = ["system", "dataset", "precision", "ep", "fitted"]
SCORES = ["rows", "median", "mape", "p90", "bias"]
SOURCED = ["evidence", "calibration", "mode", "version"]
PAGES = ("error_by_tokens.html", "error_by_shape.html", "predicted_against_measured.html")


def run(*arguments):
    return subprocess.run(
        [sys.executable, SCRIPT, *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={k: v for k, v in os.environ.items() if k != "COLUMNS"},
    )


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """What the study printed, and its folder."""
    out = tmp_path_factory.mktemp("fidelity") / "new" / "folder"
    done = run("--limit", "20", "--out", str(out))
    assert done.returncode == 0, done.stderr
    return done, out


@pytest.mark.full
def test_writes_these_files_and_nothing_else(study):
    _, out = study
    assert {path.name for path in out.iterdir()} == {
        "rows.csv",
        "scoreboard.csv",
        "ranking.csv",
        "error_by_tokens.csv",
        "error_by_shape.csv",
        "error_by_tile.csv",
        *PAGES,
    }


def test_rows_hold_every_class_of_every_system_and_its_predictions(study):
    rows = pd.read_csv(study[1] / "rows.csv")
    assert list(rows.columns) == [
        *silicon.COLUMNS,
        "latency_ms",
        "fitted",
        *PREDICTED,
        "fit_family",
        "tile",
        "mode",
        "version",
    ]
    assert set(rows["system"]) == set(silicon.systems())
    sizes = rows.groupby(
        ["system", "dataset", "moe_dtype", rows["moe_ep_size"] > 1, "fitted"]
    ).size()
    # no more than the ten few-shot rows
    few = rows["fitted"] & rows["system"].isin(["b200_sxm", "l40s"])
    assert (sizes[~sizes.index.isin(sizes.index[sizes < 20])] == 20).all()
    assert sizes[sizes < 20].sum() == few.sum() > 0
    assert rows.notna().all(axis=None)
    assert rows["tile"].str.fullmatch(r"\d+x\d+x\d+w\d+s\d+").all()
    assert set(rows["evidence"]) == {"simulated"}
    assert set(rows["calibration"]) == {"calibrated", "few_shot", "spec_sheet"}
    assert set(rows["mode"]) == {"calibrated"}
    assert set(rows["version"].astype(str)) == {VERSION}


@pytest.mark.parametrize("bucket", ["tokens", "shape", "tile"])
def test_errors_by_bucket_are_those_of_the_rows(study, bucket):
    column = {"tokens": "num_tokens"}.get(bucket, bucket)
    table = pd.read_csv(study[1] / f"error_by_{bucket}.csv")
    assert list(table.columns) == [*CLASS, column, *SCORES, *SOURCED]
    assert table.notna().all(axis=None)
    assert not table.duplicated([*CLASS, column]).any()
    rows = pd.read_csv(study[1] / "rows.csv")
    rows = rows[rows["latency_ms"] >= 0.05].assign(
        error=lambda r: 100 * (r["predicted_latency_ms"] / r["latency_ms"] - 1),
        shape=lambda r: (
            r["hidden_size"].astype(str)
            + "x"
            + r["inter_size"].astype(str)
            + ", "
            + r["topk"].astype(str)
            + " of "
            + r["num_experts"].astype(str)
        ),
    )
    assert table["rows"].sum() == len(rows)
    one = table.loc[table["rows"].idxmax()]
    spread = rows["moe_ep_size"] > 1 if one["ep"] == "EP>1" else rows["moe_ep_size"] == 1
    own = rows[
        (rows["system"] == one["system"])
        & (rows["dataset"] == one["dataset"])
        & spread
        & (rows["moe_dtype"] == one["precision"])
        & (rows["fitted"] == one["fitted"])
        & (rows[column] == one[column])
    ]["error"]
    assert len(own) == one["rows"]
    assert one["bias"] == pytest.approx(own.median())
    assert one["mape"] == pytest.approx(own.abs().mean())
    assert one["p90"] == pytest.approx(own.abs().quantile(0.9))


def test_scoreboard_and_ranking_say_how_each_was_predicted(study):
    done, out = study
    scores = pd.read_csv(out / "scoreboard.csv")
    assert {*CLASS, *SCORES, *SOURCED, "family", "us", "inside", "roofline_mape"} == set(
        scores.columns
    )
    assert scores.notna().all(axis=None)
    assert scores["rows"].sum() == len(pd.read_csv(out / "rows.csv"))
    ranks = pd.read_csv(out / "ranking.csv")
    assert {
        "system",
        "dataset",
        "precision",
        "groups",
        "kendall_tau",
        "regret_percent",
        *SOURCED,
    } <= set(ranks.columns)
    # twenty rows of a class hardly ever share their conditions, and it says so
    assert (
        len(ranks) or "no ranking: no six of the rows drawn share their conditions" in done.stderr
    )


def test_prints_rows_of_at_least_50_us_only(study):
    done, out = study
    scores = pd.read_csv(out / "scoreboard.csv")
    table = done.stdout.partition("80 % interval")[2].partition("\n\n")[0]
    shown = [line for line in table.splitlines() if "sglang/" in line or "vllm/" in line]
    assert (scores["us"] == "< 50").any()
    assert len(shown) == (scores["us"] == ">= 50").sum()
    assert "wrote" in done.stderr


@pytest.mark.parametrize("page", PAGES)
def test_pages_need_no_network(study, page):
    text = (study[1] / page).read_text(encoding="utf-8")
    assert "http:" not in text
    assert "https:" not in text
    assert " src=" not in text
    assert "<title>" in text
    assert "h100_sxm" in text
    assert len(text) < 4_000_000


@pytest.mark.full
def test_spec_mode_ranks_and_uses_no_few_shot_factors(tmp_path):
    done = run("--limit", "300", "--mode", "spec", "--out", str(tmp_path))
    assert done.returncode == 0, done.stderr
    for name in (
        "rows",
        "scoreboard",
        "ranking",
        "error_by_tokens",
        "error_by_shape",
        "error_by_tile",
    ):
        table = pd.read_csv(tmp_path / f"{name}.csv")
        assert len(table)
        assert set(table["mode"]) == {"spec"}
        assert set(table["evidence"]) == {"simulated"}
        assert set(table["calibration"]) == {"calibrated", "spec_sheet"}
    assert "Ranking of architecture x TP x EP" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--mode", "best"], "error: --mode: expected calibrated or spec, got 'best'"),
        (
            ["--out", "{file}/x"],
            "error: {file}/x: cannot write to this output folder: Not a directory",
        ),
    ],
)
def test_bad_options_are_one_line(tmp_path, arguments, line):
    file = tmp_path / "file"
    file.write_text("")
    done = run("--limit", "1", *(argument.format(file=file) for argument in arguments))
    assert done.returncode == 2
    assert done.stderr == line.format(file=file) + "\n"
