"""A true lower bound on the makespan, in closed form.

Two things no schedule can beat: the critical path (every op alone), and for each resource the work
on it, plus the earliest moment any of it can begin, plus the shortest way from the end of any of it
to the end of the program. Linear in ops and demands; factored demands count by their factors, so
that 16,384 devices cost 16,384 numbers.
"""

import numpy as np
from numba import njit

from moesim.program import Program, Timeline


def run_bound(program: Program) -> Timeline:
    """Earliest times of every op, and a makespan that no engine can undercut.

    Args:
        program: N ops over R resources.

    Returns:
        Timeline: earliest starts and ends (``exact`` is False: they are no schedule) and the bound
        as makespan_s, the largest of the critical path and, for each resource, head + work + tail.
    """
    if program.num_ops == 0:
        return Timeline(
            start_s_N=np.zeros(0),
            end_s_N=np.zeros(0),
            busy_s_R=program.busy_s_R(),
            engine="bound",
            makespan_s=0.0,
            exact=False,
        )
    solo, busy = demands(
        program.demand_ptr, program.demand_resource, program.demand_amount, program.capacity_R
    )
    for block in program.factored:
        np.maximum.at(solo, block.ops_I, block.largest_s_I(program.capacity_R))
        np.add.at(busy, block.resources_J, block.demand_J() / program.capacity_R[block.resources_J])
    start, end, tail = paths(
        solo, program.latency_s_N, program.release_s_N, program.dep_ptr, program.dep_index
    )
    serve = start + program.latency_s_N
    if serve.min() == serve.max() and tail.min() == tail.max():
        # an exchange by itself: all begin together and nothing follows, on any resource
        head_R, tail_R = np.full(len(busy), serve[0]), np.full(len(busy), tail[0])
    else:
        head_R, tail_R = ends(program.demand_ptr, program.demand_resource, serve, tail, len(busy))
    for block in program.factored:
        # the earliest head and tail of any op of the block: lower than a resource's own, so still a
        # bound
        for least_R, values in ((head_R, serve), (tail_R, tail)):
            least_R[block.resources_J] = np.minimum(
                least_R[block.resources_J], values[block.ops_I].min()
            )
    used = busy > 0
    bound = float(end.max())
    if used.any():
        bound = max(bound, float((head_R + busy + tail_R)[used].max()))
    return Timeline(
        start_s_N=start, end_s_N=end, busy_s_R=busy, engine="bound", makespan_s=bound, exact=False
    )


@njit(cache=True)
def demands(ptr, res, amount, capacity):
    """(solo_s_N, busy_s_R) of the sparse demands."""
    solo, busy = np.zeros(len(ptr) - 1), np.zeros(len(capacity))
    rate = 1.0 / capacity
    for i in range(len(solo)):
        for e in range(ptr[i], ptr[i + 1]):
            seconds = amount[e] * rate[res[e]]
            busy[res[e]] += seconds
            solo[i] = max(solo[i], seconds)
    return solo, busy


@njit(cache=True)
def paths(solo, latency, release, dep_ptr, dep_index):
    """(earliest start, earliest end, longest way from the end to the end of the program) of every
    op.
    """
    n = len(solo)
    start, end, tail = np.zeros(n), np.zeros(n), np.zeros(n)
    for i in range(n):
        ready = release[i]
        for k in range(dep_ptr[i], dep_ptr[i + 1]):
            ready = max(ready, end[dep_index[k]])
        start[i] = ready
        end[i] = ready + latency[i] + solo[i]
    for i in range(n - 1, -1, -1):
        after = tail[i] + latency[i] + solo[i]
        for k in range(dep_ptr[i], dep_ptr[i + 1]):
            tail[dep_index[k]] = max(tail[dep_index[k]], after)
    return start, end, tail


@njit(cache=True)
def ends(ptr, res, serve, tail, num_resources):
    """For each resource the earliest service of any of its ops, and the shortest tail: two arrays
    of shape (R,).
    """
    head_R, tail_R = np.full(num_resources, np.inf), np.full(num_resources, np.inf)
    for i in range(len(tail)):
        for e in range(ptr[i], ptr[i + 1]):
            head_R[res[e]] = min(head_R[res[e]], serve[i])
            tail_R[res[e]] = min(tail_R[res[e]], tail[i])
    return head_R, tail_R
