"""A true lower bound on the makespan, in closed form.

Two things no schedule can beat: the critical path (every op alone), and for each resource the work on it, plus the
earliest moment any of it can begin, plus the shortest way from the end of any of it to the end of the program.
"""

import numpy as np

from moesim.program import Program, Timeline


def run_bound(program: Program) -> Timeline:
    """Earliest times of every op, and a makespan that no engine can undercut.

    Args:
        program: N ops over R resources.

    Returns:
        Timeline: earliest starts and ends (``exact`` is False: they are no schedule) and the bound as makespan_s,
        the largest of the critical path and, for each resource, head + work + tail.
    """
    n = program.num_ops
    if n == 0:
        return Timeline(start_s_N=np.zeros(0), end_s_N=np.zeros(0), busy_s_R=program.busy_s_R(), engine="bound",
                        makespan_s=0.0, exact=False)
    duration = (program.latency_s_N + program.solo_s_N()).tolist()
    release = program.release_s_N.tolist()
    ptr, index = program.dep_ptr.tolist(), program.dep_index.tolist()
    start, end, tail = [0.0] * n, [0.0] * n, [0.0] * n
    for i in range(n):
        ready = release[i]
        for dep in index[ptr[i] : ptr[i + 1]]:
            ready = max(ready, end[dep])
        start[i] = ready
        end[i] = ready + duration[i]
    for i in range(n - 1, -1, -1):
        after = tail[i] + duration[i]
        for dep in index[ptr[i] : ptr[i + 1]]:
            tail[dep] = max(tail[dep], after)
    busy = program.busy_s_R()
    bound = max(end)
    if len(program.demand_resource):
        op = np.repeat(np.arange(n), np.diff(program.demand_ptr))
        head_R = np.full(len(busy), np.inf)
        tail_R = np.full(len(busy), np.inf)
        np.minimum.at(head_R, program.demand_resource, (np.array(start) + program.latency_s_N)[op])
        np.minimum.at(tail_R, program.demand_resource, np.array(tail)[op])
        used = busy > 0
        bound = max(bound, float((head_R + busy + tail_R)[used].max()))
    return Timeline(start_s_N=np.array(start), end_s_N=np.array(end), busy_s_R=busy, engine="bound",
                    makespan_s=bound, exact=False)
