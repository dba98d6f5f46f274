"""Exchanges of choices between tokens, compiled; loaded when routing is drawn, since it brings
numba.

Shape legend: T tokens, K choices, I pairs of tokens.
"""

from numba import njit


@njit(cache=True)
def exchange(one_IK, two_IK, shift, give, take):
    """Token i of the first half and token i - shift of the second exchange a choice where neither
    then has it twice.

    Args:
        one_IK: ndarray of shape (I, K), int32; changed in place.
        two_IK: Likewise.
        shift: Distance, 0 to I - 1.
        give: Column of the first half.
        take: Column of the second.
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


@njit(cache=True)
def lay_out(order_E, counts_E, rows_T, top_k, out_TK):
    """Experts in ``order_E``, each repeated by its count, dealt to the tokens ``rows_T`` column by
    column.

    Args:
        order_E: ndarray of shape (E,): order of the experts.
        counts_E: ndarray of shape (E,), int64; sums to T x K.
        rows_T: ndarray of shape (T,): row of ``out_TK`` that each place of a column is written to.
        top_k: K.
        out_TK: ndarray of shape (T, K), int32; filled.
    """
    tokens = len(rows_T)
    place, column = 0, 0
    for e in order_E:
        for _ in range(counts_E[e]):
            out_TK[rows_T[place], column] = e
            place += 1
            if place == tokens:
                place, column = 0, column + 1


@njit(cache=True)
def put(out_TK, place_I, column_M, chosen_IS, first):
    """Write the experts of one group into the tokens that chose it.

    Args:
        out_TK: ndarray of shape (T, K), int32; written.
        place_I: ndarray of shape (I,): token x M + which of the token's groups.
        column_M: ndarray of shape (M,): first column of each of a token's groups.
        chosen_IS: ndarray of shape (I, S), int32: experts of the group.
        first: Number of its first expert.
    """
    slots = len(column_M)
    for i in range(len(place_I)):
        token, column = place_I[i] // slots, column_M[place_I[i] % slots]
        for k in range(chosen_IS.shape[1]):
            out_TK[token, column + k] = chosen_IS[i, k] + first
