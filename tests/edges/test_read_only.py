"""An installation that nobody may write to, without a home: commands run, and say once what that
costs.
"""

import ctypes
import os
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
SEARCH = """
import sys
sys.path.insert(0, {folder!r})
import moesim
from moesim.cli.start import main
assert moesim.__file__.startswith({folder!r})
sys.argv = ["moesim", "simulate", "--preset", "deepseek-v3", "--cluster", "h800-rail-8x8",
            "--precision", "fp8", "--tokens", "4096", "--engine", "event_compiled"]
main()
"""


def heed_permissions():
    """Root may write anywhere: take that from the process."""
    if os.geteuid() == 0:
        drop_from_bounding_set, dac_override = 24, 1
        assert ctypes.CDLL(None).prctl(drop_from_bounding_set, dac_override, 0, 0, 0) == 0


def small_files():
    """Let no file grow beyond what compiled code takes, as on a full disk."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))


@pytest.mark.full
@pytest.mark.parametrize("full", [False, True], ids=["read-only", "full"])
def test_without_a_cache(tmp_path, full):
    installed = tmp_path / "site"
    shutil.copytree(ROOT / "moesim", installed / "moesim", ignore=shutil.ignore_patterns("*.nb?"))
    for folder in (installed, *installed.rglob("*")):
        folder.chmod(0o555 if folder.is_dir() else 0o444)
    tmp_path.chmod(0o755)
    environment = {k: v for k, v in os.environ.items() if k not in ("NUMBA_CACHE_DIR", "HOME")}
    environment |= {"HOME": "/dev/null", "COLUMNS": "80"}
    if full:
        environment["NUMBA_CACHE_DIR"] = str(tmp_path / "cache")
    done = subprocess.run(
        [sys.executable, "-c", SEARCH.format(folder=str(installed))],
        cwd="/",
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=small_files if full else heed_permissions,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("compiled code is not kept") == 1
    assert "Traceback" not in done.stderr
    assert "layer" in done.stdout
