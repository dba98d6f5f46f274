"""The bound of many programs that differ in some amounts and latencies only: what a screening runs.

Shape legend: B programs, N ops, Z sparse demand entries, R resources.
"""

import numpy as np
from numba import njit

from moesim.engines.bound import demands, ends, paths
from moesim.program import Program


def run_bound_many(program: Program, amount_BZ: np.ndarray, latency_BN: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Bounds of a family of programs.

    Args:
        program: What they have in common.
        amount_BZ: ndarray of shape (B, Z): demand entries of each, in the order of the program's.
        latency_BN: ndarray of shape (B, N): latencies of each.

    Returns:
        Makespans, ndarray of shape (B,), equal to those of `run_bound`; seconds of work on each resource, ndarray of
        shape (B, R).
    """
    assert not program.factored, "demands kept as rules have no entries to replace"
    if program.num_ops == 0:
        return np.zeros(len(amount_BZ)), np.zeros((len(amount_BZ), len(program.capacity_R)))
    return _run(program.demand_ptr, program.demand_resource, np.ascontiguousarray(amount_BZ), program.capacity_R,
                np.ascontiguousarray(latency_BN), program.release_s_N, program.dep_ptr, program.dep_index)


@njit(cache=True)
def _run(ptr, res, amount_BZ, capacity, latency_BN, release, dep_ptr, dep_index):
    makespan = np.empty(len(amount_BZ))
    busy_BR = np.empty((len(amount_BZ), len(capacity)))
    for b in range(len(amount_BZ)):
        latency = latency_BN[b]
        solo, busy = demands(ptr, res, amount_BZ[b], capacity)
        start, end, tail = paths(solo, latency, release, dep_ptr, dep_index)
        head_R, tail_R = ends(ptr, res, start + latency, tail, len(capacity))
        bound = end.max()
        for r in range(len(capacity)):
            if busy[r] > 0:
                bound = max(bound, head_R[r] + busy[r] + tail_R[r])
        makespan[b] = bound
        busy_BR[b] = busy
    return makespan, busy_BR


