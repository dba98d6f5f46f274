"""``moesim kernels``: the table it writes, its exit codes, and one line for bad input."""

import csv
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from moesim.cli import main
from moesim.measured import plugins

COLUMNS = [
    "target",
    "kernel",
    "dtype",
    "tile",
    "status",
    "registers",
    "shared_bytes",
    "spills",
    "ctas_per_sm",
    "compile_s",
    "held_to",
]


@pytest.fixture
def kernels(capsys, monkeypatch):
    """Run the command; returns (exit code, standard output, standard error)."""

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["moesim", "kernels", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        printed = capsys.readouterr()
        return ended.value.code or 0, printed.out, printed.err

    return call


class Compiler:
    """Two rows, one of which is over budget if asked for."""

    def __init__(self, status):
        self.status = status

    def unavailable_because(self):
        return None

    def targets(self):
        return ("sm_80", "sm_90")

    def rows(self, targets, only):
        for target in targets:
            yield {
                "target": target,
                "kernel": "stream",
                "dtype": "f32",
                "tile": "4096",
                "status": self.status,
                "registers": 64,
                "shared_bytes": 0,
                "spills": 0,
                "ctas_per_sm": 4,
                "compile_s": 0.5,
                "held_to": "budget",
                "error": "registers 64, budget 60" if self.status == "over_budget" else "",
            }


@pytest.mark.parametrize(
    ("status", "code"), [("ok", 0), ("unsupported", 0), ("over_budget", 1), ("failed", 1)]
)
def test_rows_and_exit_code(kernels, monkeypatch, tmp_path, status, code):
    monkeypatch.setattr(plugins, "kernel_tool", lambda _: Compiler(status))
    path = tmp_path / "new" / "table.csv"
    ended, out, err = kernels("compile", "--out", str(path), "--targets", "sm_90,sm_80")
    assert ended == code
    assert "sm_90" in out
    assert f"wrote {path}" in err
    assert ("over_budget: sm_90 stream f32 4096: registers 64, budget 60" in err) == (
        status == "over_budget"
    )
    rows = list(csv.DictReader(path.open()))
    assert list(rows[0]) == COLUMNS
    assert [(row["target"], row["status"]) for row in rows] == [
        ("sm_90", status),
        ("sm_80", status),
    ]


@pytest.mark.skipif(find_spec("triton") is None, reason="needs Triton's compiler")
def test_compiles_without_a_gpu(kernels, tmp_path):
    path = tmp_path / "table.csv"
    code, _, err = kernels(
        "compile", "--out", str(path), "--targets", "sm_90", "--kernel", "stream"
    )
    assert code == 0, err
    rows = list(csv.DictReader(path.open()))
    assert {(row["target"], row["dtype"], row["status"]) for row in rows} == {
        ("sm_90", "f32", "ok")
    }


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("--targets", "sm_10"),
            "--targets: expected any of sm_80, sm_89, sm_90, sm_100, sm_120, gfx942, gfx950, got",
        ),
        (("--targets", "sm_90,"), "--targets: expected any of sm_80"),
        (("--kernel", "attention"), "no kernel's name contains 'attention'"),
    ],
)
def test_bad_input_is_one_line(kernels, tmp_path, arguments, message):
    code, out, err = kernels("compile", "--out", str(tmp_path / "table.csv"), *arguments)
    assert (code, out) == (2, "")
    assert message in err
    assert len(err.strip().splitlines()) == 1


def test_a_file_that_cannot_be_written_is_refused_first(kernels, tmp_path):
    code, _, err = kernels("compile", "--out", str(tmp_path))
    assert code == 2
    assert "cannot write this file" in err


def test_what_cannot_run_says_why(kernels, monkeypatch, tmp_path):
    monkeypatch.setattr(plugins, "entry_points", lambda group: [])
    code, _, err = kernels("compile", "--out", str(tmp_path / "table.csv"))
    assert code == 2
    assert "kernels compile: no installed package can" in err


class Tuner:
    """Says what it was asked for."""

    def unavailable_because(self):
        return None

    def rows(self, layer, tokens, **options):
        for number in tokens:
            yield {
                "num_tokens": number,
                "gemm": "swiglu",
                "num_experts": layer.num_experts,
                "tuned_us": 1.0,
            } | options

    def table(self):
        return Path(os.environ["MOESIM_HOME"]) / "kernel_tiles" / "gpu.csv"

    def merged(self, table, rows):
        return list(rows)


def test_tune_without_a_file_writes_this_gpus_table(kernels, monkeypatch, tmp_path):
    monkeypatch.setattr(plugins, "kernel_tool", lambda _: Tuner())
    monkeypatch.setenv("MOESIM_HOME", str(tmp_path))
    code, _, err = kernels("tune", "--preset", "mixtral-8x7b", "--tokens", "16")
    assert code == 0, err
    assert len(list(csv.DictReader((tmp_path / "kernel_tiles" / "gpu.csv").open()))) == 1


def test_tune_writes_what_it_found(kernels, monkeypatch, tmp_path):
    monkeypatch.setattr(plugins, "kernel_tool", lambda _: Tuner())
    path = tmp_path / "new" / "tiles.csv"
    code, out, err = kernels(
        "tune",
        "--preset",
        "mixtral-8x7b",
        "--tokens",
        "16, 1024",
        "--skew",
        "1",
        "--out",
        str(path),
    )
    assert code == 0, err
    assert "swiglu" in out
    rows = list(csv.DictReader(path.open()))
    assert [(row["num_tokens"], row["num_experts"], row["dtype"], row["skew"]) for row in rows] == [
        ("16", "8", "bfloat16", "1.0"),
        ("1024", "8", "bfloat16", "1.0"),
    ]


@pytest.mark.parametrize(
    "tokens", ["0", "-1", "1e3", "", "16,,64", "9999999999", "\N{SUPERSCRIPT TWO}"]
)
def test_tune_refuses_bad_numbers_of_tokens(kernels, tmp_path, tokens):
    code, out, err = kernels(
        "tune", "--preset", "mixtral-8x7b", "--out", str(tmp_path / "t.csv"), "--tokens", tokens
    )
    assert (code, out) == (2, "")
    assert "--tokens: expected integers from 1" in err


def test_tune_without_a_gpu_says_so_and_stops(tmp_path):
    path = tmp_path / "tiles.csv"
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    probe = (
        "import torch; print(torch.cuda.is_available())" if find_spec("torch") else "print(False)"
    )
    if (
        subprocess.run(
            [sys.executable, "-c", probe], capture_output=True, text=True, check=True
        ).stdout
        == "True\n"
    ):
        pytest.skip("there is a GPU: this is what machines without one are told")
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "moesim.cli",
            "kernels",
            "tune",
            "--preset",
            "mixtral-8x7b",
            "--out",
            str(path),
        ],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert len(done.stderr.strip().splitlines()) == 1
    assert done.stderr.startswith("error: kernels tune: ")
    assert not path.exists()
