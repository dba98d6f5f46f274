"""The fluid model: ops that use the same resource share it by weighted max-min fairness.

``solo_i`` is the time of op i when it runs alone, and ``b_ir`` is the share of resource r that it
takes at full speed. Speeds ``y_i <= 1`` obey ``sum_i b_ir y_i <= 1`` and are filled level by level,
``y_i = min(1, L solo_i / n_i)`` with fair unit n_i; see `moesim.engines.fairness`.

The engine is fast because only resources with ``S_r = sum_i b_ir > 1`` over the active ops can
bind: an op that starts or ends without touching such a hot resource changes no other speed and
needs no re-solve (this is exact). A re-solve is confined to the ops that such resources connect
with the change (`moesim.engines.fairness.connected`). With a tolerance, changes at hot resources
within ``tolerance`` of each other share one re-solve; until then a new op gets the capacity left
over, so ends stay exact for the speeds used and no capacity is exceeded. Instants within a relative
1e-12 of each other count as one, and ends come before starts.

The kernel is compiled by numba. Its plain Python stays available as ``_solve.py_func``, and the
tests compare the two.
"""

from typing import NamedTuple

import numpy as np

from moesim.compiled import compiled
from moesim.engines.bound import run_bound
from moesim.engines.fairness import SATURATED, Scratch, Shares, Sums, connected, fill
from moesim.engines.flow_factored import run_flow_factored
from moesim.engines.heap import moved, pop, push, reorder
from moesim.program.factored import Factored
from moesim.program.program import Program, Timeline, pointers
from moesim.units import MB

_SAME_INSTANT = 1e-12
_WAITING, _LATENT, _ACTIVE, _DONE = 0, 1, 2, 3
_FILL, _CONNECTED = fill, connected
#: times as many live ops as solved ones, from which on ends are put in order one by one
_FEW = 8
#: number of solves after which running sums are computed again, since rounding accumulates
_REFRESH = 256
#: bytes up to which factored demands are expanded: entries are then as fast
_EXPANDED = 64 * MB


