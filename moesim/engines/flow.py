"""The fluid model: ops that meet at a resource share it by weighted max-min fairness.

``solo_i`` is op i's time alone and ``b_ir`` the share of resource r it takes at full speed. Speeds ``y_i <= 1`` obey
``sum_i b_ir y_i <= 1`` and are filled level by level, ``y_i = min(1, L solo_i / n_i)`` with fair unit n_i, freezing
the users of each resource that saturates (progressive filling; Bertsekas & Gallager, Data Networks, 6.5.2).

Fast because only resources with ``S_r = sum_i b_ir > 1`` over the active ops can bind: an op that starts or ends
without touching such a hot resource changes nobody's speed, and needs no re-solve (exact). With a tolerance, changes
at hot resources within ``tolerance`` of each other share one re-solve; meanwhile a new op gets the capacity left over,
so ends stay exact for the speeds used and no capacity is exceeded. Instants within 1e-12 of each other are one, ends
before starts.

The kernel is compiled by numba (its plain Python stays reachable as ``_solve.py_func`` and the tests compare them).
Masks are bool or int64: numba 0.68.1 mis-vectorises loops that mask on int8 arrays on some new x86 CPUs.
"""

import numpy as np
from numba import njit

from moesim.engines.bound import run_bound
from moesim.program import Program, Timeline

_SAME_INSTANT = 1e-12
_SATURATED = 1e-9
_WAITING, _LATENT, _ACTIVE, _DONE = 0, 1, 2, 3


def run_flow(program: Program, *, tolerance_s: float | None = None) -> Timeline:
    """Run a program in the fluid model.

    Args:
        program: N ops over R resources.
        tolerance_s: How long a re-solve may wait for more changes; 0 is exact. By default 0 up to 256 ops, then 1e-4
            of the bound, from 1024 ops 1e-3.

    Returns:
        Timeline: starts (latency included) and ends of all ops, and the work every resource served.
    """
    n = program.num_ops
    if tolerance_s is None:
        share = 0.0 if n <= 256 else 1e-4 if n < 1024 else 1e-3
        tolerance_s = share * run_bound(program).makespan_s if share else 0.0
    solo = program.solo_s_N()
    op = np.repeat(np.arange(n), np.diff(program.demand_ptr))
    share_e = program.demand_s() / np.where(solo > 0, solo, 1.0)[op]
    weight = solo / np.where(program.fair_unit_s_N > 0, program.fair_unit_s_N, 1.0)
    waiter = np.repeat(np.arange(n), np.diff(program.dep_ptr))
    order = np.argsort(program.dep_index, kind="stable")
    wake_ptr = np.concatenate([[0], np.cumsum(np.bincount(program.dep_index, minlength=n))]).astype(np.int64)
    start, end, served = _solve(
        program.demand_ptr, program.demand_resource, share_e, solo, weight, program.latency_s_N,
        program.release_s_N, np.diff(program.dep_ptr), wake_ptr, waiter[order].astype(np.int64),
        len(program.capacity_R), float(tolerance_s),
    )
    return Timeline(start_s_N=start, end_s_N=end, busy_s_R=served, engine="flow",
                    makespan_s=float(end.max()) if n else 0.0)


@njit(cache=True)
def _fill(active, ptr, res, share, weight, hot_sum, speed):
    """Set ``speed`` of the active ops to the weighted max-min fair one. Returns nothing."""
    num_resources = len(hot_sum)
    hot = hot_sum > 1.0 + _SATURATED
    free = np.ones(num_resources)
    pull = np.zeros(num_resources)
    unfrozen = np.zeros(len(active), np.bool_)
    left = 0
    for a in range(len(active)):
        i = active[a]
        speed[i] = 1.0
        for e in range(ptr[i], ptr[i + 1]):
            if hot[res[e]]:
                unfrozen[a] = True
        left += unfrozen[a]
    while left > 0:
        # summed anew each time: what subtraction leaves of a resource whose users are all frozen would bind for ever
        pull[:] = 0.0
        for a in range(len(active)):
            if unfrozen[a]:
                i = active[a]
                for e in range(ptr[i], ptr[i + 1]):
                    pull[res[e]] += share[e] * weight[i]
        level = np.inf
        for r in range(num_resources):
            if hot[r] and pull[r] > 0.0:
                level = min(level, max(free[r], 0.0) / pull[r])
        at_cap = 0
        for a in range(len(active)):
            if unfrozen[a] and weight[active[a]] * level >= 1.0:
                at_cap += 1
        saturated = np.zeros(num_resources, np.bool_)
        if at_cap == 0:
            for r in range(num_resources):
                saturated[r] = hot[r] and pull[r] > 0.0 and max(free[r], 0.0) <= level * pull[r] * (1 + _SATURATED)
        for a in range(len(active)):
            if not unfrozen[a]:
                continue
            i = active[a]
            if at_cap > 0:
                freeze = weight[i] * level >= 1.0
                value = 1.0
            else:
                freeze = False
                for e in range(ptr[i], ptr[i + 1]):
                    if saturated[res[e]]:
                        freeze = True
                value = level * weight[i]
            if freeze:
                unfrozen[a] = False
                left -= 1
                speed[i] = value
                for e in range(ptr[i], ptr[i + 1]):
                    free[res[e]] -= share[e] * value


