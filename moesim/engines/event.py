"""The reference: SimPy discrete events, one per chunk, fork-join over FIFO ports.

An op is cut into equal chunks. A chunk arriving at time t joins the queue of every resource it
demands, each of which is a FIFO server known by the time it becomes free:
``free_r = max(t, free_r) + s_r``. The chunk ends at the latest of these; then the op sends its next
chunk (window 1). Nothing holds one resource while waiting for another, so nothing can deadlock.
(Holding several `simpy.Resource` at once deadlocks, or, in a fixed order, serialises.)

Ops that meet at a port take turns chunk by chunk, so chunks of equal *fair unit* give the flow
engine's shares in the limit. Ties are broken by op number: SimPy's heap is keyed (time, priority,
order) and the priority is the op.
"""

import math

import numpy as np
import simpy

from moesim.engines.bound import run_bound
from moesim.errors import ConfigError
from moesim.program import Program, Timeline

#: chunks a makespan is cut into; at 1024 the flow engine is met within 1 %.
CHUNKS_PER_MAKESPAN = 1024
MIN_CHUNKS_PER_OP = 4
#: demands below which an op's ports are walked one by one: an array operation costs more than a few
#: of them
_FEW = 12


def chunks_per_op(program: Program, quantum_s: float, min_chunks: int | None = None) -> np.ndarray:
    """Chunks of each op: ndarray of shape (N,), at least ``min_chunks`` (4), each about
    ``quantum_s`` of fair unit.
    """
    counts = np.ceil(program.fair_unit_s_N / quantum_s - 1e-9)
    return np.maximum(counts, MIN_CHUNKS_PER_OP if min_chunks is None else min_chunks).astype(
        np.int64
    )


def run_event(
    program: Program, *, quantum_s: float | None = None, min_chunks: int | None = None
) -> Timeline:
    """Simulate a program chunk by chunk.

    Args:
        program: N ops over R resources.
        quantum_s: Fair unit of one chunk in seconds; by default the bound's makespan / 1024;
            infinite: ``min_chunks`` for every op.
        min_chunks: Fewest chunks of an op; 4 by default.

    Returns:
        Timeline: starts (latency included) and ends of all ops, and the work every resource served.

    Raises:
        ConfigError: A quantum that is not a number > 0.
        CapacityError: Factored demands that would not fit in memory, expanded.
    """
    program = program.expanded()
    n = program.num_ops
    if n == 0:
        return Timeline(
            start_s_N=np.zeros(0),
            end_s_N=np.zeros(0),
            busy_s_R=program.busy_s_R(),
            engine="event",
            makespan_s=0.0,
        )
    if quantum_s is None:
        quantum_s = max(run_bound(program).makespan_s / CHUNKS_PER_MAKESPAN, 1e-15)
    if not quantum_s > 0 or math.isnan(quantum_s):
        raise ConfigError(f"event: expected a quantum > 0 s, got {quantum_s!r}")
    env = simpy.Environment()
    chunks = chunks_per_op(program, quantum_s, min_chunks).tolist()
    dep_ptr, dep_index = program.dep_ptr.tolist(), program.dep_index.tolist()
    ptr, resource, seconds = (
        program.demand_ptr.tolist(),
        program.demand_resource,
        program.demand_s(),
    )
    latency, release = program.latency_s_N.tolist(), program.release_s_N.tolist()
    few = [ptr[i + 1] - ptr[i] < _FEW for i in range(n)]
    pieces = [
        (resource[ptr[i] : ptr[i + 1]], seconds[ptr[i] : ptr[i + 1]] / chunks[i]) for i in range(n)
    ]
    short = [
        list(zip(pieces[i][0].tolist(), pieces[i][1].tolist(), strict=True)) if few[i] else []
        for i in range(n)
    ]
    waits_for = [dep_ptr[i + 1] - dep_ptr[i] for i in range(n)]
    wakes: list[list[int]] = [[] for _ in range(n)]
    for i in range(n):
        for dep in dep_index[dep_ptr[i] : dep_ptr[i + 1]]:
            wakes[dep].append(i)
    left = list(chunks)
    free = np.zeros(len(program.capacity_R))
    start, end = [0.0] * n, [0.0] * n

    def at(delay: float, op: int, action) -> None:
        event = simpy.Event(env)
        event._ok, event._value = True, op
        event.callbacks = [action]
        env.schedule(event, priority=op, delay=delay)  # type: ignore[arg-type]

    def begin(op: int) -> None:
        start[op] = max(env.now, release[op])
        at(start[op] - env.now + latency[op], op, serve)

    def serve(event: simpy.Event) -> None:
        op = event._value
        if left[op] == 0 or ptr[op] == ptr[op + 1]:
            finish(op)
            return
        left[op] -= 1
        now = env.now
        if few[op]:
            done = now
            for r, s in short[op]:
                until = max(now, free.item(r)) + s
                free[r] = until
                done = max(done, until)
        else:
            which, each_s = pieces[op]
            until_M = np.maximum(free[which], now)
            until_M += each_s
            free[which] = until_M
            done = float(until_M.max())
        at(done - now, op, serve)

    def finish(op: int) -> None:
        end[op] = env.now
        for other in wakes[op]:
            waits_for[other] -= 1
            if waits_for[other] == 0:
                begin(other)

    for op in range(n):
        if waits_for[op] == 0:
            begin(op)
    env.run()
    # SimPy's clock begins as the integer 0
    starts, ends = (np.array(values, dtype=np.float64) for values in (start, end))
    sent_N = 1.0 - np.array(left) / np.array(chunks)
    busy = np.bincount(resource, seconds * sent_N[program.op_of_entry()], len(free)).astype(
        np.float64
    )
    return Timeline(
        start_s_N=starts,
        end_s_N=ends,
        busy_s_R=busy,
        engine="event",
        makespan_s=float(max(end)),
        events=sum(chunks[i] for i in range(n) if ptr[i] < ptr[i + 1]),
    )
