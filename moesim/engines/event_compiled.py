"""The compiled twin of `event`: it serves the same chunks in the same order without SimPy, for
large programs.

Every instant is computed with the arithmetic of SimPy's clock (a delay is added to the current
time), so the timelines are equal to the last bit unless two instants differ by rounding alone; the
tests require 1e-9. Events are ordered by (time, op), the order of SimPy's heap. This engine saves
one step: when an op sends its last chunk its end is known, so the ops that wait for it are notified
at once, and an op of one chunk costs one event.

Ops that wait for nothing are sorted once and never enter the heap. It has four children per node,
and its top can be replaced: the next chunk of an op, or the next message of its lane, usually takes
the position of the one just sent.
"""

import math

import numpy as np

from moesim.compiled import compiled
from moesim.engines.bound import run_bound
from moesim.engines.event import CHUNKS_PER_MAKESPAN, chunks_per_op
from moesim.errors import ConfigError
from moesim.program.program import Program, Timeline, pointers


def run_event_compiled(
    program: Program, *, quantum_s: float | None = None, min_chunks: int | None = None
) -> Timeline:
    """Simulate a program chunk by chunk in compiled code.

    Args:
        program: The program with N ops and R resources.
        quantum_s: Fair unit of one chunk in seconds, with the default of `run_event`; if it is
            infinite, every op has ``min_chunks`` chunks.
        min_chunks: Minimum number of chunks of an op; 4 by default.

    Returns:
        Timeline: the same as that of `run_event`; ``events`` counts chunks.

    Raises:
        ConfigError: The quantum is not a number > 0.
        CapacityError: Factored demands would not fit in memory once expanded.
    """
    program = program.expanded()
    if program.num_ops == 0:
        return Timeline(
            start_s_N=np.zeros(0),
            end_s_N=np.zeros(0),
            busy_s_R=program.busy_s_R(),
            engine="event_compiled",
            makespan_s=0.0,
        )
    if quantum_s is None:
        quantum_s = max(run_bound(program).makespan_s / CHUNKS_PER_MAKESPAN, 1e-15)
    if not quantum_s > 0 or math.isnan(quantum_s):
        raise ConfigError(f"event: expected a quantum > 0 s, got {quantum_s!r}")
    chunks = chunks_per_op(program, quantum_s, min_chunks)
    n = program.num_ops
    waiter = np.repeat(np.arange(n), np.diff(program.dep_ptr))
    # invert the dependencies: the ops that wait for op i become one consecutive run
    order = np.argsort(program.dep_index, kind="stable")
    first = np.flatnonzero(np.diff(program.dep_ptr) == 0)
    first_s = np.maximum(program.release_s_N, 0.0)[first] + program.latency_s_N[first]
    by_time = np.argsort(first_s, kind="stable")
    start, end, busy, events = _run(
        (first[by_time], first_s[by_time]),
        program.demand_ptr,
        program.demand_resource,
        program.demand_s(),
        chunks,
        program.latency_s_N,
        program.release_s_N,
        (
            np.diff(program.dep_ptr),
            pointers(np.bincount(program.dep_index, minlength=n)),
            waiter[order].astype(np.int64),
        ),
        len(program.capacity_R),
    )
    return Timeline(
        start_s_N=start,
        end_s_N=end,
        busy_s_R=busy,
        engine="event_compiled",
        events=int(events),
        makespan_s=float(end.max()),
    )


@compiled()
def _up(times, ops, place):
    """Move the entry at position ``place`` toward the top."""
    time, op = times[place], ops[place]
    while place > 0:
        parent = (place - 1) >> 2
        if times[parent] < time or (times[parent] == time and ops[parent] < op):
            break
        times[place], ops[place] = times[parent], ops[parent]
        place = parent
    times[place], ops[place] = time, op


@compiled()
def _down(times, ops, size, time, op):
    """Replace the top by (time, op) and move it down."""
    place = 0
    while True:
        child = 4 * place + 1
        if child >= size:
            break
        # the earliest of up to four children; ties go to the smaller op, as in SimPy's heap
        best = child
        for c in range(child + 1, min(child + 4, size)):
            if times[c] < times[best] or (times[c] == times[best] and ops[c] < ops[best]):
                best = c
        if time < times[best] or (time == times[best] and op < ops[best]):
            break
        times[place], ops[place] = times[best], ops[best]
        place = best
    times[place], ops[place] = time, op


@compiled()
def _put(times, ops, size, vacant, time, op):
    """Put an entry on the heap, at the top if that is vacant, and return the size."""
    if vacant:
        _down(times, ops, size, time, op)
        return size
    times[size], ops[size] = time, op
    _up(times, ops, size)
    return size + 1


@compiled()
def _run(begin, ptr, res, seconds, chunks, latency, release, graph, num_resources):
    """Run all ops and return (start_s_N, end_s_N, busy_s_R, chunks served).

    Of the arguments, ``begin`` is a pair: the ops that wait for nothing and when their latency has
    elapsed, ascending; ``graph`` holds the number of ops that each op waits for, and those that
    wait for it as row pointers and ops.
    """
    (first, first_s), (waits_for, wake_ptr, wake), n = begin, graph, len(chunks)
    start, end = np.zeros(n), np.zeros(n)
    free, busy = np.zeros(num_resources), np.zeros(num_resources)
    left, waits = chunks.copy(), waits_for.copy()
    times, ops = np.empty(n), np.empty(n, np.int64)
    size, events, begun = 0, 0, 0
    for k in range(len(first)):
        # ops without dependencies start at their release time
        start[first[k]] = max(0.0, release[first[k]])
    while size > 0 or begun < len(first):
        # the top has been taken if it is the earlier one; the next entry replaces it
        vacant = size > 0
        if vacant and begun < len(first):
            at, op = first_s[begun], first[begun]
            vacant = times[0] < at or (times[0] == at and ops[0] < op)
        if vacant:
            now, op = times[0], ops[0]
        else:
            now, op = first_s[begun], first[begun]
            begun += 1
        ended = False
        # an op without demand ends as soon as its latency has elapsed
        if ptr[op] == ptr[op + 1]:
            ended = True
            end[op] = now
        else:
            # one chunk joins the queue of every resource and ends when the slowest of them has
            # served it
            events += 1
            left[op] -= 1
            done = now
            for e in range(ptr[op], ptr[op + 1]):
                r = res[e]
                s = seconds[e] / chunks[op]
                free[r] = max(now, free[r]) + s
                busy[r] += s
                done = max(done, free[r])
            # written as SimPy computes it (now + delay), which may differ from ``done`` in the last
            # bit
            after = now + (done - now)
            if left[op] > 0:
                size = _put(times, ops, size, vacant, after, op)
                vacant = False
            else:
                ended = True
                end[op] = after
        if ended:
            for k in range(wake_ptr[op], wake_ptr[op + 1]):
                j = wake[k]
                waits[j] -= 1
                start[j] = max(start[j], end[op])  # the clock when the last dependency ended
                if waits[j] == 0:
                    clock = start[j]
                    start[j] = max(clock, release[j])
                    # the same rounding as a SimPy delay, hence not simply start + latency
                    at = clock + (start[j] - clock + latency[j])
                    size = _put(times, ops, size, vacant, at, j)
                    vacant = False
        # nothing replaced the top: fill the gap with the last entry
        if vacant:
            size -= 1
            if size > 0:
                _down(times, ops, size, times[size], ops[size])
    return start, end, busy, events
