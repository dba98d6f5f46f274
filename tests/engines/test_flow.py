"""The fluid engine by itself: fairness, coalescing, and the compiled functions against their plain
Python.
"""

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moesim.engines import fairness, flow
from moesim.engines.bound import run_bound
from moesim.program.builder import ProgramBuilder
from moesim.program.program import pointers

#: largest relative error of a makespan, per unit of tolerance relative to the bound; 1.5 to 5.4
#: were seen on 100 seeds
ERROR_PER_TOLERANCE = 10.0


def fill(function, ptr, res, share, weight, num_resources):
    n = len(weight)
    speed, op = np.zeros(n), np.repeat(np.arange(n), np.diff(ptr))
    order = np.argsort(res, kind="stable")
    users = np.bincount(res, minlength=num_resources)
    taken = fairness.Shares(ptr, res, share, pointers(users), order, op[order], weight)
    sums = fairness.Sums(
        np.bincount(res, share, num_resources),
        np.bincount(res, share * weight[op], num_resources),
        users,
    )
    numbers, integers = np.zeros(num_resources), np.zeros(num_resources, np.int64)
    hot = np.flatnonzero(sums.hot > 1.0 + fairness.SATURATED)
    scratch = fairness.Scratch(
        np.zeros(n, np.bool_),
        np.zeros(num_resources, np.bool_),
        np.zeros(n, np.bool_),
        np.zeros(n, np.int64),
        np.zeros(n, np.int64),
        numbers,
        numbers.copy(),
        integers,
        np.concatenate([hot, integers]),
    )
    function(np.arange(n), n, len(hot), taken, sums, speed, scratch)
    assert not scratch.unfrozen_N.any()
    return speed


@st.composite
def shares(draw):
    """Up to 12 active ops over 4 resources: largest share of each op is 1, weights within a factor
    of 100.
    """
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    rows = [rng.choice(4, rng.integers(1, 5), replace=False) for _ in range(rng.integers(1, 13))]
    share = [rng.uniform(0.01, 1.0, len(row)) for row in rows]
    ptr = np.concatenate([[0], np.cumsum([len(row) for row in rows])]).astype(np.int64)
    return (
        ptr,
        np.concatenate(rows).astype(np.int64),
        np.concatenate([s / s.max() for s in share]),
        10.0 ** rng.uniform(-1.0, 1.0, len(rows)),
        4,
    )


@given(case=shares())
def test_speeds_are_weighted_max_min_fair(case):
    """No capacity exceeded, and each op runs at full speed or has a bottleneck: a full resource
    on which no op has a higher level (speed over weight). That characterises the one fair
    allocation (Bertsekas & Gallager, 6.5.2)."""
    ptr, res, share, weight, num_resources = case
    speed = fill(fairness.fill, *case)
    op = np.repeat(np.arange(len(weight)), np.diff(ptr))
    used = np.bincount(res, weights=share * speed[op], minlength=num_resources)
    assert used.max() <= 1.0 + 1e-8
    assert (speed > 0).all()
    for i in np.flatnonzero(speed < 1.0 - 1e-9):
        level = speed / weight
        mine = res[ptr[i] : ptr[i + 1]]
        assert any(
            used[r] >= 1.0 - 1e-6 and level[op[res == r]].max() <= level[i] * (1 + 1e-6)
            for r in mine
        )


@given(case=shares())
def test_compiled_fill_equals_its_python(case):
    compiled = fill(fairness.fill.compiled, *case)
    assert compiled == pytest.approx(fill(fairness.fill.py_func, *case), rel=1e-12)


@pytest.mark.parametrize("share_of_bound", [0.0, 1e-3])
@pytest.mark.parametrize("shape", ["random_program", "exchange_program", "lowered_program"])
def test_compiled_solve_equals_its_python(request, monkeypatch, shape, share_of_bound):
    programs = [request.getfixturevalue(shape)(seed) for seed in range(6)]
    tolerances = [share_of_bound * run_bound(p).makespan_s for p in programs]
    monkeypatch.setattr("moesim.compiled.BUDGET_S", 0.0)
    compiled = [flow.run_flow(p, tolerance_s=t) for p, t in zip(programs, tolerances, strict=True)]
    monkeypatch.setattr(flow, "_FILL", fairness.fill.py_func)
    monkeypatch.setattr(flow, "_CONNECTED", fairness.connected.py_func)
    monkeypatch.setattr(flow, "_columns", flow._columns.py_func)
    monkeypatch.setattr(flow, "_solve", flow._solve.py_func)
    for program, tolerance, expected in zip(programs, tolerances, compiled, strict=True):
        timeline = flow.run_flow(program, tolerance_s=tolerance)
        for name in ("start_s_N", "end_s_N", "busy_s_R"):
            assert getattr(timeline, name).tobytes() == getattr(expected, name).tobytes(), name


