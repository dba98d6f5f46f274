"""The fluid model: ops that use the same resource share it by weighted max-min fairness.

``solo_i`` is the time of op i when it runs alone, and ``b_ir`` is the share of resource r that it
takes at full speed. Speeds ``y_i <= 1`` obey ``sum_i b_ir y_i <= 1`` and are filled level by level,
``y_i = min(1, L solo_i / n_i)`` with fair unit n_i; see `moesim.engines.fairness`.

The engine is fast because only resources with ``S_r = sum_i b_ir > 1`` over the active ops can
bind: an op that starts or ends without touching such a hot resource changes no other speed and
needs no re-solve (this is exact). With a tolerance, changes at hot resources within ``tolerance``
of each other share one re-solve; until then a new op gets the capacity left over, so ends stay
exact for the speeds used and no capacity is exceeded. Instants within a relative 1e-12 of each
other count as one, and ends come before starts.

The kernel is compiled by numba. Its plain Python stays available as ``_solve.py_func``, and the
tests compare the two.
"""

from typing import NamedTuple

import numpy as np

from moesim.compiled import compiled
from moesim.engines.bound import run_bound
from moesim.engines.fairness import SATURATED, Scratch, Shares, Sums, fill
from moesim.engines.flow_factored import run_flow_factored
from moesim.program.factored import Factored
from moesim.program.program import Program, Timeline, pointers
from moesim.units import MB

_SAME_INSTANT = 1e-12
_WAITING, _LATENT, _ACTIVE, _DONE = 0, 1, 2, 3
_FILL = fill
#: number of solves after which running sums are computed again, since rounding accumulates
_REFRESH = 256
#: largest ops x resources for which shares are also kept as a dense matrix: a level then costs only
#: its hot resources
_DENSE = 1 << 19
#: bytes up to which factored demands are expanded: entries are then as fast
_EXPANDED = 64 * MB


def run_flow(program: Program, *, tolerance_s: float | None = None) -> Timeline:
    """Simulate a program in the fluid model.

    Args:
        program: The program with N ops and R resources.
        tolerance_s: How long a re-solve may wait for more changes; 0 is exact. The default is 0 up
            to 1024 ops, 1e-4 of the bound above that, and 1e-3 of the bound from 4096 ops on.

    Returns:
        Timeline: the start (latency included) and end of every op, and the work that each resource
        served.

    Raises:
        CapacityError: Factored demands of a torus would not fit in memory once expanded.
    """
    n = program.num_ops
    if tolerance_s is None:
        share = 0.0 if n <= 1024 else 1e-4 if n < 4096 else 1e-3
        tolerance_s = share * run_bound(program).makespan_s if share else 0.0
    if _stays_factored(program):
        return run_flow_factored(program, tolerance_s)
    program = program.expanded()
    solo = program.solo_s_N()
    share_e, col_ptr, col_entry, col_op = _columns(
        program.demand_ptr, program.demand_resource, program.demand_amount, program.capacity_R, solo
    )
    dense_NR = np.zeros((0, 0))
    if n * len(program.capacity_R) <= _DENSE:
        dense_NR = np.zeros((n, len(program.capacity_R)))
        dense_NR[program.op_of_entry(), program.demand_resource] = share_e
    weight = solo / np.where(program.fair_unit_s_N > 0, program.fair_unit_s_N, 1.0)
    waiter = np.repeat(np.arange(n), np.diff(program.dep_ptr))
    order = np.argsort(program.dep_index, kind="stable")
    wake_ptr = pointers(np.bincount(program.dep_index, minlength=n))
    shares = Shares(
        program.demand_ptr,
        program.demand_resource,
        share_e,
        dense_NR,
        col_ptr,
        col_entry,
        col_op,
        weight,
    )
    graph = _Graph(np.diff(program.dep_ptr), wake_ptr, waiter[order].astype(np.int64))
    start, end, served, events = _solve(
        shares, graph, solo, program.latency_s_N, program.release_s_N, float(tolerance_s)
    )
    return Timeline(
        start_s_N=start,
        end_s_N=end,
        busy_s_R=served,
        engine="flow",
        events=int(events),
        makespan_s=float(end.max()) if n else 0.0,
    )


