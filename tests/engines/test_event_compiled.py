"""The compiled twin gives SimPy's timeline, and its compiled code that of its plain Python."""

import math

import numpy as np
import pytest

from moesim.engines import event_compiled
from moesim.engines.event import run_event
from moesim.engines.event_compiled import run_event_compiled
from moesim.errors import ConfigError

TIMES = ("start_s_N", "end_s_N", "busy_s_R")


@pytest.mark.parametrize("shape", ["random_program", "exchange_program", "lowered_program"])
def test_it_equals_simpy(request, shape):
    for seed in range(30):
        program = request.getfixturevalue(shape)(seed)
        expected, got = run_event(program), run_event_compiled(program)
        for name in TIMES:
            assert getattr(got, name) == pytest.approx(
                getattr(expected, name), rel=1e-9, abs=1e-18
            ), (name, seed)
        assert (got.makespan_s, got.events) == (
            pytest.approx(expected.makespan_s, rel=1e-9),
            expected.events,
        )


@pytest.mark.parametrize("chunks", [1, 3])
def test_it_equals_simpy_with_a_given_number_of_chunks(exchange_program, chunks):
    program = exchange_program(3)
    expected = run_event(program, quantum_s=math.inf, min_chunks=chunks)
    got = run_event_compiled(program, quantum_s=math.inf, min_chunks=chunks)
    assert got.end_s_N == pytest.approx(expected.end_s_N, rel=1e-9)
    assert got.events == chunks * int((np.diff(program.demand_ptr) > 0).sum())


def test_compiled_equals_its_python(random_program, monkeypatch):
    programs = [random_program(seed) for seed in range(5)]
    compiled = [run_event_compiled(p) for p in programs]
    for name in ("_run", "_put", "_up", "_down"):
        monkeypatch.setattr(event_compiled, name, getattr(event_compiled, name).py_func)
    for program, expected in zip(programs, compiled, strict=True):
        got = run_event_compiled(program)
        for name in TIMES:
            assert getattr(got, name).tobytes() == getattr(expected, name).tobytes(), name


@pytest.mark.parametrize("quantum", [0.0, -1.0, math.nan])
def test_refused_quanta(random_program, quantum):
    with pytest.raises(ConfigError, match=r"^event: expected a quantum > 0 s, got "):
        run_event_compiled(random_program(0), quantum_s=quantum)
