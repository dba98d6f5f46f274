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


class Shares(NamedTuple):
    """The share of every resource that every op takes at full speed, by rows and by columns, and
    the relative speeds of the ops.

    Attributes:
        ptr: Row pointers of ``res`` and ``share`` by op.
        res: Index of the resource of each entry.
        share: Share of that resource that the op takes at full speed.
        dense_NR: ndarray of shape (N, R): the same shares as a dense matrix if the program is small
            enough; otherwise of shape (0, 0).
        col_ptr: Column pointers of ``col_entry`` and ``col_op`` by resource.
        col_entry: Index of the entry in ``share``.
        col_op: Index of the op of that entry.
        weight: ndarray of shape (N,): speed of each op per unit of the level L.
    """

    ptr: np.ndarray
    res: np.ndarray
    share: np.ndarray
    dense_NR: np.ndarray
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
    """Scratch memory of `fill`, allocated once per run; `fill` leaves the masks as it found them.

    Attributes:
        unfrozen_N: Flags (bool) of the ops without a speed so far; all False between calls.
        listed: Integers of shape (N,): the ops without a speed so far.
        frozen: Integers of shape (N,): the ops that freeze at the current level.
        free: Floats of shape (R,): the share of each resource that is left.
        pull: Floats of shape (R,): sum of shares times weights of the unfrozen users.
        counted: Integers of shape (R,): unfrozen users of each resource.
        hot: Integers of shape (R,): the resources that can bind.
    """

    unfrozen_N: np.ndarray
    listed: np.ndarray
    frozen: np.ndarray
    free: np.ndarray
    pull: np.ndarray
    counted: np.ndarray
    hot: np.ndarray


@compiled(with_caller)
def fill(active, num_active, shares, sums, speed, scratch):
    """Set ``speed`` of the active ops to their weighted max-min fair speed.

    Args:
        active: ndarray of shape (N,): its first ``num_active`` entries are the active ops.
        num_active: Number of active ops A.
        shares: The `Shares` of all ops.
        sums: The `Sums` over the active ops.
        speed: ndarray of shape (N,): output, the speed of each active op.
        scratch: The `Scratch` memory of the run.
    """
    ptr, res, share, dense_NR, col_ptr, col_entry, col_op, weight = shares
    hot_sum, pull_sum, users = sums
    unfrozen_N, listed, frozen, free, pull, count, hot = scratch

    # list the resources that can bind and the ops that still need a speed
    num_resources = len(hot_sum)
    num_hot = 0
    for r in range(num_resources):
        if hot_sum[r] > 1.0 + SATURATED:
            free[r] = 1.0
            pull[r] = pull_sum[r]
            count[r] = users[r]
            hot[num_hot] = r
            num_hot += 1
        else:
            count[r] = 0
    left, heaviest = num_active, 0.0
    for a in range(num_active):
        i = active[a]
        listed[a] = i
        unfrozen_N[i] = True
        speed[i] = 1.0
        heaviest = max(heaviest, weight[i])
    dense = len(dense_NR) > 0
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
        # resources that saturate at it
        num_frozen = 0
        if heaviest * level >= 1.0:
            for a in range(left):
                i = listed[a]
                if weight[i] * level >= 1.0:
                    frozen[num_frozen] = i
                    num_frozen += 1
                    unfrozen_N[i] = False
        if num_frozen == 0:
            for h in range(num_hot):
                r = hot[h]
                if free[r] <= level * pull[r] * (1.0 + SATURATED):
                    # find its users among the ops left, by walking the shorter of the two lists
                    by_list = dense and left < col_ptr[r + 1] - col_ptr[r]
                    first, last = (0, left) if by_list else (col_ptr[r], col_ptr[r + 1])
                    for c in range(first, last):
                        i = listed[c] if by_list else col_op[c]
                        if unfrozen_N[i] and (not by_list or dense_NR[i, r] > 0.0):
                            unfrozen_N[i] = False
                            speed[i] = level * weight[i]
                            frozen[num_frozen] = i
                            num_frozen += 1
        # drop the frozen ops from the list, and subtract their rows from the sums
        kept, heaviest = 0, 0.0
        for a in range(left):
            i = listed[a]
            if unfrozen_N[i]:
                listed[kept] = i
                kept += 1
                heaviest = max(heaviest, weight[i])
        left = kept
        if left == 0:
            break
        for a in range(num_frozen):
            i = frozen[a]
            if dense:
                for h in range(num_hot):
                    r = hot[h]
                    taken = dense_NR[i, r]
                    if taken > 0.0:
                        count[r] -= 1
                        free[r] -= taken * speed[i]
                        pull[r] -= taken * weight[i]
                continue
            for e in range(ptr[i], ptr[i + 1]):
                r = res[e]
                if count[r] > 0:
                    count[r] -= 1
                    free[r] -= share[e] * speed[i]
                    pull[r] -= share[e] * weight[i]
    for a in range(left):
        # ops that nothing bound keep speed 1; clear their flags for the next call
        unfrozen_N[listed[a]] = False
