"""``moesim doctor``: what is here, what is missing, and what to do about it."""

import json
import subprocess

import pytest
from typer.testing import CliRunner

from moesim.cli.root import app
from moesim.measured import environment


def doctor(*options):
    return CliRunner().invoke(app, ["doctor", *options])


def test_every_line_has_a_status_and_what_is_missing_a_way_to_get_it():
    done = doctor("--json")
    assert done.exit_code == 0
    whole = json.loads(done.stdout)
    assert whole["works"] is True
    findings = {one["name"]: one for one in whole["findings"]}
    assert {"Python", "core", "torch", "triton", "GPU and driver", "numba cache"} <= set(findings)
    assert {"Triton interpreter", "C compiler", "distributed", "psycopg"} <= set(findings)
    assert {"aiconfigurator-core", "optuna-dashboard", "matplotlib"} <= set(findings)
    for one in findings.values():
        assert one["status"] in ("ok", "missing", "hint")
        assert bool(one["fix"]) == (one["status"] != "ok"), one
    lines = doctor().stdout.splitlines()
    assert len(lines) == len(findings) + 1
    assert all(line.split()[0] in ("ok", "missing", "hint") for line in lines[1:])


def test_what_is_missing_is_told_with_its_extra(monkeypatch):
    monkeypatch.setattr(
        environment, "installed", lambda name: None if name == "distributed" else "9.9"
    )
    (line,) = [one for one in doctor().stdout.splitlines() if "distributed" in one]
    assert line.startswith("missing")
    assert line.endswith("-> pip install 'moesim[dask]'")


def test_the_exit_is_0_unless_the_core_cannot_run(monkeypatch):
    monkeypatch.setattr(environment, "installed", lambda name: None if name == "torch" else "9.9")
    assert doctor().exit_code == 0
    monkeypatch.setattr(environment, "installed", lambda name: None if name == "scipy" else "9.9")
    done = doctor()
    assert done.exit_code == 1
    assert "pip install scipy" in done.stdout


def test_a_cache_that_cannot_be_written_is_a_hint(monkeypatch):
    monkeypatch.setattr(environment, "cache_folder", lambda: None)
    (line,) = [one for one in doctor().stdout.splitlines() if "numba cache" in one]
    assert line.startswith("hint")
    assert "NUMBA_CACHE_DIR" in line


def test_triton_3_6_and_a_new_numpy_are_a_hint(monkeypatch):
    versions = {"triton": "3.6.0", "numpy": "2.4.1"}
    monkeypatch.setattr(environment, "installed", lambda name: versions.get(name, "9.9"))
    (line,) = [one for one in doctor().stdout.splitlines() if "Triton interpreter" in one]
    assert line.startswith("hint")
    assert "numpy<2.4" in line


@pytest.mark.parametrize(
    ("answer", "status", "says"),
    [
        (
            (0, "NVIDIA H100, 580.1, 81559 MiB\n" * 8, ""),
            "ok",
            "NVIDIA H100, 580.1, 81559 MiB and 7",
        ),
        ((9, "", "couldn't communicate with the driver\n"), "missing", "couldn't communicate"),
        (subprocess.TimeoutExpired("nvidia-smi", 2), "missing", "does not answer: TimeoutExpired"),
    ],
)
def test_the_drivers_tool_is_asked(answer, status, says, monkeypatch):
    def run(command, **options):
        if isinstance(answer, Exception):
            raise answer
        return subprocess.CompletedProcess(command, *answer)

    monkeypatch.setattr(environment.shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(environment.subprocess, "run", run)
    found = environment._gpu()
    assert found.status == status
    assert says in found.says
