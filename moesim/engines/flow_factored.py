"""The fluid model on factored demands, without an entry for every op and resource.

The model is that of `moesim.engines.flow`, and so are its results. An op of a block always counts
as one that touches a hot resource. The ops that end or begin within the tolerance of each other are
taken in their order and share a solution; those that begin get the capacity left over, as far as it
is known without looking at every resource of their group.

Shape legend: N ops, R resources, O outer groups of all blocks.
"""

import numpy as np

from moesim.compiled import compiled
from moesim.engines.fairness_factored import Filling, fill_factored
from moesim.engines.groups import GroupSums, add, clear, entries_of, load, members_of
from moesim.engines.heap import pop, push
from moesim.program.program import Program, Timeline, pointers

Array = np.ndarray
_SAME_INSTANT = 1e-12
_LATENT, _ACTIVE, _DONE = 1, 2, 3
#: share by which the level of a resource may rise unnoticed, where solutions have a tolerance
_SLACK = 1e-4


def run_flow_factored(program: Program, tolerance_s: float) -> Timeline:
    """Simulate a program whose blocks are all `Factored`.

    Args:
        program: The program with N ops and R resources.
        tolerance_s: How long a re-solve may wait for more changes; 0 is exact.

    Returns:
        Timeline: see `moesim.engines.flow.run_flow`.
    """
    n, solo = program.num_ops, program.solo_s_N()
    entries, members = entries_of(program, solo), members_of(program, solo)
    weight = solo / np.where(program.fair_unit_s_N > 0, program.fair_unit_s_N, 1.0)
    order = np.argsort(program.dep_index, kind="stable")
    waiter = np.repeat(np.arange(n), np.diff(program.dep_ptr))[order]
    wake_ptr = pointers(np.bincount(program.dep_index, minlength=n))
    start, end, events = _solve(
        entries,
        members,
        weight,
        (np.diff(program.dep_ptr), wake_ptr, waiter),
        solo,
        program.latency_s_N,
        program.release_s_N,
        float(tolerance_s),
    )
    return Timeline(
        start_s_N=start,
        end_s_N=end,
        busy_s_R=program.busy_s_R(),
        engine="flow",
        events=int(events),
        makespan_s=float(end.max()),
    )


