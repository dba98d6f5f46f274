"""`moesim measure`: a profile of this CPU, and what can be done with it."""

import sys

import pytest

from moesim.cli import main


@pytest.fixture
def moesim(monkeypatch, capsys):
    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["moesim", *arguments])
        with pytest.raises(SystemExit) as stopped:
            main()
        captured = capsys.readouterr()
        return stopped.value.code or 0, captured.out, captured.err

    return run


def test_a_measured_cpu_is_a_cluster_of_its_own(moesim, monkeypatch, tmp_path):
    monkeypatch.setenv("MOESIM_HOME", str(tmp_path))
    code, out, _ = moesim("measure", "--seconds", "1")
    assert code == 0
    assert "GFLOP/s" in out
    code, out, _ = moesim("simulate", "--cluster", "local", "--preset", "olmoe-1b-7b", "--tokens", "16", "--layer-only")
    assert code == 0
    assert "on local:" in out


def test_a_profile_that_cannot_be_written(moesim, tmp_path):
    (tmp_path / "file").write_text("")
    code, _, err = moesim("measure", "--seconds", "1", "--out", str(tmp_path / "file" / "x.toml"))
    assert code == 2
    assert err.splitlines()[-1].endswith("x.toml: cannot write this profile: File exists")
