"""Choices that meet given loads exactly: every token gets top_k different experts.

Choices are drawn by systematic sampling (Madow 1949): experts in random order, each repeated load
times, form a line of T * k places; token t takes the places t, t + T, t + 2T, ... Since no load
exceeds T, no token meets an expert twice, and the loads hold exactly. Exchanges between tokens then
make it chance which experts meet in one. A gate that limits a token to some groups is sampled in
two stages the same way: first which groups, then which experts inside them. Its loads are those of
the distribution as far as the limit allows: a group is never used by more than T tokens.

Shape legend: T tokens, K choices, E experts, G groups, P experts of a group, M groups of a token.
"""

from itertools import pairwise

import numpy as np

from moesim.model.gate import Gate
from moesim.routing.apportion import apportion

#: exchanges per choice and token
_SWEEPS = 3


def systematic(counts_E: np.ndarray, num_tokens: int, rng: np.random.Generator) -> np.ndarray:
    """Choices with these counts.

    Args:
        counts_E: ndarray of shape (E,): none above ``num_tokens``, sums to a multiple k of it.
        num_tokens: T.
        rng: Source of randomness.

    Returns:
        ndarray of shape (T, k), int32: no expert twice a token.
    """
    from moesim.routing.swaps import lay_out

    order = rng.permutation(len(counts_E))
    top_k = int(counts_E.sum()) // num_tokens
    # token rows_T[t] of the result is place t of the line: a random order of tokens
    rows_T = np.empty(num_tokens, dtype=np.int64)
    rows_T[rng.permutation(num_tokens)] = np.arange(num_tokens)
    ids_TK = np.empty((num_tokens, top_k), dtype=np.int32)
    lay_out(order, np.asarray(counts_E, dtype=np.int64), rows_T, top_k, ids_TK)
    return _mix(ids_TK, rng)


def _mix(ids_TK: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Let chance decide which experts meet in a token: pairs of tokens exchange a choice where
    neither meets it twice.

    Exchanges keep every load and every token's number of choices (the swap chain on bipartite
    graphs with given degrees; Rao, Jana and Bandyopadhyay 1996). Without it equal loads leave only
    E / k different sets of experts.
    """
    from moesim.routing.swaps import exchange

    tokens, top_k = ids_TK.shape
    half = tokens // 2
    one, two = ids_TK[:half], ids_TK[tokens - half :]
    shift = 0
    for sweep in range(_SWEEPS * top_k):
        # the first half meets the second at a random distance: every pair may meet, and rows stay
        # in memory order
        if half > 1:
            shift = (shift + int(rng.integers(1, half))) % half
        exchange(one, two, shift, sweep % top_k, int(rng.integers(top_k)))
    two[:] = np.roll(two, shift, axis=0)
    return ids_TK[rng.permutation(tokens)]


def limited(
    loads_E: np.ndarray,
    left_E: np.ndarray,
    top_k: int,
    num_tokens: int,
    gate: Gate,
    rng: np.random.Generator,
) -> np.ndarray:
    """Choices of tokens that may use some groups only: ndarray of shape (T, K), int32.

    Args:
        loads_E: ndarray of shape (E,): what the distribution would have.
        left_E: ndarray of shape (E,), bool: experts that are not pruned.
        top_k: K.
        num_tokens: T.
        gate: Groups.
        rng: Source of randomness.
    """
    from moesim.routing.swaps import put

    groups, kept = gate.num_expert_groups, min(gate.num_limited_groups, top_k)
    loads_GP, left_GP = loads_E.reshape(groups, -1), left_E.reshape(groups, -1)
    per_group = loads_GP.shape[1]
    slots_G = _apportion_left(
        loads_GP.sum(axis=1), np.asarray(left_GP.any(axis=1)), num_tokens * kept, num_tokens
    )
    # in random order, since the first groups of a token may give it one expert more than the last
    group_ids_TM = rng.permuted(systematic(slots_G, num_tokens, rng), axis=1)
    ids_TK = np.empty((num_tokens, top_k), dtype=np.int32)
    # a token takes top_k // kept experts of each of its groups, and one more of its first groups
    share = [top_k // kept + (m < top_k % kept) for m in range(kept)]
    column = np.concatenate([[0], np.cumsum(share)])
    for size in set(share):
        slots = np.array([m for m in range(kept) if share[m] == size])
        group_X = group_ids_TM[:, slots].ravel()
        # 16-bit keys are sorted by radix, several times faster
        by_group_X = np.argsort(
            group_X.astype(np.uint16) if groups <= 1 << 16 else group_X, kind="stable"
        )
        ends = np.cumsum(np.bincount(group_X, minlength=groups))
        for g, (begin, end) in enumerate(pairwise([0, *ends.tolist()])):
            if begin == end:
                continue
            counts_P = _apportion_left(loads_GP[g], left_GP[g], (end - begin) * size, end - begin)
            chosen = systematic(counts_P, end - begin, rng)
            put(ids_TK, by_group_X[begin:end], column[slots], chosen, g * per_group)
    return ids_TK


def _apportion_left(load_X: np.ndarray, left_X: np.ndarray, total: int, cap: int) -> np.ndarray:
    """`apportion` among those that are left."""
    counts = np.zeros(len(load_X), dtype=np.int64)
    counts[left_X] = apportion(load_X[left_X] + 1e-9, total, cap)
    return counts
