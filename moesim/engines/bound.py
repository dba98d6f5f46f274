"""Compute a true lower bound on the makespan in closed form.

No schedule can beat two limits: the critical path (every op runs alone), and for each resource the
sum of the work on it, the earliest time at which any of that work can begin, and the shortest path
from the end of any of it to the end of the program. The cost is linear in ops and demands; factored
demands are read as factors, so that 16,384 devices cost 16,384 numbers.
"""

import numpy as np

from moesim.compiled import compiled
from moesim.program import Program, Timeline


def run_bound(program: Program) -> Timeline:
    """Compute the earliest times of every op and a makespan that no engine can undercut.

    Args:
        program: The program with N ops and R resources.

    Returns:
        Timeline: the earliest starts and ends (``exact`` is False, since they are not a schedule)
        and the bound as makespan_s, which is the larger of the critical path and the largest head +
        work + tail of any resource.
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
        # a lone exchange: all ops begin together and nothing follows, so all resources have the
        # same head and tail
        head_R, tail_R = np.full(len(busy), serve[0]), np.full(len(busy), tail[0])
    else:
        head_R, tail_R = ends(program.demand_ptr, program.demand_resource, serve, tail, len(busy))
    for block in program.factored:
        # the smallest head and tail of any op in the block: at most those of the resource, so the
        # result is still a bound
        for least_R, values in ((head_R, serve), (tail_R, tail)):
            least_R[block.resources_J] = np.minimum(
                least_R[block.resources_J], values[block.ops_I].min()
            )
    # a resource without work has no op, so its head is infinite
    used = busy > 0
    bound = float(end.max())
    if used.any():
        bound = max(bound, float((head_R + busy + tail_R)[used].max()))
    return Timeline(
        start_s_N=start, end_s_N=end, busy_s_R=busy, engine="bound", makespan_s=bound, exact=False
    )


@compiled(plain_s=lambda _, res, *__: 1e-6 * len(res))
def demands(ptr, res, amount, capacity):
    """Return (solo_s_N, busy_s_R) of the sparse demands."""
    solo, busy = np.zeros(len(ptr) - 1), np.zeros(len(capacity))
    rate = 1.0 / capacity
    for i in range(len(solo)):
        for e in range(ptr[i], ptr[i + 1]):
            seconds = amount[e] * rate[res[e]]
            busy[res[e]] += seconds
            solo[i] = max(solo[i], seconds)
    return solo, busy


@compiled(plain_s=lambda _, __, ___, dep_ptr, dep_index: 2e-6 * (len(dep_ptr) + len(dep_index)))
def paths(solo, latency, release, dep_ptr, dep_index):
    """Return (earliest start, earliest end, longest path from its end to the end of the program) of
    every op.
    """
    n = len(solo)
    start, end, tail = np.zeros(n), np.zeros(n), np.zeros(n)
    # every dependency has a smaller index, so one forward pass sees the ends of all dependencies
    for i in range(n):
        ready = release[i]
        for k in range(dep_ptr[i], dep_ptr[i + 1]):
            ready = max(ready, end[dep_index[k]])
        start[i] = ready
        end[i] = ready + latency[i] + solo[i]
    # and one backward pass sees the tails of all ops that wait
    for i in range(n - 1, -1, -1):
        after = tail[i] + latency[i] + solo[i]
        for k in range(dep_ptr[i], dep_ptr[i + 1]):
            tail[dep_index[k]] = max(tail[dep_index[k]], after)
    return start, end, tail


@compiled(plain_s=lambda _, res, *__: 1e-6 * len(res))
def ends(ptr, res, serve, tail, num_resources):
    """Return the earliest service time and the shortest tail over the ops of each resource: two
    arrays of shape (R,).
    """
    head_R, tail_R = np.full(num_resources, np.inf), np.full(num_resources, np.inf)
    for i in range(len(tail)):
        for e in range(ptr[i], ptr[i + 1]):
            head_R[res[e]] = min(head_R[res[e]], serve[i])
            tail_R[res[e]] = min(tail_R[res[e]], tail[i])
    return head_R, tail_R