@pytest.mark.parametrize("tolerance", [1e-4, 1e-3])
@pytest.mark.parametrize("shape", ["random_program", "exchange_program", "lowered_program"])
def test_coalescing_is_near_the_exact_model(request, shape, tolerance):
    """The defaults, 1e-4 and 1e-3 of the bound: no resource is overrun, and times stay within ten
    tolerances.
    """
    for seed in range(40):
        program = request.getfixturevalue(shape)(seed)
        bound = run_bound(program).makespan_s
        exact = flow.run_flow(program, tolerance_s=0.0)
        near = flow.run_flow(program, tolerance_s=tolerance * bound)
        assert near.makespan_s == pytest.approx(
            exact.makespan_s, rel=ERROR_PER_TOLERANCE * tolerance
        ), seed
        assert near.makespan_s >= bound * (1 - 1e-9)
        assert near.busy_s_R == pytest.approx(exact.busy_s_R, rel=1e-9)


def test_tolerance_is_zero_up_to_512_ops(exchange_program, lowered_program):
    for program in (exchange_program(1), lowered_program(1)):
        assert program.num_ops <= 512
        assert len(program.demand_amount) <= 1 << 14
        assert (
            flow.run_flow(program).end_s_N.tobytes()
            == flow.run_flow(program, tolerance_s=0.0).end_s_N.tobytes()
        )


@pytest.mark.parametrize(("num_ops", "share"), [(513, 3e-4), (4096, 1e-3)])
def test_default_tolerance_follows_the_number_of_ops(random_program, num_ops, share):
    program = random_program(0, num_ops=num_ops, num_resources=12)
    expected = flow.run_flow(program, tolerance_s=share * run_bound(program).makespan_s)
    assert flow.run_flow(program).end_s_N.tobytes() == expected.end_s_N.tobytes()


def test_order_of_resources_does_not_matter(exchange_program):
    """The same demands listed backwards give the same schedule."""
    for seed in range(10):
        program, builder = exchange_program(seed), ProgramBuilder()
        count = len(program.capacity_R)
        for r in reversed(range(count)):
            builder.resource(program.resource_names[r], float(program.capacity_R[r]))
        for i in range(program.num_ops):
            part = slice(program.demand_ptr[i], program.demand_ptr[i + 1])
            waited = program.dep_index[program.dep_ptr[i] : program.dep_ptr[i + 1]].tolist()
            flows = program.fair_unit_s_N[i] if "experts" not in program.labels_N[i] else 0.0
            builder.op(
                program.labels_N[i],
                resources=(count - 1 - program.demand_resource[part])[::-1],
                amounts=program.demand_amount[part][::-1],
                latency_s=program.latency_s_N[i],
                after=waited[::-1],
                bytes_per_flow=flows if len(program.demand_resource[part]) > 1 else 0.0,
            )
        mirrored = builder.build()
        assert mirrored.fair_unit_s_N == pytest.approx(program.fair_unit_s_N, rel=1e-9)
        assert flow.run_flow(mirrored).end_s_N == pytest.approx(
            flow.run_flow(program).end_s_N, rel=1e-9
        )


#: demands over 12 decades, fair units over 12 more; a loop that does not end must fail and not hang
#: the tests
EXTREME = """
import numpy as np
from moesim.engines.bound import run_bound
from moesim.engines.flow import run_flow
from moesim.program.builder import ProgramBuilder

for seed in range(60):
    rng = np.random.default_rng(seed)
    builder = ProgramBuilder()
    for r in range(6):
        builder.resource(f"r{r}", float(rng.uniform(0.5, 4.0)))
    for i in range(40):
        demands = int(rng.integers(0, 4))
        builder.op(f"op{i}", resources=rng.choice(6, demands, replace=False),
                   amounts=10.0 ** rng.uniform(-11, 1, demands),
                   after=sorted(set(rng.integers(0, i, rng.integers(0, 3)).tolist())) if i else [],
                   bytes_per_flow=float(rng.choice([0.0, 10.0 ** rng.uniform(-6, 6)])))
    program = builder.build()
    bound = run_bound(program).makespan_s
    for tolerance in (0.0, 0.01 * bound):
        timeline = run_flow(program, tolerance_s=tolerance)
        assert np.isfinite(timeline.end_s_N).all(), (seed, tolerance)
        assert timeline.makespan_s >= bound * (1 - 1e-9), (seed, tolerance)
print("all ended")
"""


def test_extreme_shares_and_fair_units_end():
    done = subprocess.run(
        [sys.executable, "-c", EXTREME], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stdout == "all ended\n", done.stderr[-2000:]