def _stays_factored(program: Program) -> bool:
    """Return whether a program's blocks are too large to expand, and of a kind that need not be."""
    return all(isinstance(block, Factored) for block in program.factored) and (
        sum(block.expanded_bytes() for block in program.factored) > _EXPANDED
    )


class _Graph(NamedTuple):
    """Dependencies, stored by the op that is waited for.

    Attributes:
        waits_for: ndarray of shape (N,): number of ops that each op waits for.
        wake_ptr: Row pointers of ``wake`` by op.
        wake: The ops that wait for each op.
    """

    waits_for: np.ndarray
    wake_ptr: np.ndarray
    wake: np.ndarray


@compiled(plain_s=lambda _, res, *__: 2e-6 * len(res))
def _columns(ptr, res, amount, capacity, solo):
    """Return the share of every entry and the matrix by columns: (share, col_ptr, index of each
    entry, its op).
    """
    share = np.empty(len(res))
    col_ptr = np.zeros(len(capacity) + 1, np.int64)
    for e in range(len(res)):
        col_ptr[res[e] + 1] += 1
    for r in range(len(capacity)):
        col_ptr[r + 1] += col_ptr[r]
    place = col_ptr[:-1].copy()
    col_entry, col_op = np.empty(len(res), np.int32), np.empty(len(res), np.int32)
    for i in range(len(solo)):
        for e in range(ptr[i], ptr[i + 1]):
            r = res[e]
            share[e] = amount[e] / capacity[r] / solo[i]
            col_entry[place[r]] = e
            col_op[place[r]] = i
            place[r] += 1
    return share, col_ptr, col_entry, col_op


