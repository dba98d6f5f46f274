"""Compute weighted max-min fair speeds where demands are factored: `moesim.engines.fairness`
without an entry for every op and resource.

What filling needs of a resource, its load and how fast that rises with the level, has the form of
`moesim.engines.groups`, so that a level costs ops + resources instead of ops x resources.
"""

from typing import NamedTuple

import numpy as np

from moesim.compiled import compiled
from moesim.engines.fairness import SATURATED
from moesim.engines.groups import GroupSums, add, clear, load
from moesim.engines.heap import pop, push

Array = np.ndarray
#: share of its former value from which on a sum is only rounding error
_CANCELLED = 1e-9


class Filling(NamedTuple):
    """Scratch memory of `fill_factored`.

    Attributes:
        taken: What frozen ops take.
        pull: What unfrozen ops take per unit of the level.
        unfrozen: Flags (bool) of the ops without a speed so far; all False between calls.
        count_O: Number of unfrozen ops of each outer group.
        waiting_O: Flags (bool) of the outer groups with one entry for their resources.
        behind_R: The outer group behind whose entry each resource waits; -1 for its own entry.
        most_R: What the users of each resource pulled at first; 0 where it cannot bind.
        level_R: A level below which each resource does not saturate; then likewise for the
            resources of each outer group.
        full_N: The level at which each op reaches full speed.
        ops: Heap of ops by ``full_N``, whose places are in ``place_N``.
        hot: Heap of resources by ``level_R``, whose places are in ``place_R``.
        listed: The resources that can bind.
    """

    taken: GroupSums
    pull: GroupSums
    unfrozen: Array
    count_O: Array
    waiting_O: Array
    behind_R: Array
    most_R: Array
    level_R: Array
    full_N: Array
    ops: Array
    place_N: Array
    hot: Array
    place_R: Array
    listed: Array


@compiled()
def _freeze(i, speed_i, entries, members, weight, filling, speed):
    """Give op i its speed."""
    speed[i] = speed_i
    filling.unfrozen[i] = False
    add(i, speed_i, entries, members, filling.taken)
    add(i, -weight[i], entries, members, filling.pull)
    for m in range(members.op_ptr[i], members.op_ptr[i + 1]):
        filling.count_O[members.op_outer[m]] -= 1


