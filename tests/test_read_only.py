"""An installation that cannot be written, used by somebody without a home."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import moesim
from moesim import compiled

NOBODY = "65534"
SAID = (
    "numba: no folder for compiled code can be written, so each process compiles anew (some "
    "seconds): set NUMBA_CACHE_DIR to one"
)
COMMAND = (
    "import sys, moesim.cli as c; "
    "sys.argv = ['moesim', 'simulate', '--preset', 'qwen3-30b-a3b', '--engine', 'event_compiled']; "
    "c.main()"
)


@pytest.mark.full
def test_a_read_only_installation_runs_and_says_once_that_it_has_no_cache(tmp_path):
    env = {k: v for k, v in os.environ.items() if not k.startswith(("NUMBA_CACHE", "XDG_"))}
    env |= {"HOME": "/nonexistent"}
    command = [sys.executable, "-c", COMMAND]
    if os.geteuid() == 0:
        # permission bits do not hold for root: become somebody who owns nothing
        found = shutil.which("setpriv")
        assert found is not None, "root needs setpriv of util-linux"
        ids = [f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]
        command = [found, *ids, *command]
    else:
        copy = shutil.copytree(Path(moesim.__file__).parent, tmp_path / "moesim")
        for folder, _, _ in os.walk(copy):
            os.chmod(folder, 0o555)
        env["PYTHONPATH"] = str(tmp_path)
    done = subprocess.run(command, cwd="/", env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "layer " in done.stdout
    assert done.stderr.splitlines() == [SAID]


class NoFolder:
    """What numba does where it can write nowhere."""

    def __init__(self, text):
        self.text, self.made = text, 0

    def __call__(self, *, cache=False, **options):
        if cache:
            raise RuntimeError(self.text)
        self.made += 1
        return lambda function: function


def test_functions_are_compiled_without_a_cache_where_none_can_be(monkeypatch, capsys):
    monkeypatch.setattr(compiled, "_without_cache", False)
    njit = NoFolder("cannot cache function 'f': no locator available for file 'f.py'")
    assert compiled._cached(njit, {}, len) is len
    assert compiled._cached(njit, {}, max) is max
    assert njit.made == 2
    assert capsys.readouterr().err.splitlines() == [SAID]


def test_other_errors_of_numba_are_not_swallowed(monkeypatch):
    monkeypatch.setattr(compiled, "_without_cache", False)
    with pytest.raises(RuntimeError, match="something else"):
        compiled._cached(NoFolder("something else"), {}, len)
