"""``moesim recommend`` of a whole model as a user meets it."""

import csv
import sys

import pytest

from moesim.cli import main

SMALL = ["recommend", "--model", "gpt-oss-120b", "--cluster", "hgx-h100-8", "--gpus", "4"]


@pytest.fixture
def moesim(monkeypatch, capsys):
    """Run a command line in this process: (exit code, stdout, stderr)."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["moesim", *map(str, arguments)])
        monkeypatch.setenv("COLUMNS", "80")
        with pytest.raises(SystemExit) as stopped:
            main()
        return stopped.value.code or 0, *capsys.readouterr()

    return run


def test_it_says_what_to_serve_with(moesim, tmp_path):
    path = tmp_path / "new" / "rows.csv"
    options = ["--isl", 512, "--osl", 64, "--latency-ms", 9, "--engine", "vllm", "--out", path]
    code, out, err = moesim(*SMALL, *options, "--details")
    assert code == 0
    assert err == f"wrote {path}\n"
    assert max(map(len, out.splitlines())) <= 80
    rows = list(csv.DictReader(path.open()))
    assert rows[0]["what"] == "recommended"
    assert float(rows[0]["tpot_mean_ms"]) <= 9
    assert {row["what"] for row in rows} == {"recommended", "other layout", "divided", "front"}
    assert out.startswith("gpt-oss-120b on hgx-h100-8")
    assert f": {rows[0]['layout']}" in out.splitlines()[0]
    assert "No estimate is better for device and user" in out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--isl", "9", "--tokens", "64"], "such as --isl, or of its MoE layers, such as --tokens"),
        (["--latency-ms", "5", "--phase", "decode"], "such as --latency-ms, or of its MoE layers"),
        (["--latency-ms", "-1"], "latency_ms: expected a number > 0, got -1"),
        (["--slo", "soon"], "slo: expected terms such as"),
        (["--engine", "foo"], "engine: expected sglang or vllm or trtllm, got 'foo'"),
    ],
)
def test_bad_input_is_one_line(moesim, options, message):
    code, out, err = moesim(*SMALL, *options)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert message in err