@njit(cache=True)
def _solve(ptr, res, share, solo, weight, latency, release, waits_for, wake_ptr, wake, num_resources, tolerance):
    """Run all ops; returns (start_s_N, end_s_N, busy_s_R)."""
    n = len(solo)
    start, end, served = np.zeros(n), np.zeros(n), np.zeros(num_resources)
    state = np.zeros(n, np.int64)
    serve_at = np.full(n, np.inf)  # latent: when service begins; active: when it ends at the present speed
    remaining, since, speed = np.ones(n), np.zeros(n), np.zeros(n)
    waits = waits_for.copy()
    hot_sum, used = np.zeros(num_resources), np.zeros(num_resources)
    users = np.zeros(num_resources, np.int64)
    done = 0
    solve_at = np.inf
    for i in range(n):
        if waits[i] == 0:
            start[i] = release[i]
            serve_at[i] = start[i] + latency[i]
            state[i] = _LATENT
    while done < n:
        now = solve_at
        for i in range(n):
            if state[i] == _LATENT or state[i] == _ACTIVE:
                now = min(now, serve_at[i])
        instant = now * (1.0 + _SAME_INSTANT)
        dirty = now >= solve_at
        changed = True
        while changed:  # an op without demand may end, and let others start, within the instant
            changed = False
            for i in range(n):
                if state[i] == _ACTIVE and serve_at[i] <= instant:
                    for e in range(ptr[i], ptr[i + 1]):
                        r = res[e]
                        if hot_sum[r] > 1.0 + _SATURATED:
                            dirty = True
                        users[r] -= 1
                        hot_sum[r] = hot_sum[r] - share[e] if users[r] > 0 else 0.0
                        used[r] = used[r] - share[e] * speed[i] if users[r] > 0 else 0.0
                        served[r] += share[e] * solo[i]
                    state[i] = _DONE
                elif state[i] == _LATENT and serve_at[i] <= instant and ptr[i] == ptr[i + 1]:
                    state[i] = _DONE
                else:
                    continue
                changed = True
                end[i] = serve_at[i]
                done += 1
                for k in range(wake_ptr[i], wake_ptr[i + 1]):
                    j = wake[k]
                    waits[j] -= 1
                    start[j] = max(start[j], end[i])
                    if waits[j] == 0:
                        start[j] = max(start[j], release[j])
                        serve_at[j] = start[j] + latency[j]
                        state[j] = _LATENT
        for i in range(n):
            if state[i] == _LATENT and serve_at[i] <= instant:
                state[i] = _ACTIVE
                leftover = 1.0
                for e in range(ptr[i], ptr[i + 1]):
                    r = res[e]
                    users[r] += 1
                    hot_sum[r] += share[e]
                    if hot_sum[r] > 1.0 + _SATURATED:  # any other resource has room for all of its users
                        dirty = True
                        leftover = min(leftover, (1.0 - used[r]) / share[e])
                speed[i] = max(leftover, 0.0)
                since[i] = now
                serve_at[i] = now + solo[i] / speed[i] if speed[i] > 0.0 else np.inf
                for e in range(ptr[i], ptr[i + 1]):
                    used[res[e]] += share[e] * speed[i]
        if dirty and tolerance > 0.0 and now < solve_at:
            solve_at = min(solve_at, now + tolerance)
            continue
        if dirty:
            solve_at = np.inf
            active = np.flatnonzero(state == _ACTIVE)
            old = speed[active]
            _fill(active, ptr, res, share, weight, hot_sum, speed)
            used[:] = 0.0
            for a in range(len(active)):
                i = active[a]
                for e in range(ptr[i], ptr[i + 1]):
                    used[res[e]] += share[e] * speed[i]
                if speed[i] != old[a] or serve_at[i] == np.inf:
                    remaining[i] -= (now - since[i]) * old[a] / solo[i]
                    since[i] = now
                    serve_at[i] = now + max(remaining[i], 0.0) * solo[i] / speed[i] if speed[i] > 0.0 else np.inf
    return start, end, served