@compiled(plain_s=lambda shares, *_: 2e-7 * len(shares.ptr) * len(shares.res))
def _solve(shares, graph, solo, latency, release, tolerance):
    """Run all ops and return (start_s_N, end_s_N, busy_s_R, events)."""
    ptr, res, share, weight = shares.ptr, shares.res, shares.share, shares.weight
    waits_for, wake_ptr, wake = graph
    n, num_resources = len(solo), len(shares.col_ptr) - 1
    start, end, served = np.zeros(n), np.zeros(n), np.zeros(num_resources)
    state = np.zeros(n, np.int64)
    # while an op is latent, the time its service begins; while it is active, the time it ends at
    # its present speed
    serve_at = np.full(n, np.inf)
    remaining, since, speed, old = np.ones(n), np.zeros(n), np.zeros(n), np.zeros(n)
    waits = waits_for.copy()
    hot_sum, pull_sum, used = (
        np.zeros(num_resources),
        np.zeros(num_resources),
        np.zeros(num_resources),
    )
    users = np.zeros(num_resources, np.int64)
    used_known = tolerance == 0.0  # without a tolerance it is never read
    live, num_live = np.zeros(n, np.int64), 0  # latent and active ops
    active = np.zeros(n, np.int64)
    sums = Sums(hot_sum, pull_sum, users)
    scratch = Scratch(
        np.zeros(n, np.bool_),
        np.zeros(n, np.int64),
        np.zeros(n, np.int64),
        np.zeros(num_resources),
        np.zeros(num_resources),
        np.zeros(num_resources, np.int64),
        np.zeros(num_resources, np.int64),
    )
    done, events, solves = 0, 0, 0
    solve_at = np.inf
    for i in range(n):
        if waits[i] == 0:
            start[i] = release[i]
            serve_at[i] = start[i] + latency[i]
            state[i] = _LATENT
            live[num_live] = i
            num_live += 1
    while done < n:
        now = solve_at
        for a in range(num_live):
            now = min(now, serve_at[live[a]])
        events += 1
        instant = now * (1.0 + _SAME_INSTANT)
        dirty = now >= solve_at
        # Stage 1, retire: ops that end now leave their resources and wake the ops that wait for
        # them. A woken op joins the end of the list, so the same pass also retires ops without
        # demand that end within the instant.
        a = 0
        while a < num_live:
            i = live[a]
            if state[i] == _ACTIVE and serve_at[i] <= instant:
                for e in range(ptr[i], ptr[i + 1]):
                    r = res[e]
                    if hot_sum[r] > 1.0 + SATURATED:
                        dirty = True
                    users[r] -= 1
                    if users[r] > 0:
                        hot_sum[r] -= share[e]
                        pull_sum[r] -= share[e] * weight[i]
                    else:
                        # no user is left: set exact zeros, so that rounding cannot accumulate
                        hot_sum[r] = 0.0
                        pull_sum[r] = 0.0
                    if tolerance > 0.0:
                        used[r] -= share[e] * speed[i]
            elif not (state[i] == _LATENT and serve_at[i] <= instant and ptr[i] == ptr[i + 1]):
                a += 1
                continue
            state[i] = _DONE
            end[i] = serve_at[i]
            done += 1
            num_live -= 1
            live[a] = live[num_live]
            for k in range(wake_ptr[i], wake_ptr[i + 1]):
                j = wake[k]
                waits[j] -= 1
                start[j] = max(start[j], end[i])
                if waits[j] == 0:
                    start[j] = max(start[j], release[j])
                    serve_at[j] = start[j] + latency[j]
                    state[j] = _LATENT
                    live[num_live] = j
                    num_live += 1
        # Stage 2, admit: ops whose latency has elapsed take their resources, at first with the
        # capacity left over.
        for a in range(num_live):
            i = live[a]
            if state[i] == _LATENT and serve_at[i] <= instant:
                state[i] = _ACTIVE
                hot = False
                for e in range(ptr[i], ptr[i + 1]):
                    r = res[e]
                    users[r] += 1
                    hot_sum[r] += share[e]
                    pull_sum[r] += share[e] * weight[i]
                    if hot_sum[r] > 1.0 + SATURATED:
                        hot = True
                leftover = 1.0
                if hot:
                    dirty = True
                    if tolerance > 0.0:
                        if not used_known:
                            used_known = True
                            used[:] = 0.0
                            for b in range(num_live):
                                j = live[b]
                                if state[j] == _ACTIVE and j != i:
                                    for e in range(ptr[j], ptr[j + 1]):
                                        used[res[e]] += share[e] * speed[j]
                        for e in range(ptr[i], ptr[i + 1]):
                            leftover = min(leftover, (1.0 - used[res[e]]) / share[e])
                    else:
                        leftover = 0.0
                speed[i] = max(leftover, 0.0)
                since[i] = now
                serve_at[i] = now + solo[i] / speed[i] if speed[i] > 0.0 else np.inf
                if tolerance > 0.0:
                    for e in range(ptr[i], ptr[i + 1]):
                        used[res[e]] += share[e] * speed[i]
        # Stage 3, tolerate: a change at a hot resource may wait for further changes.
        if dirty and tolerance > 0.0 and now < solve_at:
            solve_at = min(solve_at, now + tolerance)
            continue
        # Stage 4, re-solve: compute new speeds for all active ops, and new ends for those whose
        # speed changed.
        if dirty:
            solve_at = np.inf
            num_active = 0
            for a in range(num_live):
                i = live[a]
                if state[i] == _ACTIVE:
                    active[num_active] = i
                    num_active += 1
                    old[i] = speed[i]
            solves += 1
            if solves % _REFRESH == 0:
                hot_sum[:] = 0.0
                pull_sum[:] = 0.0
                for a in range(num_active):
                    i = active[a]
                    for e in range(ptr[i], ptr[i + 1]):
                        hot_sum[res[e]] += share[e]
                        pull_sum[res[e]] += share[e] * weight[i]
            _FILL(active, num_active, shares, sums, speed, scratch)
            used_known = tolerance == 0.0
            for a in range(num_active):
                i = active[a]
                if speed[i] != old[i] or serve_at[i] == np.inf:
                    # account for the progress at the old speed before the new one applies
                    remaining[i] -= (now - since[i]) * old[i] / solo[i]
                    since[i] = now
                    serve_at[i] = (
                        now + max(remaining[i], 0.0) * solo[i] / speed[i]
                        if speed[i] > 0.0
                        else np.inf
                    )
    for i in range(n):
        if state[i] == _DONE:
            for e in range(ptr[i], ptr[i + 1]):
                served[res[e]] += share[e] * solo[i]
    return start, end, served, events
