"""Exchange choices between tokens.

Shape legend: T tokens, K choices, I pairs of tokens.
"""

import numpy as np

from moesim.compiled import compiled


def _exchange_arrays(one_IK, two_IK, shift, give, take):
    """Do what `exchange` does on whole arrays: no two pairs share a token."""
    partner_I = (np.arange(len(one_IK)) - shift) % max(len(one_IK), 1)
    two = two_IK[partner_I]
    mine, theirs = one_IK[:, give].copy(), two[:, take]
    free = ~((one_IK == theirs[:, None]) | (two == mine[:, None])).any(axis=1)
    one_IK[free, give] = theirs[free]
    two_IK[partner_I[free], take] = mine[free]


def _lay_out_arrays(order_E, counts_E, rows_T, top_k, out_TK):
    """Do what `lay_out` does on whole arrays."""
    out_TK[rows_T] = np.repeat(order_E, counts_E[order_E]).reshape(top_k, len(rows_T)).T


def _put_arrays(out_TK, place_I, column_M, chosen_IS, first):
    """Do what `put` does on whole arrays."""
    token_I, group_I = np.divmod(place_I, len(column_M))
    column_IS = column_M[group_I][:, None] + np.arange(chosen_IS.shape[1])
    out_TK[token_I[:, None], column_IS] = chosen_IS + first


@compiled(plain_s=lambda one_IK, *_: 1e-5 + 1e-8 * one_IK.size, plain=_exchange_arrays)
def exchange(one_IK, two_IK, shift, give, take):
    """Let token i of the first half and token i - shift of the second half exchange a choice,
    unless one of them would then have an expert twice.

    Args:
        one_IK: ndarray of shape (I, K), int32: choices of the first half, changed in place.
        two_IK: ndarray of shape (I, K), int32: choices of the second half, changed in place.
        shift: Distance of the tokens of a pair, from 0 to I - 1.
        give: Column of the choice in the first half.
        take: Column of the choice in the second half.
    """
    pairs, top_k = one_IK.shape
    for i in range(pairs):
        j = i - shift
        if j < 0:
            j += pairs
        mine, theirs = one_IK[i, give], two_IK[j, take]
        free = True
        for k in range(top_k):
            if one_IK[i, k] == theirs or two_IK[j, k] == mine:
                free = False
                break
        if free:
            one_IK[i, give] = theirs
            two_IK[j, take] = mine


@compiled(plain_s=lambda *given: 1e-8 * given[-1].size, plain=_lay_out_arrays)
def lay_out(order_E, counts_E, rows_T, top_k, out_TK):
    """Deal the experts in ``order_E``, each repeated by its count, to the tokens ``rows_T`` column
    by column.

    Args:
        order_E: ndarray of shape (E,): order of the experts.
        counts_E: ndarray of shape (E,), int64: counts that sum to T x K.
        rows_T: ndarray of shape (T,): row of ``out_TK`` that each position of a column is written
            to.
        top_k: Number of choices per token K.
        out_TK: ndarray of shape (T, K), int32: output, filled completely.
    """
    tokens = len(rows_T)
    place, column = 0, 0
    for e in order_E:
        for _ in range(counts_E[e]):
            out_TK[rows_T[place], column] = e
            place += 1
            if place == tokens:
                place, column = 0, column + 1


@compiled(
    plain_s=lambda _, __, ___, chosen_IS, ____: 1e-5 + 2e-8 * chosen_IS.size, plain=_put_arrays
)
def put(out_TK, place_I, column_M, chosen_IS, first):
    """Write the experts of one group into the tokens that chose it.

    Args:
        out_TK: ndarray of shape (T, K), int32: output, written for these tokens.
        place_I: ndarray of shape (I,): token x M + index of the group among the groups of the
            token.
        column_M: ndarray of shape (M,): first column of each group of a token.
        chosen_IS: ndarray of shape (I, S), int32: chosen experts, as indices within the group.
        first: Index of the first expert of the group.
    """
    slots = len(column_M)
    for i in range(len(place_I)):
        token, column = place_I[i] // slots, column_M[place_I[i] % slots]
        for k in range(chosen_IS.shape[1]):
            out_TK[token, column + k] = chosen_IS[i, k] + first
