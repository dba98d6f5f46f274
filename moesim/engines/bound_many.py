"""Compute the bounds of many programs that differ only in the demands of a few ops, for a
screening.

Shape legend: B programs, N ops, V ops that differ, E sparse demand entries of these V ops, R
resources.
"""

from typing import NamedTuple

import numpy as np

from moesim.compiled import compiled
from moesim.engines.bound import demands, ends, paths
from moesim.program import Program


def run_bound_many(
    program: Program, ops_V: np.ndarray, amount_BE: np.ndarray, latency_BV: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Compute the bounds of a family of programs.

    Args:
        program: The program that supplies everything they have in common.
        ops_V: Indices of the ops that differ, in ascending order.
        amount_BE: ndarray of shape (B, E): amounts of the demand entries of these ops in each
            program, in the order in which ``program`` stores them.
        latency_BV: ndarray of shape (B, V): latencies of these ops in each program.

    Returns:
        Makespans, ndarray of shape (B,), equal to those of `moesim.engines.bound.run_bound` up to
        rounding; seconds of work on each resource, ndarray of shape (B, R).
    """
    assert not program.factored, "demands kept as rules have no entries to replace"
    fixed = program.demand_amount.copy()
    entries_E = np.concatenate(
        [np.arange(program.demand_ptr[op], program.demand_ptr[op + 1]) for op in ops_V]
        or [np.zeros(0, dtype=np.int64)]
    )
    # with the changing entries at zero, the fixed part is summed once for all programs
    fixed[entries_E] = 0.0
    common = _Common(
        program.demand_ptr,
        program.demand_resource,
        fixed,
        program.capacity_R,
        program.latency_s_N,
        program.release_s_N,
        program.dep_ptr,
        program.dep_index,
    )
    return _run(
        common,
        np.asarray(ops_V, dtype=np.int64),
        np.ascontiguousarray(amount_BE, dtype=np.float64),
        np.ascontiguousarray(latency_BV, dtype=np.float64),
    )


class _Common(NamedTuple):
    """Data that all programs of a family share; the demands of the ops that differ are zero."""

    ptr: np.ndarray
    res: np.ndarray
    fixed: np.ndarray
    capacity: np.ndarray
    latency_N: np.ndarray
    release: np.ndarray
    dep_ptr: np.ndarray
    dep_index: np.ndarray


@compiled()
def _run(common, ops_V, amount_BE, latency_BV):
    ptr, res, fixed, capacity, latency_N, release, dep_ptr, dep_index = common
    count, num_resources = len(amount_BE), len(capacity)
    makespan, busy_BR = np.zeros(count), np.empty((count, num_resources))
    fixed_solo, fixed_busy = demands(ptr, res, fixed, capacity)
    for b in range(count):
        latency, solo, busy = latency_N.copy(), fixed_solo.copy(), fixed_busy.copy()
        at = 0
        # add the entries of the ops that differ; ``at`` walks them in the order of ``ops_V``
        for v in range(len(ops_V)):
            op = ops_V[v]
            latency[op] = latency_BV[b, v]
            for e in range(ptr[op], ptr[op + 1]):
                seconds = amount_BE[b, at] / capacity[res[e]]
                busy[res[e]] += seconds
                solo[op] = max(solo[op], seconds)
                at += 1
        # demands are complete: from here on the steps are those of `run_bound`
        start, end, tail = paths(solo, latency, release, dep_ptr, dep_index)
        head_R, tail_R = ends(ptr, res, start + latency, tail, num_resources)
        bound = 0.0
        # the critical path
        for i in range(len(end)):
            bound = max(bound, end[i])
        # head + work + tail of every resource that is used
        for r in range(num_resources):
            # written one by one, since a row at once takes two seconds to compile
            busy_BR[b, r] = busy[r]
            if busy[r] > 0:
                bound = max(bound, head_R[r] + busy[r] + tail_R[r])
        makespan[b] = bound
    return makespan, busy_BR
