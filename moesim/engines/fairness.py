"""Compute weighted max-min fair speeds: the inner loop of the fluid engine, compiled by numba.

``share[e]`` is the share of resource r that op i takes at full speed. Speeds ``y_i <= 1`` obey
``sum_i share_ir y_i <= 1`` and are filled level by level, ``y_i = min(1, L weight_i)``. At each
level the resource that saturates first freezes its users (progressive filling; Bertsekas &
Gallager, Data Networks, 6.5.2).

Sums over the users of a resource are kept from event to event and from level to level; when an op
freezes, its row is subtracted. If the large users of a resource are gone, subtraction would leave
mostly rounding error, so the sum is computed again. Masks are bool or int64, since numba 0.68.1
mis-vectorizes loops that mask on int8 arrays on some new x86 CPUs.

Shape legend: N ops, R resources, A active ops.
"""

from typing import NamedTuple

import numpy as np

from moesim.compiled import compiled, with_caller

SATURATED = 1e-9
#: a sum that fell below this share of its former value is computed again
_CANCELLED = 1e-6
#: entries looked at for each op and resource of the whole, beyond which all are solved
_WORTH = 4


class Shares(NamedTuple):
    """The share of every resource that every op takes at full speed, by rows and by columns, and
    the relative speeds of the ops.

    Attributes:
        ptr: Row pointers of ``res`` and ``share`` by op.
        res: Index of the resource of each entry.
        share: Share of that resource that the op takes at full speed.
        col_ptr: Column pointers of ``col_entry`` and ``col_op`` by resource.
        col_entry: Index of the entry in ``share``.
        col_op: Index of the op of that entry.
        weight: ndarray of shape (N,): speed of each op per unit of the level L.
    """

    ptr: np.ndarray
    res: np.ndarray
    share: np.ndarray
    col_ptr: np.ndarray
    col_entry: np.ndarray
    col_op: np.ndarray
    weight: np.ndarray


class Sums(NamedTuple):
    """Running sums over the active ops of each resource: ndarrays of shape (R,).

    Attributes:
        hot: Sum of the shares; only resources above 1 can bind.
        pull: Sum of shares times weights.
        users: Number of active ops that use the resource.
    """

    hot: np.ndarray
    pull: np.ndarray
    users: np.ndarray


class Scratch(NamedTuple):
    """Scratch memory of `connected` and `fill`, allocated once per run; every flag is False between
    calls.

    Attributes:
        seen_N: Flags (bool) of the ops that were reached.
        seen_R: Flags (bool) of the resources that were reached, or at which something changed.
        unfrozen_N: Flags (bool) of the ops without a speed so far.
        listed: Integers of shape (N,): the ops without a speed so far.
        frozen: Integers of shape (N,): the ops that freeze at the current level.
        free: Floats of shape (R,): the share of each resource that is left.
        pull: Floats of shape (R,): sum of shares times weights of the unfrozen users.
        counted: Integers of shape (R,): unfrozen users of each resource.
        hot: Integers of shape (R,): the resources that can bind.
    """

    seen_N: np.ndarray
    seen_R: np.ndarray
    unfrozen_N: np.ndarray
    listed: np.ndarray
    frozen: np.ndarray
    free: np.ndarray
    pull: np.ndarray
    counted: np.ndarray
    hot: np.ndarray


@compiled(with_caller)
def connected(changed, num_changed, shares, sums, is_active, live, num_live, active, scratch):
    """List the active ops whose speed may change, and the resources that bind them.

    A change at a resource reaches the ops that use it, through them the other resources that can
    bind, and so on. What is not reached keeps its speed, exactly: no resource that can bind is
    shared with anything that changed. Where finding out takes longer than solving for all ops, all
    are listed.

    Args:
        changed: ndarray of shape (R,): its first ``num_changed`` entries are the resources at which
            an op began or ended, flagged in ``scratch.seen_R``. The rest is overwritten.
        num_changed: Number of these resources.
        shares: The `Shares` of all ops.
        sums: The `Sums` over the active ops.
        is_active: ndarray of shape (N,), bool: whether each op is active.
        live: ndarray of shape (N,): the active ops are among its first ``num_live`` entries.
        num_live: Number of these entries.
        active: ndarray of shape (N,): output, the ops.
        scratch: The `Scratch` memory of the run; its list ``hot`` is the other output.

    Returns:
        (number of ops, number of resources).
    """
    ptr, res, col_ptr, col_op = shares.ptr, shares.res, shares.col_ptr, shares.col_op
    # arrays are taken out of tuples once: in a loop their references would be counted
    hot_sum, hot = sums.hot, scratch.hot
    seen_R, seen_N = scratch.seen_R, scratch.seen_N
    num_hot = 0
    for r in range(len(hot_sum)):
        if hot_sum[r] > 1.0 + SATURATED:
            hot[num_hot] = r
            num_hot += 1
    found, reached, at, left = 0, num_changed, 0, _WORTH * (num_hot + num_live)
    while at < reached and left > 0:
        r = changed[at]
        at += 1
        left -= col_ptr[r + 1] - col_ptr[r]
        for c in range(col_ptr[r], col_ptr[r + 1]):
            i = col_op[c]
            if left > 0 and is_active[i] and not seen_N[i]:
                seen_N[i] = True
                active[found] = i
                found += 1
                left -= ptr[i + 1] - ptr[i]
                for e in range(ptr[i], ptr[i + 1]):
                    s = res[e]
                    if hot_sum[s] > 1.0 + SATURATED and not seen_R[s]:
                        seen_R[s] = True
                        changed[reached] = s
                        reached += 1
    for a in range(found):
        seen_N[active[a]] = False
    for k in range(reached):
        seen_R[changed[k]] = False
    if left > 0:
        num_hot = 0
        for k in range(reached):
            if hot_sum[changed[k]] > 1.0 + SATURATED:
                hot[num_hot] = changed[k]
                num_hot += 1
        return found, num_hot
    found = 0
    for a in range(num_live):
        if is_active[live[a]]:
            active[found] = live[a]
            found += 1
    return found, num_hot


