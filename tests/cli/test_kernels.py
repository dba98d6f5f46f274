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
    """Says what it was asked for; the second timing is better, the third is not."""

    def unavailable_because(self):
        return None

    def rows(self, layer, tokens, **options):
        for number in tokens[: 1 if options["seconds"] < 2 else None]:
            for timed, tuned_us in ((2, 9.0), (3, 7.0), (4, 7.0)):
                yield [
                    {
                        "num_tokens": number,
                        "gemm": gemm,
                        "num_experts": layer.num_experts,
                        "block_m": 16,
                        "block_n": 64,
                        "block_k": 128,
                        "group_m": 8,
                        "num_warps": 4,
                        "num_stages": 3,
                        "path": "pointers",
                        "timed": timed,
                        "tuned_us": tuned_us,
                        "default_us": 9.0,
                    }
                    | options
                    for gemm in ("swiglu", "down")
                ]

    def table(self):
        return Path(os.environ["MOESIM_HOME"]) / "kernel_tiles" / "gpu.csv"

    def merged(self, table, rows):
        old = list(csv.DictReader(table.open())) if table.exists() else []
        keys = {(str(row["num_tokens"]), row["gemm"]) for row in rows}
        return [row for row in old if (row["num_tokens"], row["gemm"]) not in keys] + list(rows)


def test_tune_without_a_file_writes_this_gpus_table(kernels, monkeypatch, tmp_path):
    monkeypatch.setattr(plugins, "kernel_tool", lambda _: Tuner())
    monkeypatch.setenv("MOESIM_HOME", str(tmp_path))
    code, _, err = kernels("tune", "--preset", "mixtral-8x7b", "--tokens", "16")
    assert code == 0, err
    rows = list(csv.DictReader((tmp_path / "kernel_tiles" / "gpu.csv").open()))
    assert [(row["gemm"], row["tuned_us"]) for row in rows] == [("swiglu", "7.0"), ("down", "7.0")]


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
    assert "16x64x128w4s3g8" in out
    # Progress says what became better, and nothing else.
    assert err.count("us after") == 4
    rows = list(csv.DictReader(path.open()))
    assert [(row["num_tokens"], row["num_experts"], row["dtype"], row["skew"]) for row in rows] == [
        (tokens, "8", "bfloat16", "1.0") for tokens in ("16", "16", "1024", "1024")
    ]


def test_tune_says_what_it_did_not_reach(kernels, monkeypatch, tmp_path):
    monkeypatch.setattr(plugins, "kernel_tool", lambda _: Tuner())
    path = tmp_path / "tiles.csv"
    code, _, err = kernels(
        *("tune", "--preset", "mixtral-8x7b", "--tokens", "16,1024", "--seconds", "1"),
        *("--out", str(path)),
    )
    assert code == 0, err
    assert "not reached: 1024 tokens; try --seconds 2" in err
    assert {row["num_tokens"] for row in csv.DictReader(path.open())} == {"16"}


class Sweeper:
    """Yields rows, then fails as a lost GPU does."""

    def unavailable_because(self):
        return None

    def rows(self, layer, tokens, **options):
        for number in tokens:
            yield {"num_tokens": number, "hidden_size": layer.hidden_size} | options
        raise RuntimeError("device lost")


def test_sweep_keeps_every_row(kernels, monkeypatch, tmp_path):
    monkeypatch.setattr(plugins, "kernel_tool", lambda _: Sweeper())
    path = tmp_path / "new" / "rows.csv"
    code, _, err = kernels(
        *("sweep", "--preset", "mixtral-8x7b", "--tokens", "16,64", "--seconds", "5"),
        *("--out", str(path)),
    )
    assert code == 2
    assert "kernels sweep: device lost" in err
    assert "timing tiles of 64 tokens, 1 rows so far" in err
    rows = list(csv.DictReader(path.open()))
    assert [(row["num_tokens"], row["hidden_size"], row["seconds"]) for row in rows] == [
        ("16", "4096", "5.0"),
        ("64", "4096", "5.0"),
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