@compiled()
def _solve(entries, members, weight, graph, solo, latency, release, tolerance):
    """Run all ops and return (start_s_N, end_s_N, events)."""
    waits_for, wake_ptr, wake = graph
    n, num_resources = len(solo), len(entries.col_ptr) - 1
    outers, inners = len(members.largest_O), 1
    for m in range(len(members.op_inner)):
        inners = max(inners, members.op_inner[m] + 1)
    for m in range(len(members.res_inner)):
        inners = max(inners, members.res_inner[m] + 1)
    start, end, state = np.zeros(n), np.zeros(n), np.zeros(n, np.int64)
    # the time at which a latent op begins to be served and an active one ends at its speed
    next_at = np.full(n, np.inf)
    remaining, since, speed, old = np.ones(n), np.zeros(n), np.zeros(n), np.zeros(n)
    waits = waits_for.copy()
    used = GroupSums(np.zeros(num_resources), np.zeros(outers), np.zeros(inners))
    # the load of the fullest resource of each outer group, at least
    fullest = np.zeros(outers)
    taken = GroupSums(np.zeros(num_resources), np.zeros(outers), np.zeros(inners))
    pull = GroupSums(np.zeros(num_resources), np.zeros(outers), np.zeros(inners))
    filling = Filling(
        taken,
        pull,
        np.zeros(n, np.bool_),
        np.zeros(outers, np.int64),
        np.zeros(outers, np.bool_),
        np.zeros(num_resources, np.int64),
        np.zeros(num_resources),
        np.zeros(num_resources + outers),
        1.0 / np.maximum(weight, 1e-300),
        np.zeros(n, np.int64),
        np.zeros(n, np.int64),
        np.zeros(num_resources + outers, np.int64),
        np.zeros(num_resources + outers, np.int64),
        np.zeros(num_resources, np.int64),
    )
    live, num_live = np.zeros(n, np.int64), 0
    # a heap of the ops whose state changes in the window, and those that change at one instant
    soon, at_once, place = np.zeros(n, np.int64), np.zeros(n, np.int64), np.zeros(n, np.int64)
    active = np.zeros(n, np.int64)
    for i in range(n):
        if waits[i] == 0:
            start[i] = release[i]
            next_at[i] = start[i] + latency[i]
            state[i] = _LATENT
            live[num_live] = i
            num_live += 1
    slack = _SLACK if tolerance > 0.0 else 0.0
    done, events = 0, 0
    while done < n:
        # all changes up to ``until`` share one solution
        now = np.inf
        for a in range(num_live):
            now = min(now, next_at[live[a]])
        until = (now + tolerance) * (1.0 + _SAME_INSTANT)
        num_soon = 0
        for a in range(num_live):
            if next_at[live[a]] <= until:
                num_soon = push(live[a], soon, num_soon, next_at, place)
        dirty = False
        while num_soon > 0:
            now = next_at[soon[0]]
            instant = now * (1.0 + _SAME_INSTANT)
            events += 1
            num_now = 0
            while num_soon > 0 and next_at[soon[0]] <= instant:
                at_once[num_now] = soon[0]
                num_now += 1
                num_soon = pop(soon, num_soon, next_at, place)
            # ends come before starts; ops without demand that they wake may end in the same instant
            a = 0
            while a < num_now:
                i = at_once[a]
                a += 1
                if state[i] == _LATENT and _demands(i, entries, members):
                    continue
                if state[i] == _ACTIVE:
                    dirty = dirty or _touches_full(i, entries, members, used)
                    add(i, -speed[i], entries, members, used)
                state[i] = _DONE
                end[i] = next_at[i]
                done += 1
                for k in range(wake_ptr[i], wake_ptr[i + 1]):
                    j = wake[k]
                    waits[j] -= 1
                    start[j] = max(start[j], end[i])
                    if waits[j] > 0:
                        continue
                    start[j] = max(start[j], release[j])
                    next_at[j] = start[j] + latency[j]
                    state[j] = _LATENT
                    live[num_live] = j
                    num_live += 1
                    if next_at[j] <= instant:
                        at_once[num_now] = j
                        num_now += 1
                    elif next_at[j] <= until:
                        num_soon = push(j, soon, num_soon, next_at, place)
            for a in range(num_now):
                i = at_once[a]
                if state[i] != _LATENT:
                    continue
                leftover = _leftover(i, entries, members, used, fullest)
                dirty = dirty or leftover < 1.0 or members.op_ptr[i] < members.op_ptr[i + 1]
                state[i], speed[i], since[i] = _ACTIVE, leftover, now
                next_at[i] = now + solo[i] / leftover if leftover > 0.0 else np.inf
                add(i, leftover, entries, members, used)
                for m in range(members.op_ptr[i], members.op_ptr[i + 1]):
                    outer = members.op_outer[m]
                    fullest[outer] += members.largest_O[outer] * members.op_row[m] * leftover
                if next_at[i] <= until:
                    num_soon = push(i, soon, num_soon, next_at, place)
        kept, num_active = 0, 0
        for a in range(num_live):
            i = live[a]
            if state[i] != _DONE:
                live[kept] = i
                kept += 1
                if state[i] == _ACTIVE:
                    active[num_active] = i
                    old[num_active] = speed[i]
                    num_active += 1
        num_live = kept
        if not dirty:
            continue
        # the solution takes effect at the end of the window
        at = max(now, until / (1.0 + _SAME_INSTANT)) if tolerance > 0.0 else now
        fill_factored(active, num_active, entries, members, weight, speed, filling, slack)
        clear(used)
        for a in range(num_active):
            i = active[a]
            add(i, speed[i], entries, members, used)
            if speed[i] != old[a] or next_at[i] == np.inf:
                remaining[i] -= (at - since[i]) * old[a] / solo[i]
                since[i] = at
                next_at[i] = (
                    at + max(remaining[i], 0.0) * solo[i] / speed[i] if speed[i] > 0.0 else np.inf
                )
        fullest[:] = 0.0
        for r in range(num_resources):
            if members.res_ptr[r] < members.res_ptr[r + 1]:
                total = load(r, members, used)
                for m in range(members.res_ptr[r], members.res_ptr[r + 1]):
                    outer = members.res_outer[m]
                    fullest[outer] = max(fullest[outer], total)
    return start, end, events


@compiled()
def _demands(i, entries, members):
    """Return whether op i demands anything."""
    return entries.ptr[i] < entries.ptr[i + 1] or members.op_ptr[i] < members.op_ptr[i + 1]


@compiled()
def _leftover(i, entries, members, used, fullest):
    """Return the speed that the capacity left over allows op i."""
    speed = 1.0
    for e in range(entries.ptr[i], entries.ptr[i + 1]):
        r = entries.res[e]
        speed = min(speed, (1.0 - load(r, members, used)) / entries.share[e])
    for m in range(members.op_ptr[i], members.op_ptr[i + 1]):
        outer = members.op_outer[m]
        most = members.largest_O[outer] * members.op_row[m]
        if most > 0.0:
            speed = min(speed, (1.0 - fullest[outer]) / most)
    return max(speed, 0.0)


@compiled()
def _touches_full(i, entries, members, used):
    """Return whether op i may use a resource that others wait for."""
    if members.op_ptr[i] < members.op_ptr[i + 1]:
        return True
    for e in range(entries.ptr[i], entries.ptr[i + 1]):
        if load(entries.res[e], members, used) > 1.0 - 1e-6:
            return True
    return False
