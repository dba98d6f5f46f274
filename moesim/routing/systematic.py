"""Draw choices that meet given loads exactly: every token gets top_k different experts.

Choices are drawn by systematic sampling (Madow 1949): experts in random order, each repeated as
often as its load, form a line of T * k positions, and token t takes the positions t, t + T, t +
2T, ... Since no load exceeds T, no token gets an expert twice, and the loads hold exactly.
Exchanges between tokens then randomize which experts occur together in a token. A gate that limits
a token to some groups is sampled in two stages in the same way: first the groups, then the experts
inside them. Its loads are those of the distribution as far as the limit allows: no group is used by
more than T tokens.

Shape legend: T tokens, K choices, E experts, G groups, P experts per group, M groups per token.
"""

from itertools import pairwise

import numpy as np

from moesim.model.gate import Gate
from moesim.routing.apportion import apportion
from moesim.routing.swaps import exchange, lay_out, put

#: number of exchanges per choice and token
_SWEEPS = 3


def systematic(counts_E: np.ndarray, num_tokens: int, rng: np.random.Generator) -> np.ndarray:
    """Draw choices with the given counts.

    Args:
        counts_E: ndarray of shape (E,): counts, none above ``num_tokens``, that sum to a multiple k
            of it.
        num_tokens: Number of tokens T.
        rng: Source of randomness.

    Returns:
        ndarray of shape (T, k), int32: choices, with no expert twice in a token.
    """
    order = rng.permutation(len(counts_E))
    top_k = int(counts_E.sum()) // num_tokens
    # rows_T is a random order of tokens: position t of the line belongs to token rows_T[t] of the
    # result
    rows_T = np.empty(num_tokens, dtype=np.int64)
    rows_T[rng.permutation(num_tokens)] = np.arange(num_tokens)
    ids_TK = np.empty((num_tokens, top_k), dtype=np.int32)
    lay_out(order, np.asarray(counts_E, dtype=np.int64), rows_T, top_k, ids_TK)
    return _mix(ids_TK, rng)


def _mix(ids_TK: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Randomize which experts occur together: pairs of tokens exchange a choice unless one of them
    would have an expert twice.

    Exchanges keep every load and the number of choices of every token (the swap chain on bipartite
    graphs with given degrees; Rao, Jana and Bandyopadhyay 1996). Without them, equal loads would
    leave only E / k different sets of experts.
    """
    tokens, top_k = ids_TK.shape
    half = tokens // 2
    one, two = ids_TK[:half], ids_TK[tokens - half :]
    shift = 0
    for sweep in range(_SWEEPS * top_k):
        # tokens of the first half meet tokens of the second at a random distance: every pair may
        # meet, and rows stay in memory order
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
    """Draw the choices of tokens that may use only some groups: ndarray of shape (T, K), int32.

    Args:
        loads_E: ndarray of shape (E,): loads of the distribution without the limit.
        left_E: ndarray of shape (E,), bool: whether an expert is not pruned.
        top_k: Number of choices per token K.
        num_tokens: Number of tokens T.
        gate: The gate whose groups limit the choices.
        rng: Source of randomness.
    """
    groups, kept = gate.num_expert_groups, min(gate.num_limited_groups, top_k)
    loads_GP, left_GP = loads_E.reshape(groups, -1), left_E.reshape(groups, -1)
    per_group = loads_GP.shape[1]
    slots_G = _apportion_left(
        loads_GP.sum(axis=1), np.asarray(left_GP.any(axis=1)), num_tokens * kept, num_tokens
    )
    # in random order, since the first groups of a token may give one expert more than the last ones
    group_ids_TM = rng.permuted(systematic(slots_G, num_tokens, rng), axis=1)
    ids_TK = np.empty((num_tokens, top_k), dtype=np.int32)
    # a token takes top_k // kept experts from each of its groups, and one more from its first
    # groups
    share = [top_k // kept + (m < top_k % kept) for m in range(kept)]
    column = np.concatenate([[0], np.cumsum(share)])
    for size in set(share):
        slots = np.array([m for m in range(kept) if share[m] == size])
        group_X = group_ids_TM[:, slots].ravel()
        # numpy sorts 16-bit keys by radix, which is several times faster
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
    """Run `apportion` among the experts or groups that are not pruned."""
    counts = np.zeros(len(load_X), dtype=np.int64)
    counts[left_X] = apportion(load_X[left_X] + 1e-9, total, cap)
    return counts