@compiled(with_caller)
def fill(active, num_active, num_hot, shares, sums, speed, scratch):
    """Set ``speed`` of the active ops to their weighted max-min fair speed.

    Args:
        active: ndarray of shape (N,): its first ``num_active`` entries are the active ops.
        num_active: Number of active ops A.
        num_hot: Number of resources that can bind them, the first in ``scratch.hot``; all their
            users are among the active ops.
        shares: The `Shares` of all ops.
        sums: The `Sums` over the active ops.
        speed: ndarray of shape (N,): output, the speed of each active op.
        scratch: The `Scratch` memory of the run.
    """
    ptr, res, share, col_ptr, col_entry, col_op, weight = shares
    pull_sum, users = sums.pull, sums.users
    unfrozen_N, listed, frozen = scratch.unfrozen_N, scratch.listed, scratch.frozen
    free, pull, count, hot = scratch.free, scratch.pull, scratch.counted, scratch.hot

    for h in range(num_hot):
        r = hot[h]
        free[r] = 1.0
        pull[r] = pull_sum[r]
        count[r] = users[r]
    left, listed_ops, heaviest = num_active, num_active, 0.0
    for a in range(num_active):
        i = active[a]
        listed[a] = i
        unfrozen_N[i] = True
        speed[i] = 1.0
        heaviest = max(heaviest, weight[i])
    while left > 0 and num_hot > 0:
        # find the level at which the next resource saturates
        level = 1e300
        still_hot = 0
        for h in range(num_hot):
            r = hot[h]
            if count[r] > 0:
                hot[still_hot] = r
                still_hot += 1
                # cancellation: little is left of a large sum, so add up the unfrozen users again
                if pull[r] < _CANCELLED * pull_sum[r]:
                    pull[r] = 0.0
                    for c in range(col_ptr[r], col_ptr[r + 1]):
                        if unfrozen_N[col_op[c]]:
                            pull[r] += share[col_entry[c]] * weight[col_op[c]]
                if free[r] < level * pull[r]:
                    level = max(free[r], 0.0) / pull[r]
        num_hot = still_hot
        if level == 1e300:
            break  # nothing binds the ops that are left
        # ops that reach full speed below that level freeze first; otherwise the users of the
        # resources that saturate at it. The heaviest op may have frozen since it was found: only
        # if it would reach full speed is the list looked through again
        num_frozen = 0
        if heaviest * level >= 1.0:
            kept, heaviest = 0, 0.0
            for a in range(listed_ops):
                i = listed[a]
                if unfrozen_N[i]:
                    listed[kept] = i
                    kept += 1
                    heaviest = max(heaviest, weight[i])
            listed_ops = kept
            if heaviest * level >= 1.0:
                for a in range(listed_ops):
                    i = listed[a]
                    if weight[i] * level >= 1.0:
                        frozen[num_frozen] = i
                        num_frozen += 1
                        unfrozen_N[i] = False
        if num_frozen == 0:
            for h in range(num_hot):
                r = hot[h]
                if free[r] <= level * pull[r] * (1.0 + SATURATED):
                    for c in range(col_ptr[r], col_ptr[r + 1]):
                        i = col_op[c]
                        if unfrozen_N[i]:
                            unfrozen_N[i] = False
                            speed[i] = level * weight[i]
                            frozen[num_frozen] = i
                            num_frozen += 1
        left -= num_frozen
        if left == 0:
            break
        # subtract the rows of the frozen ops from the sums
        for a in range(num_frozen):
            i = frozen[a]
            # read once: the compiler cannot know that the sums are other memory
            its_speed, its_weight, last = speed[i], weight[i], ptr[i + 1]
            for e in range(ptr[i], last):
                # of a resource that cannot bind nobody reads the sums
                r, taken = res[e], share[e]
                count[r] -= 1
                free[r] -= taken * its_speed
                pull[r] -= taken * its_weight
    for a in range(listed_ops):
        # ops that nothing bound keep speed 1; clear their flags for the next call
        unfrozen_N[listed[a]] = False
