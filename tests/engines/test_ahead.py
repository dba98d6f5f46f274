"""A process of its own compiles the engines into the cache, once."""

import os
import subprocess
import sys

import pytest

SCRIPT = """
from moesim.engines import ahead, flow
before = [f.is_cached() for f in ahead._LONG]
ahead.compile_ahead()
flow._solve.compiled
after = [f.is_cached() for f in ahead._LONG]
started = [f._awaited is not None for f in ahead._LONG]
print(before, after, started)
"""


@pytest.mark.full
def test_engines_are_compiled_beside_other_work_once(tmp_path):
    def run():
        return subprocess.run(
            [sys.executable, "-c", SCRIPT],
            check=True,
            capture_output=True,
            text=True,
            env=os.environ | {"NUMBA_CACHE_DIR": str(tmp_path)},
        ).stdout.strip()

    assert run() == "[False, False] [True, True] [True, True]"
    assert run() == "[True, True] [True, True] [False, False]"