def run_flow(
    program: Program, *, tolerance_s: float | None = None, scale_s: float | None = None
) -> Timeline:
    """Simulate a program in the fluid model.

    Args:
        program: The program with N ops and R resources.
        tolerance_s: How long a re-solve may wait for more changes; 0 is exact. The default is 0 up
            to 512 ops and 16,384 entries of demands, 3e-4 of ``scale_s`` above that, and 1e-3 from
            4,096 ops or 1,048,576 entries on. Makespans of layers on 64 devices are then .01 % late
            in the mean and at most .13 %, of larger layers up to .3 %, of an exchange on a torus of
            1,024 devices .16 %.
        scale_s: The time of which the default tolerance is a share; by default the bound of the
            program. Of parts that follow one another, such as layers, it is the bound of one: a
            share of all 61 layers of a model would be as long as what each waits for, and makes
            steps 8 to 13 % late.

    Returns:
        Timeline: the start (latency included) and end of every op, and the work that each resource
        served.

    Raises:
        CapacityError: Factored demands of a torus would not fit in memory once expanded.
    """
    n = program.num_ops
    if tolerance_s is None:
        tolerance_s = _share_of_bound(program)
        if tolerance_s > 0.0:
            tolerance_s *= run_bound(program).makespan_s if scale_s is None else scale_s
    if _stays_factored(program):
        return run_flow_factored(program, tolerance_s)
    program = program.expanded()
    solo = program.solo_s_N()
    share_e, col_ptr, col_entry, col_op = _columns(
        program.demand_ptr, program.demand_resource, program.demand_amount, program.capacity_R, solo
    )
    weight = solo / np.where(program.fair_unit_s_N > 0, program.fair_unit_s_N, 1.0)
    waiter = np.repeat(np.arange(n), np.diff(program.dep_ptr))
    order = np.argsort(program.dep_index, kind="stable")
    wake_ptr = pointers(np.bincount(program.dep_index, minlength=n))
    shares = Shares(
        program.demand_ptr,
        program.demand_resource,
        share_e,
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


def _share_of_bound(program: Program) -> float:
    """Return the default tolerance as a share of the bound."""
    n, entries = program.num_ops, len(program.demand_amount)
    if n <= 1 << 9 and entries <= 1 << 14:
        return 0.0
    return 3e-4 if n < 1 << 12 and entries < 1 << 20 else 1e-3


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
    # resources that can bind and at which an op began or ended since the last solution
    changed, num_changed = np.zeros(num_resources, np.int64), 0
    is_active = np.zeros(n, np.bool_)
    # a heap of the latent and active ops by when their state changes, and those that change now
    live, num_live, place = np.zeros(n, np.int64), 0, np.zeros(n, np.int64)
    at_once = np.zeros(n, np.int64)
    active = np.zeros(n, np.int64)
    sums = Sums(hot_sum, pull_sum, users)
    seen_R = np.zeros(num_resources, np.bool_)
    scratch = Scratch(
        np.zeros(n, np.bool_),
        seen_R,
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
            num_live = push(i, live, num_live, serve_at, place)
    while done < n:
        now = solve_at if num_live == 0 else min(solve_at, serve_at[live[0]])
        events += 1
        instant = now * (1.0 + _SAME_INSTANT)
        dirty = now >= solve_at
        num_now = 0
        while num_live > 0 and serve_at[live[0]] <= instant:
            at_once[num_now] = live[0]
            num_now += 1
            num_live = pop(live, num_live, serve_at, place)
        # Stage 1, retire: ops that end now leave their resources and wake the ops that wait for
        # them. Woken ops join the list, so that those without demand also end within the instant.
        a = 0
        while a < num_now:
            i = at_once[a]
            a += 1
            if state[i] == _LATENT and ptr[i] < ptr[i + 1]:
                continue
            if state[i] == _ACTIVE:
                is_active[i] = False
                for e in range(ptr[i], ptr[i + 1]):
                    r = res[e]
                    if hot_sum[r] > 1.0 + SATURATED:
                        dirty = True
                        if not seen_R[r]:
                            seen_R[r] = True
                            changed[num_changed] = r
                            num_changed += 1
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
            state[i] = _DONE
            end[i] = serve_at[i]
            done += 1
            for k in range(wake_ptr[i], wake_ptr[i + 1]):
                j = wake[k]
                waits[j] -= 1
                start[j] = max(start[j], end[i])
                if waits[j] > 0:
                    continue
                start[j] = max(start[j], release[j])
                serve_at[j] = start[j] + latency[j]
                state[j] = _LATENT
                if serve_at[j] <= instant:
                    at_once[num_now] = j
                    num_now += 1
                else:
                    num_live = push(j, live, num_live, serve_at, place)
        # Stage 2, admit: ops whose latency has elapsed take their resources, at first with the
        # capacity left over.
        for a in range(num_now):
            i = at_once[a]
            if state[i] == _LATENT:
                state[i] = _ACTIVE
                is_active[i] = True
                hot = False
                for e in range(ptr[i], ptr[i + 1]):
                    r = res[e]
                    users[r] += 1
                    hot_sum[r] += share[e]
                    pull_sum[r] += share[e] * weight[i]
                    if hot_sum[r] > 1.0 + SATURATED:
                        hot = True
                        if not seen_R[r]:
                            seen_R[r] = True
                            changed[num_changed] = r
                            num_changed += 1
                leftover = 1.0
                if hot:
                    dirty = True
                    if tolerance > 0.0:
                        for e in range(ptr[i], ptr[i + 1]):
                            leftover = min(leftover, (1.0 - used[res[e]]) / share[e])
                    else:
                        leftover = 0.0
                speed[i] = max(leftover, 0.0)
                since[i] = now
                serve_at[i] = now + solo[i] / speed[i] if speed[i] > 0.0 else np.inf
                num_live = push(i, live, num_live, serve_at, place)
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
            solves += 1
            if solves % _REFRESH == 0:
                hot_sum[:] = 0.0
                pull_sum[:] = 0.0
                used[:] = 0.0
                for a in range(num_live):
                    i = live[a]
                    if state[i] == _ACTIVE:
                        for e in range(ptr[i], ptr[i + 1]):
                            hot_sum[res[e]] += share[e]
                            pull_sum[res[e]] += share[e] * weight[i]
                            used[res[e]] += share[e] * speed[i]
            num_active, num_hot = _CONNECTED(
                changed, num_changed, shares, sums, is_active, live, num_live, active, scratch
            )
            num_changed = 0
            for a in range(num_active):
                old[active[a]] = speed[active[a]]
            _FILL(active, num_active, num_hot, shares, sums, speed, scratch)
            # one by one, or all at once where many ends change
            few = _FEW * num_active < num_live
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
                    if few:
                        moved(i, live, num_live, serve_at, place)
                    if tolerance > 0.0:
                        for e in range(ptr[i], ptr[i + 1]):
                            used[res[e]] += share[e] * (speed[i] - old[i])
            if not few:
                reorder(live, num_live, serve_at, place)
    for i in range(n):
        if state[i] == _DONE:
            for e in range(ptr[i], ptr[i + 1]):
                served[res[e]] += share[e] * solo[i]
    return start, end, served, events
