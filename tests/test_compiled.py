"""Functions that run in plain Python until compiling them pays: what runs when, and that it does
not matter.
"""

import json
import subprocess
import sys

import numpy as np
import pytest

from moesim import compiled
from moesim.engines import bound
from moesim.lowering.counting import count_copies
from moesim.placement import turns


def test_plain_until_the_budget_is_spent(monkeypatch):
    monkeypatch.setattr(compiled, "BUDGET_S", 1.0)
    monkeypatch.setattr(compiled, "_spent_s", 0.0)
    ran = []

    @compiled.compiled(lambda seconds: seconds, plain=lambda seconds: ran.append(seconds))
    def function(seconds):
        return seconds

    for seconds in (0.5, 0.3, 0.1):
        assert function(seconds) is None
    assert ran == [0.5, 0.3, 0.1]
    # too much for plain Python; once compiled it stays so
    assert function(0.2) == 0.2
    assert function(0.01) == 0.01
    assert ran == [0.5, 0.3, 0.1]
    assert function.py_func(3.0) == 3.0


def test_functions_are_compiled_at_once_by_default(monkeypatch):
    monkeypatch.setattr(compiled, "_spent_s", 0.0)

    @compiled.compiled(compiled.with_caller)
    def inner(x):
        return x + 1

    @compiled.compiled()
    def outer(x):
        return 2 * inner(x)

    # a compiled function finds the compiled one behind a function that it calls
    assert outer(3) == 8
    assert len(outer.compiled.signatures) == 1
    assert len(inner.compiled.signatures) == 1
    assert inner(4) == 5


def test_counts_on_whole_arrays():
    rng = np.random.default_rng(0)
    for tokens, choices, ranks, domains in ((40, 3, 6, 2), (0, 2, 4, 4), (7, 1, 1, 1)):
        slot_TK = rng.integers(-1, 12, (tokens, choices))
        given = (
            slot_TK,
            rng.integers(0, ranks, 12),
            np.bincount(rng.integers(0, 5, tokens), minlength=5),
            np.arange(ranks) * domains // ranks,
            ranks,
            domains,
        )
        for one, two, three in zip(
            count_copies.compiled(*given),
            count_copies.plain(*given),
            count_copies.py_func(*given),
            strict=True,
        ):
            assert one.dtype == two.dtype
            assert one.tolist() == two.tolist() == three.tolist()


def test_bounds_and_turns_compiled_as_written():
    rng = np.random.default_rng(0)
    ptr, res = np.array([0, 2, 2, 5]), np.array([0, 3, 1, 2, 3])
    amount, rate = rng.random(5), rng.random(4) + 0.5
    serve, tail = rng.random(3), rng.random(3)
    dep_ptr, dep_index = np.array([0, 0, 1, 3]), np.array([0, 0, 1])
    ids = rng.integers(0, 4, 50).astype(np.int32)
    for function, *given in (
        (bound.demands, ptr, res, amount, rate),
        (bound.ends, ptr, res, serve, tail, 4),
        (bound.paths, rng.random(3), serve, tail, dep_ptr, dep_index),
        (turns.slots_in_turn, ids, rng.permutation(8), np.arange(4) * 2, np.full(4, 2)),
        (turns.turns, ids, 4),
    ):
        one, two = function.compiled(*given), function.py_func(*given)
        assert np.hstack(one).tobytes() == np.hstack(two).tobytes()


@pytest.mark.parametrize("options", [[], ["--routing", "zipf:0.8", "--placement", "eplb"]])
def test_a_node_is_simulated_without_numba_and_alike(options, tmp_path):
    """Whole results, compiled at once and in plain Python, and what was imported for the latter."""
    script = (
        "import sys, json; from moesim import compiled; compiled.BUDGET_S = float(sys.argv[1]);"
        "from moesim.cli.root import app; app(json.loads(sys.argv[2]), standalone_mode=False);"
        "print('numba' in sys.modules)"
    )
    told = []
    for budget in ("0", "inf"):
        out = tmp_path / f"{budget}.csv"
        command = ["simulate", *options, "--tokens", "64", "--out", str(out)]
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", script, budget, json.dumps(command)],
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        *lines, numba = done.stdout.splitlines()
        assert numba == str(budget == "0")
        told.append((lines, out.read_text()))
    assert told[0] == told[1]
