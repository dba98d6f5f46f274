"""Choose the best k of E experts from 2 sqrt(E) scores: the product-key gate (Lample et al. 2019,
arXiv 1907.05242).

    query = x @ query_QH.T, split into two halves for each head
    rows = top_k(first half . row keys);  columns = top_k(second half . column keys)
    sums[i, j] = row score i + column score j                   # k^2 instead of E sums
    ids, weights = top_k(sums), softmax over a head's choices / number of heads

Expert i x S + j of S x S scores the sum of row key i with the first half of a query and column key
j with the second half. The best k experts lie in the best k rows and the best k columns, so k^2
sums are enough. Each of several heads has its own query and finds an equal share of a token's
experts with the same keys (PEER, He 2024, arXiv 2407.04153); two heads may find the same expert.

Rules: queries and scores are float32; NaN, infinities, and ties follow `moesim_kernels.ops.router`
in both steps (lowest expert first). The weights of a head are the softmax over the experts it
finds, divided by the number of heads.
"""

import torch
from moesim_kernels.ops.grouped_linear import gate_logits
from moesim_kernels.ops.router import UNCHECKED, route, route_reference


def _check(
    x_TH: torch.Tensor, query_QH: torch.Tensor, keys_2Sq: torch.Tensor, heads: int, top_k: int
) -> None:
    if x_TH.ndim != 2 or query_QH.ndim != 2 or x_TH.shape[1] != query_QH.shape[1]:
        raise ValueError(
            f"expected x_TH and query_QH of one hidden size, got shapes {tuple(x_TH.shape)} and "
            f"{tuple(query_QH.shape)}"
        )
    if keys_2Sq.ndim != 3 or keys_2Sq.shape[0] != 2 or keys_2Sq.shape[1] < 1:
        raise ValueError(
            f"keys_2Sq: expected shape (2, S >= 1, query_size / 2), got {tuple(keys_2Sq.shape)}"
        )
    if heads < 1 or query_QH.shape[0] != heads * 2 * keys_2Sq.shape[2]:
        raise ValueError(
            f"query_QH: expected {heads} heads x {2 * keys_2Sq.shape[2]} rows, got "
            f"{query_QH.shape[0]}"
        )
    # A head cannot find more experts than there are pairs of its row and column keys.
    if top_k < 1 or top_k % heads or top_k // heads > keys_2Sq.shape[1] ** 2:
        raise ValueError(
            f"top_k: expected a multiple of {heads} heads, each finding at most "
            f"{keys_2Sq.shape[1] ** 2}, got {top_k}"
        )


def product_key_gate(
    x_TH: torch.Tensor, query_QH: torch.Tensor, keys_2Sq: torch.Tensor, heads: int, top_k: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Choose experts by their row and column keys.

    Args:
        x_TH: Tokens, bfloat16, float16 or float32 of shape (T, H), contiguous.
        query_QH: Projection to the queries of all heads in the same format, shape (heads x
            query_size, H), contiguous.
        keys_2Sq: Row keys and column keys, shape (2, S, query_size / 2).
        heads: Number of queries of each token.
        top_k: Number of experts each token uses, a multiple of the heads.

    Returns:
        Weights, float32 of shape (T, K), summing to 1; expert ids, int32 of shape (T, K), head by
        head.

    Raises:
        ValueError: Shapes or numbers do not fit each other, or there are more than 16,384 padded
            keys or pairs.
        RuntimeError: Triton cannot launch kernels here.
    """
    _check(x_TH, query_QH, keys_2Sq, heads, top_k)
    rows, keys, found = len(x_TH) * heads, keys_2Sq.shape[1], top_k // heads
    halves_R2q = gate_logits(x_TH, query_QH).view(rows, 2, keys_2Sq.shape[2])
    # Row and column scores are stacked, so that one router call chooses in both.
    logits_2RS = torch.cat(
        [
            gate_logits(halves_R2q[:, i].contiguous(), keys_2Sq[i].float().contiguous())
            for i in range(2)
        ]
    )
    best = min(found, keys)
    # Ascending rows and columns make the pairs below ascend with the expert id, which settles ties.
    at_2Rk = route(logits_2RS, best, options=UNCHECKED)[1].long().sort(dim=1).values
    scores_2Rk = logits_2RS.gather(1, at_2Rk)
    sums_RP = (scores_2Rk[:rows, :, None] + scores_2Rk[rows:, None, :]).flatten(1).contiguous()
    # Softmax over the sums of the chosen pairs alone: no other expert is ever scored.
    weights_RK, pair_RK = route(sums_RP, found, options=UNCHECKED)
    ids_RP = (at_2Rk[:rows, :, None] * keys + at_2Rk[rows:, None, :]).flatten(1)
    ids_RK = ids_RP.gather(1, pair_RK.long()).int()
    return (weights_RK / heads).view(-1, top_k), ids_RK.view(-1, top_k)


def product_key_gate_reference(
    x_TH: torch.Tensor, query_QH: torch.Tensor, keys_2Sq: torch.Tensor, heads: int, top_k: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute `product_key_gate` in torch, by scoring every expert."""
    _check(x_TH, query_QH, keys_2Sq, heads, top_k)
    halves_R2q = (x_TH.float() @ query_QH.float().T).view(len(x_TH) * heads, 2, keys_2Sq.shape[2])
    row_RS, column_RS = (halves_R2q[:, i] @ keys_2Sq[i].float().T for i in range(2))
    weights_RK, ids_RK = route_reference(
        (row_RS[:, :, None] + column_RS[:, None, :]).flatten(1), top_k // heads, options=UNCHECKED
    )
    return (weights_RK / heads).view(-1, top_k), ids_RK.view(-1, top_k)