@compiled()
def fill_factored(active, count, entries, members, weight, speed, filling, slack):
    """Set ``speed`` of the active ops to their weighted max-min fair speed, see
    `moesim.engines.fairness.fill`.

    The level at which a resource saturates only rises while others freeze ops at lower levels. So
    the lowest of a heap of levels that were right once is looked at again, and is the next one if
    it has not risen. The resources of an outer group that have no other load wait behind one entry
    for all of them, at the level of one with the largest column that every op of the group uses:
    none of them saturates earlier.

    Args:
        active: ndarray of shape (N,): its first ``count`` entries are the active ops.
        count: Number of active ops.
        entries: The sparse shares.
        members: The memberships in blocks.
        weight: ndarray of shape (N,): speed of each op per unit of the level.
        speed: ndarray of shape (N,): output.
        filling: Scratch memory; its masks are False between calls.
        slack: Share by which a level may rise and still be the next one; 0 is exact.
    """
    taken, pull = filling.taken, filling.pull
    clear(taken)
    clear(pull)
    # at full speed: only resources above 1 can bind
    for a in range(count):
        i = active[a]
        speed[i] = 1.0
        add(i, 1.0, entries, members, pull)
    num_hot, num_ops = 0, 0
    for r in range(len(pull.own_R)):
        filling.most_R[r] = 0.0
        if load(r, members, pull) > 1.0 + SATURATED:
            filling.listed[num_hot] = r
            num_hot += 1
    if num_hot == 0:
        return
    clear(pull)
    filling.count_O[:] = 0
    for a in range(count):
        i = active[a]
        filling.unfrozen[i] = True
        num_ops = push(i, filling.ops, num_ops, filling.full_N, filling.place_N)
        add(i, weight[i], entries, members, pull)
        for m in range(members.op_ptr[i], members.op_ptr[i + 1]):
            filling.count_O[members.op_outer[m]] += 1
    hot, resources = 0, len(pull.own_R)
    filling.waiting_O[:] = False
    for h in range(num_hot):
        r = filling.listed[h]
        filling.most_R[r] = load(r, members, pull)
        filling.level_R[r] = 1.0 / filling.most_R[r]
        behind = -1
        for m in range(members.res_ptr[r], members.res_ptr[r + 1]):
            if filling.count_O[members.res_outer[m]] > 0:
                behind = members.res_outer[m] if behind == -1 else -2
        filling.behind_R[r] = behind
        if behind < 0 or pull.own_R[r] > 0.0:
            filling.behind_R[r] = -1
            hot = push(r, filling.hot, hot, filling.level_R, filling.place_R)
        elif not filling.waiting_O[behind]:
            filling.waiting_O[behind] = True
            filling.level_R[resources + behind] = 0.0
            hot = push(resources + behind, filling.hot, hot, filling.level_R, filling.place_R)
    while hot > 0:
        r = filling.hot[0]
        if r >= resources:
            outer = r - resources
            column = members.largest_O[outer]
            level = (1.0 - column * taken.outer_O[outer]) / max(
                column * pull.outer_O[outer], 1e-300
            )
            hot = pop(filling.hot, hot, filling.level_R, filling.place_R)
            if filling.count_O[outer] == 0:
                continue
            if level > filling.level_R[r] * (1.0 + slack):
                filling.level_R[r] = level
                hot = push(r, filling.hot, hot, filling.level_R, filling.place_R)
                continue
            for c in range(members.port_ptr[outer], members.port_ptr[outer + 1]):
                port = members.ports[c]
                if filling.most_R[port] > 0.0 and filling.behind_R[port] == outer:
                    filling.level_R[port] = level
                    hot = push(port, filling.hot, hot, filling.level_R, filling.place_R)
            continue
        rise = load(r, members, pull)
        if rise <= _CANCELLED * filling.most_R[r]:
            # nothing but rounding error is left of its users
            hot = pop(filling.hot, hot, filling.level_R, filling.place_R)
            continue
        level = max(1.0 - load(r, members, taken), 0.0) / rise
        if level > filling.level_R[r] * (1.0 + slack):
            hot = pop(filling.hot, hot, filling.level_R, filling.place_R)
            filling.level_R[r] = level
            hot = push(r, filling.hot, hot, filling.level_R, filling.place_R)
            continue
        # ops that reach full speed below that level freeze first
        while num_ops > 0 and not filling.unfrozen[filling.ops[0]]:
            num_ops = pop(filling.ops, num_ops, filling.full_N, filling.place_N)
        if num_ops == 0:
            return
        if filling.full_N[filling.ops[0]] <= level:
            _freeze(filling.ops[0], 1.0, entries, members, weight, filling, speed)
            continue
        hot = pop(filling.hot, hot, filling.level_R, filling.place_R)
        for c in range(entries.col_ptr[r], entries.col_ptr[r + 1]):
            i = entries.col_op[c]
            if filling.unfrozen[i]:
                _freeze(i, level * weight[i], entries, members, weight, filling, speed)
        for m in range(members.res_ptr[r], members.res_ptr[r + 1]):
            outer = members.res_outer[m]
            if filling.count_O[outer] == 0:
                continue
            for b in range(members.outer_ptr[outer], members.outer_ptr[outer + 1]):
                member = members.outer_member[b]
                i = members.member_op[member]
                if filling.unfrozen[i] and members.op_inner[member] != members.res_inner[m]:
                    _freeze(i, level * weight[i], entries, members, weight, filling, speed)
    for a in range(count):
        filling.unfrozen[active[a]] = False
