"""``moesim train`` on the command line."""

import csv

import pytest
from typer.testing import CliRunner

from moesim.cli.root import app
from moesim.errors import MoesimError

RUN = ["train", "--model", "olmoe-1b-7b", "--cluster", "hgx-h100-8", "--global-batch", "64"]


def invoke(*words):
    return CliRunner().invoke(app, [*map(str, words)])


def test_a_step_is_told_in_80_columns(tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    out = tmp_path / "step.csv"
    done = invoke(*RUN, "--layout", "ep8", "--tokens", 1e12, "--out", out)
    assert done.exit_code == 0, done.stderr
    for word in ("step", "throughput", "MFU", "bubble", "memory", "days to 1e+12", "USD", "grade"):
        assert word in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80
    (row,) = csv.DictReader(out.open())
    assert float(row["tokens_per_s"]) == pytest.approx(
        8 * float(row["tokens_per_s_per_device"]), rel=1e-6
    )
    assert row["layout"] == "dp8 ep8"


def test_plans_are_options():
    words = ["--layout", "pp4 ep2", "--pipeline", "dualpipe", "--optimizer", "muon"]
    words += ["--formats", "fp8", "--recompute", "selective", "--framework", "none"]
    done = invoke(*RUN, *words)
    assert done.exit_code == 0, done.stderr
    for word in ("dualpipe", "muon", "recompute selective", "framework none"):
        assert word in " ".join(done.stdout.split())


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--layout", "pp3"], "tp x cp x pp that divides 8 devices"),
        (["--layout", "pp8", "--gpus", "16"], "gpus: expected at most 8"),
        (["--layout", "tp8 ep8", "--sequence", "4097"], "plan.sequence"),
        (["--layout", "ep8", "--global-batch", "12"], "plan.global_batch: expected a multiple"),
        (["--layout", "ep8", "--sequence", "131072"], "does not fit on h100-sxm in training"),
        (["--pipeline", "gpipe"], "1f1b or interleaved or zero_bubble or dualpipe, got 'gpipe'"),
        (["--formats", "fp4"], "unknown formats of training"),
        (["--tokens", "-1", "--layout", "ep8"], "tokens: expected a number > 0"),
    ],
)
def test_bad_input_is_one_line(words, said):
    done = invoke(*RUN, *words)
    assert isinstance(done.exception, MoesimError), done.output
    assert said in str(done.exception)
    assert "\n" not in str(done.exception)
