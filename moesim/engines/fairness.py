"""Weighted max-min fair speeds: the inner loop of the fluid engine, compiled by numba.

``share[e]`` is what op i takes of resource r at full speed; speeds ``y_i <= 1`` obey
``sum_i share_ir y_i <= 1`` and are filled level by level, ``y_i = min(1, L weight_i)``: at each
level the resource that saturates first freezes its users (progressive filling; Bertsekas &
Gallager, Data Networks, 6.5.2).

Sums over the users of a resource are kept from event to event and from level to level: an op that
freezes takes its row out of them. What subtraction would leave of a resource whose large users are
gone is summed anew. Masks are bool or int64: numba 0.68.1 mis-vectorises loops that mask on int8
arrays on some new x86 CPUs.

Shape legend: N ops, R resources, A active ops.
"""

from typing import NamedTuple

import numpy as np
from numba import njit

SATURATED = 1e-9
#: a sum that fell below this share of what it was is summed anew
_CANCELLED = 1e-6


class Shares(NamedTuple):
    """What every op takes of every resource at full speed, by rows and by columns, and how fast ops
    are in proportion.

    Attributes:
        ptr: Rows of ``res`` and ``share`` by op.
        res: Resource of each entry.
        share: Share of it that the op takes at full speed.
        dense_NR: ndarray of shape (N, R): shares again, for programs small enough; of shape (0, 0)
            for others.
        col_ptr: Columns of ``col_entry`` and ``col_op`` by resource.
        col_entry: Place in ``share``.
        col_op: Op of that entry.
        weight: ndarray of shape (N,): speed per level.
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
    """Running sums over the active ops of each resource, ndarrays of shape (R,).

    Attributes:
        hot: Shares, summed; only resources above 1 can bind.
        pull: Shares times weights, summed.
        users: How many ops there are.
    """

    hot: np.ndarray
    pull: np.ndarray
    users: np.ndarray


class Scratch(NamedTuple):
    """Memory that `fill` writes to and leaves as it found it: allocated once for a run.

    Attributes:
        unfrozen_N: bool, False for all.
        listed: Integers of shape (N,).
        frozen: Integers of shape (N,).
        free: Numbers of shape (R,).
        pull: Numbers of shape (R,).
        counted: Integers of shape (R,).
        hot: Integers of shape (R,).
    """

    unfrozen_N: np.ndarray
    listed: np.ndarray
    frozen: np.ndarray
    free: np.ndarray
    pull: np.ndarray
    counted: np.ndarray
    hot: np.ndarray


@njit(cache=True)
def fill(active, num_active, shares, sums, speed, scratch):
    """Set ``speed`` of the active ops to the weighted max-min fair one.

    Args:
        active: ndarray of shape (N,): the active ops, in its first ``num_active`` places.
        num_active: A.
        shares: `Shares` of all ops.
        sums: `Sums` over the active ops.
        speed: ndarray of shape (N,): written.
        scratch: `Scratch`.
    """
    ptr, res, share, dense_NR, col_ptr, col_entry, col_op, weight = shares
    hot_sum, pull_sum, users = sums
    unfrozen_N, listed, frozen, free, pull, count, hot = scratch

    # resources that can bind, and the ops that are still to be given a speed
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
        # the level at which the next resource saturates
        level = 1e300
        still_hot = 0
        for h in range(num_hot):
            r = hot[h]
            if count[r] > 0:
                hot[still_hot] = r
                still_hot += 1
                if pull[r] < _CANCELLED * pull_sum[r]:
                    pull[r] = 0.0
                    for c in range(col_ptr[r], col_ptr[r + 1]):
                        if unfrozen_N[col_op[c]]:
                            pull[r] += share[col_entry[c]] * weight[col_op[c]]
                if free[r] < level * pull[r]:
                    level = max(free[r], 0.0) / pull[r]
        num_hot = still_hot
        if level == 1e300:
            break  # nothing binds those that are left
        # ops that reach full speed below that level freeze first; else the users of what saturates
        # at it
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
                    # its users among those left: by the shorter of the two lists
                    by_list = dense and left < col_ptr[r + 1] - col_ptr[r]
                    first, last = (0, left) if by_list else (col_ptr[r], col_ptr[r + 1])
                    for c in range(first, last):
                        i = listed[c] if by_list else col_op[c]
                        if unfrozen_N[i] and (not by_list or dense_NR[i, r] > 0.0):
                            unfrozen_N[i] = False
                            speed[i] = level * weight[i]
                            frozen[num_frozen] = i
                            num_frozen += 1
        # drop the frozen ones from the list, and take their rows out of the sums
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
        unfrozen_N[listed[a]] = False
