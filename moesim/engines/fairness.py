"""Weighted max-min fair speeds: the inner loop of the fluid engine, compiled by numba.

``share[e]`` is what op i takes of resource r at full speed; speeds ``y_i <= 1`` obey ``sum_i share_ir y_i <= 1`` and
are filled level by level, ``y_i = min(1, L weight_i)``: at each level the resource that saturates first freezes its
users (progressive filling; Bertsekas & Gallager, Data Networks, 6.5.2).

Sums over the users of a resource are kept from event to event and from level to level: an op that freezes takes its
row out of them. What subtraction would leave of a resource whose large users are gone is summed anew.
Masks are bool or int64: numba 0.68.1 mis-vectorises loops that mask on int8 arrays on some new x86 CPUs.

Shape legend: N ops, R resources, A active ops.
"""

from numba import njit

SATURATED = 1e-9
#: a sum that fell below this share of what it was is summed anew
_CANCELLED = 1e-6


@njit(cache=True)
def fill(active, num_active, ptr, res, share, weight, dense_NR, col_ptr, col_entry, col_op, hot_sum, pull_sum, users,
         speed, unfrozen_N, listed, frozen, free, pull, count, hot):
    """Set ``speed`` of the active ops to the weighted max-min fair one.

    Args:
        active: ndarray of shape (N,): the active ops, in its first ``num_active`` places.
        num_active: A.
        ptr: Rows of ``res`` (resource) and ``share`` by op.
        res: See ``ptr``.
        share: See ``ptr``.
        weight: ndarray of shape (N,): speed per level.
        dense_NR: ndarray of shape (N, R): shares again, for programs small enough; of shape (0, 0) for others.
        col_ptr: Columns of ``col_entry`` (place in ``share``) and ``col_op`` by resource.
        col_entry: See ``col_ptr``.
        col_op: See ``col_ptr``.
        hot_sum: ndarray of shape (R,): shares of the active ops, summed; only resources above 1 can bind.
        pull_sum: ndarray of shape (R,): shares times weights, likewise.
        users: ndarray of shape (R,): active ops of each resource.
        speed: ndarray of shape (N,): written.
        unfrozen_N: bool scratch, False for all, left so; ``listed``, ``frozen``: integer scratch of shape (N,).
        listed: See ``unfrozen_N``.
        frozen: See ``unfrozen_N``.
        free: Scratch of shape (R,), as ``pull`` and the integers ``count`` and ``hot``.
        pull: See ``free``.
        count: See ``free``.
        hot: See ``free``.
    """
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
