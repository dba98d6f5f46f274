"""What holds of every program, on random ones: work is conserved, no engine beats the bound, reruns
are identical.
"""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moesim.engines import ENGINES
from moesim.engines.run import run
from moesim.program.builder import ProgramBuilder

SEEDS = st.integers(0, 2**32 - 1)


@given(seed=SEEDS)
def test_work_is_conserved(random_program, seed):
    program = random_program(seed)
    for engine in ENGINES:
        served = run(program, engine).busy_s_R * program.capacity_R
        assert served == pytest.approx(program.demand_R(), rel=1e-9), engine


@given(seed=SEEDS)
def test_nothing_beats_the_bound(random_program, seed):
    """Not in all, and no op on its own; dependencies, releases and latencies hold in each log."""
    program = random_program(seed)
    bound = run(program, "bound")
    for engine in ("flow", "event"):
        timeline = run(program, engine)
        assert timeline.makespan_s >= bound.makespan_s * (1 - 1e-9), engine
        assert timeline.makespan_s == timeline.end_s_N.max()
        assert (timeline.start_s_N >= bound.start_s_N - 1e-9).all(), engine
        assert (timeline.end_s_N >= bound.end_s_N - 1e-9).all(), engine


@given(seed=SEEDS)
def test_an_op_starts_when_all_it_waits_for_has_ended(random_program, seed):
    program = random_program(seed)
    for engine in ENGINES:
        timeline = run(program, engine)
        for i in range(program.num_ops):
            waited = program.dep_index[program.dep_ptr[i] : program.dep_ptr[i + 1]]
            ready = max([program.release_s_N[i], *timeline.end_s_N[waited]])
            assert timeline.start_s_N[i] == pytest.approx(ready, rel=1e-9, abs=1e-12), (engine, i)


@pytest.mark.parametrize("make", ["random_program", "exchange_program", "lowered_program"])
@pytest.mark.parametrize("engine", ENGINES)
def test_reruns_are_identical_bit_for_bit(request, make, engine):
    make = request.getfixturevalue(make)
    for seed in range(5):
        first, second = run(make(seed), engine), run(make(seed), engine)
        for name in ("start_s_N", "end_s_N", "busy_s_R"):
            assert getattr(first, name).tobytes() == getattr(second, name).tobytes(), (seed, name)


@pytest.mark.parametrize("engine", ENGINES)
def test_time_scales_with_demand_and_latency(engine, random_program):
    """All times twice as long, the schedule twice as long: no absolute constant hides in
    an engine.
    """
    for seed in range(20):
        program = random_program(seed)
        once = run(program, engine)
        for factor in (2.0**-20, 2.0**20):
            builder = ProgramBuilder()
            for r, capacity in enumerate(program.capacity_R):
                builder.resource(f"r{r}", float(capacity))
            for i in range(program.num_ops):
                part = slice(program.demand_ptr[i], program.demand_ptr[i + 1])
                builder.op(
                    f"op{i}",
                    resources=program.demand_resource[part],
                    amounts=program.demand_amount[part] * factor,
                    latency_s=program.latency_s_N[i] * factor,
                    release_s=program.release_s_N[i] * factor,
                    after=program.dep_index[program.dep_ptr[i] : program.dep_ptr[i + 1]].tolist(),
                )
            assert run(builder.build(), engine).makespan_s == pytest.approx(
                factor * run(_without_flows(program), engine).makespan_s, rel=1e-9
            )
        assert once.makespan_s > 0


def _without_flows(program):
    return replace(program, fair_unit_s_N=program.solo_s_N())
