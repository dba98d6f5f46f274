"""The discrete-event reference by itself: how many chunks, in what order, on which ports."""

import numpy as np
import pytest

from moesim.engines.bound import run_bound
from moesim.engines.event import CHUNKS_PER_MAKESPAN, MIN_CHUNKS_PER_OP, chunks_per_op, run_event
from moesim.program.builder import ProgramBuilder


def one_port(*amounts, **op):
    builder = ProgramBuilder()
    builder.resource("port", 1.0)
    for i, amount in enumerate(amounts):
        builder.op(f"op{i}", resources=[0], amounts=[amount], **op)
    return builder.build()


def test_chunks_are_one_quantum_of_fair_unit_but_at_least_four():
    program = one_port(1.0, 0.1, 1e-6, 0.0)
    assert chunks_per_op(program, 1.1 / 1024).tolist() == [
        931,
        94,
        MIN_CHUNKS_PER_OP,
        MIN_CHUNKS_PER_OP,
    ]
    assert chunks_per_op(program, 0.25).tolist() == [4, 4, 4, 4]


def test_chunks_are_few(lowered_program):
    """What a run costs: about 1024 chunks for each op's share of the makespan, four for each small
    op, no more.
    """
    for seed in range(10):
        program = lowered_program(seed)
        quantum = run_bound(program).makespan_s / CHUNKS_PER_MAKESPAN
        chunks = chunks_per_op(program, quantum)
        assert (
            chunks.sum()
            <= program.fair_unit_s_N.sum() / quantum + MIN_CHUNKS_PER_OP * program.num_ops
        )
        assert (chunks * quantum >= program.fair_unit_s_N * 0.999).all(), (
            "no chunk above the quantum"
        )


def test_default_quantum_is_the_bound_over_1024():
    program = one_port(3.0, 1.0)
    expected = run_event(program, quantum_s=4.0 / CHUNKS_PER_MAKESPAN)
    assert run_event(program).end_s_N.tobytes() == expected.end_s_N.tobytes()


@pytest.mark.parametrize("quantum_s", [0.25, 0.125])
def test_ops_take_turns_chunk_by_chunk_lower_number_first(quantum_s):
    """Four ops of one second on one port: round-robin, so they end one chunk after the other, in
    order.
    """
    assert run_event(one_port(1.0, 1.0, 1.0, 1.0), quantum_s=quantum_s).end_s_N == pytest.approx(
        [4.0 - 3 * quantum_s, 4.0 - 2 * quantum_s, 4.0 - quantum_s, 4.0]
    )


def test_a_chunk_joins_all_its_queues_at_once_and_ends_with_the_last():
    """Fork-join: op 1 (0.4 s on b alone) queues on b behind the first chunk of op 0, which also
    needs a for longer.

    Op 0: chunks of 0.25 s on a, 0.05 s on b. Op 1: chunks of 0.1 s on b. Op 0 holds b only for its
    own 0.05 s.
    """
    builder = ProgramBuilder()
    builder.resource("a", 1.0)
    builder.resource("b", 1.0)
    builder.op("op0", resources=[0, 1], amounts=[1.0, 0.2])
    builder.op("op1", resources=[1], amounts=[0.4])
    timeline = run_event(builder.build(), quantum_s=0.25)
    # op 1's chunks: 0.05-0.15, 0.15-0.25, then behind op 0's second (0.25-0.30): 0.30-0.40,
    # 0.40-0.50
    assert timeline.end_s_N == pytest.approx([1.0, 0.5])


def test_incast_is_served_in_order_of_arrival():
    """Eight senders to one port, released one after another: each waits for those before it."""
    builder = ProgramBuilder()
    builder.resource("ingress", 1.0)
    for i in range(8):
        builder.op(f"op{i}", resources=[0], amounts=[4.0], release_s=0.5 * i)
    timeline = run_event(builder.build(), quantum_s=1.0)
    assert timeline.busy_s_R.tolist() == [32.0]
    assert timeline.makespan_s == 32.0
    assert (np.diff(timeline.end_s_N) > 0).all()


def test_no_resource_serves_faster_than_its_capacity(exchange_program):
    for seed in range(10):
        program = exchange_program(seed)
        timeline = run_event(program)
        assert timeline.busy_s_R.max() <= timeline.makespan_s * (1 + 1e-9)
