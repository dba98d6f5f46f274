"""Fill the capacity slots of experts in token order.

Shape legend: T tokens, K choices, E experts.
"""

import numpy as np

from moesim.compiled import compiled, with_caller


@compiled(with_caller)
def _next_with_room(after_E, e):
    """Return the first expert from ``e`` on that has room, or E if none has; follow and shorten the
    chain of full experts.
    """
    root = e
    while after_E[root] != root:
        root = after_E[root]
    while after_E[e] != root:
        after_E[e], e = root, after_E[e]
    return root


@compiled(with_caller)
def _allowed(ids_TK, t, expert, per_group, grouped):
    """Return whether token t may be sent to an expert: it must not use the expert yet, but use a
    group that holds it.
    """
    same_group = not grouped
    for k in range(ids_TK.shape[1]):
        if ids_TK[t, k] == expert:
            return False
        if ids_TK[t, k] // per_group == expert // per_group:
            same_group = True
    return same_group


@compiled(plain_s=lambda ids_TK, *_: 2e-6 * ids_TK.size)
def fill(ids_TK, room_E, reroute, per_group, grouped):
    """Serve choices whose expert has room; then, if requested, serve the others at other experts.

    Args:
        ids_TK: ndarray of shape (T, K), int32; re-routed choices are overwritten.
        room_E: ndarray of shape (E,), int64: free slots of each expert; they are used up in place.
        reroute: Whether choices without a slot go to other experts.
        per_group: Number of experts in a group.
        grouped: Whether re-routed choices must stay in the groups of their token.

    Returns:
        (served_TK, rerouted_TK), bool ndarrays of shape (T, K).
    """
    tokens, top_k = ids_TK.shape
    experts = len(room_E)
    served = np.zeros((tokens, top_k), np.bool_)
    moved = np.zeros((tokens, top_k), np.bool_)
    for t in range(tokens):
        for k in range(top_k):
            if room_E[ids_TK[t, k]] > 0:
                room_E[ids_TK[t, k]] -= 1
                served[t, k] = True
    if not reroute:
        return served, moved
    # a full expert points to the next one; the chains grow shorter as they are followed
    after_E = np.arange(experts + 1)
    for e in range(experts):
        if room_E[e] == 0:
            after_E[e] = e + 1
    turn = 0
    for t in range(tokens):
        for k in range(top_k):
            if served[t, k]:
                continue
            # go once around all experts with room, starting after the expert that the last choice
            # was sent to
            found, wrapped, at = -1, False, turn
            while True:
                e = _next_with_room(after_E, at)
                if e == experts or (wrapped and e >= turn):
                    if wrapped or turn == 0:
                        break
                    wrapped, at = True, 0
                    continue
                if _allowed(ids_TK, t, e, per_group, grouped):
                    found = e
                    break
                at = e + 1
            if found >= 0:
                ids_TK[t, k] = found
                room_E[found] -= 1
                served[t, k] = moved[t, k] = True
                if room_E[found] == 0:
                    after_E[found] = found + 1
                turn = (found + 1) % experts
    return served, moved
