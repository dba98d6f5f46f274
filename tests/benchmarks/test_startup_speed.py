"""How long a new process takes to start and to answer: with compiled code in its cache, and with an
empty one (cold). Nothing is asserted of time.

Targets on two idle cores: help .25 s, simulate .6 s warm and 3 s cold, recommend 3 and 8 s.
"""

import os
import subprocess
import sys

import pytest

MOESIM = ["-m", "moesim.cli"]
NODES = ["--cluster", "h100-rail-8x8"]
COMMANDS = {
    "import moesim": ["-c", "import moesim"],
    "from moesim import *": ["-c", "from moesim import *"],
    "help": [*MOESIM, "--help"],
    "help of simulate": [*MOESIM, "simulate", "--help"],
    "simulate a node": [*MOESIM, "simulate"],
    "simulate eight nodes": [*MOESIM, "simulate", "--preset", "deepseek-v3", *NODES],
    "recommend for eight nodes": [*MOESIM, "recommend", "--model", "deepseek-v3", *NODES],
}


@pytest.mark.parametrize("cache", ["warm", "cold"])
@pytest.mark.parametrize("command", list(COMMANDS))
def test_process(benchmark, tmp_path_factory, command, cache):
    def run(folder):
        subprocess.run(
            [sys.executable, *COMMANDS[command]],
            check=True,
            capture_output=True,
            env=os.environ | {"NUMBA_CACHE_DIR": str(folder)},
        )

    kept = tmp_path_factory.mktemp("warm")

    def folder():
        return (kept if cache == "warm" else tmp_path_factory.mktemp("cold"),), {}

    benchmark.pedantic(run, setup=folder, rounds=3, warmup_rounds=int(cache == "warm"))
