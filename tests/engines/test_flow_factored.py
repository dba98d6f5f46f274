"""The fluid engine on factored demands against the same demands as entries."""

import numpy as np
import pytest

from moesim.engines import fairness_factored, flow, flow_factored, groups, heap
from moesim.engines.bound import run_bound
from moesim.engines.flow import run_flow
from moesim.engines.flow_factored import run_flow_factored
from moesim.program.builder import Demands, ProgramBuilder
from moesim.program.factored import Factored


def random_program(seed):
    """Two stages of ops with sparse and factored demands: ports of nodes, all ports, or rails."""
    rng = np.random.default_rng(seed)
    nodes, size = int(rng.integers(2, 5)), int(rng.integers(1, 5))
    count = nodes * size
    device, node, rail = (np.arange(count), *np.divmod(np.arange(count), size))
    whole = np.zeros(count, dtype=np.int64)
    builder = ProgramBuilder()
    out = builder.resources("out", rng.uniform(1.0, 3.0, count))
    into = builder.resources("in", rng.uniform(1.0, 3.0, count))
    core = builder.resources("core", np.ones(count))
    before = None
    for stage in range(int(rng.integers(1, 4))):
        ops = builder.ops(
            f"move{stage}",
            count,
            demands=Demands(
                np.stack([into if stage % 2 == 0 else out, core], axis=1),
                rng.uniform(0.0, 2.0, (count, 2)) * (rng.random((count, 2)) > 0.2),
            ),
            latency_s=rng.choice([0.0, 0.3], count),
            after=before,
            bytes_per_flow=rng.choice([0.0, 1.0]) * rng.uniform(0.5, 2.0, count),
        )
        for _ in range(int(rng.integers(1, 3))):
            outer, inner = [(node, device), (whole, node), (rail, device)][rng.integers(3)]
            even = rng.random() < 0.5
            builder.factored(
                Factored(
                    ops_I=ops,
                    resources_J=out if stage % 2 == 0 else into,
                    row_I=rng.uniform(0.0, 1.0, count) * (rng.random(count) > 0.2),
                    column_J=np.ones(count) if even else rng.uniform(0.0, 1.0, count),
                    outer_I=outer,
                    outer_J=outer,
                    inner_I=inner,
                    inner_J=inner,
                )
            )
        work = builder.ops(
            f"work{stage}",
            count,
            demands=Demands(core[:, None], rng.uniform(0.0, 2.0, (count, 1))),
            after=ops[:, None],
        )
        barrier = builder.op("all", after=work[: int(rng.integers(1, count + 1))])
        before = np.stack([work, np.full(count, barrier)], axis=1)
    return builder.build()


@pytest.mark.parametrize("seed", range(60))
def test_it_is_the_same_as_entry_by_entry(seed):
    program = random_program(seed)
    assert program.factored
    entries = program.expanded()
    exact, found = run_flow(entries, tolerance_s=0.0), run_flow_factored(program, 0.0)
    assert found.end_s_N == pytest.approx(exact.end_s_N, rel=1e-9)
    assert found.start_s_N == pytest.approx(exact.start_s_N, rel=1e-9)
    assert found.busy_s_R == pytest.approx(exact.busy_s_R, rel=1e-9)
    assert found.makespan_s >= run_bound(program).makespan_s * (1 - 1e-9)


@pytest.mark.parametrize("seed", range(20))
def test_a_tolerance_changes_little(seed):
    program = random_program(seed)
    exact = run_flow_factored(program, 0.0)
    tolerance = 1e-3 * exact.makespan_s
    found = run_flow_factored(program, tolerance)
    assert found.makespan_s == pytest.approx(exact.makespan_s, rel=0.02)
    # no capacity is exceeded: nothing beats the bound
    assert found.makespan_s >= run_bound(program).makespan_s * (1 - 1e-9)


@pytest.mark.parametrize("seed", [3, 11])
def test_compiled_and_plain_agree(seed, monkeypatch):
    program = random_program(seed)
    compiled = run_flow_factored(program, 1e-3)
    for module in (heap, groups, fairness_factored, flow_factored):
        for name in dir(module):
            plain = getattr(getattr(module, name), "py_func", None)
            if plain is not None:
                monkeypatch.setattr(module, name, plain)
    found = run_flow_factored(program, 1e-3)
    assert found.end_s_N.tolist() == pytest.approx(compiled.end_s_N.tolist(), rel=1e-12)
    assert found.events == compiled.events


def test_large_blocks_stay_factored(monkeypatch):
    program = random_program(5)
    expected = run_flow(program, tolerance_s=0.0)
    monkeypatch.setattr(flow, "_EXPANDED", 0.0)
    monkeypatch.setattr(type(program), "expanded", None)
    assert run_flow(program, tolerance_s=0.0).end_s_N == pytest.approx(expected.end_s_N, rel=1e-9)
