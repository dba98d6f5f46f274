"""Choose the best k of E experts from 2 sqrt(E) scores: the product-key gate (Lample et al. 2019,
arXiv 1907.05242).

    queries = x @ query_QH.T, in parts (`moesim_kernels.ops.gate_logits`)
    for each token and head: logits[side, s] = half of the query[side] . keys[side, s]
        rows, columns = the best k of each side, by id (`moesim_kernels.ops.router`)
        sums[i, j] = row logit i + column logit j                   # k^2 instead of E sums
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
from moesim_kernels.ops.chain import await_inputs
from moesim_kernels.ops.gate_logits import gate_parts
from moesim_kernels.ops.launches import launch
from moesim_kernels.ops.router import route_parts, route_reference
from moesim_kernels.ops.router_kernel import key_logit, order_key, score_of
from moesim_kernels.ops.router_options import UNCHECKED
from moesim_kernels.ops.runtime import cdiv, jit, next_power_of_2, require_triton, tile_rows, tl
from moesim_kernels.ops.watch import LOGITS, note

#: rows, keys and depth that a program multiplies at once, and its warps
BLOCK_R, BLOCK_S, BLOCK_K, WARPS = 32, 32, 32, 4
#: sums of a row and a column that a program takes without spilling
MOST_SUMS = 2**14


@jit
def _half_logits_kernel(
    queries_ptr,
    keys_ptr,
    logits_ptr,
    num_rows,
    num_queries,
    num_keys,
    inner,
    PARTS: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PDL: tl.constexpr,
):
    await_inputs(PDL)
    side = tl.program_id(1).to(tl.int64)
    blocks_s = tl.cdiv(num_keys, BLOCK_S)
    first_r = (tl.program_id(0) // blocks_s).to(tl.int64) * BLOCK_R
    first_s = (tl.program_id(0) % blocks_s).to(tl.int64) * BLOCK_S
    r = tl.arange(0, BLOCK_R)
    s = tl.arange(0, BLOCK_S)
    k = tl.arange(0, BLOCK_K)
    row_exists = r < num_rows - first_r
    key_exists = s < num_keys - first_s
    # Row r is a token's head: its halves lie side by side in the token's queries. Inside a tile
    # offsets are 32-bit numbers, of which registers hold twice as many as of addresses.
    query_at = queries_ptr + (first_r * 2 + side) * inner + (r[:, None] * (2 * inner) + k[None, :])
    keys_at = keys_ptr + (side * num_keys + first_s) * inner + (s[None, :] * inner + k[:, None])
    total = tl.zeros((BLOCK_R, BLOCK_S), tl.float32)
    for start in range(0, inner, BLOCK_K):
        inside = k < inner - start
        mask = row_exists[:, None] & inside[None, :]
        query = tl.load(query_at + start, mask=mask, other=0.0)
        # Queries come in parts, added up in their order.
        for part in tl.static_range(1, PARTS):
            query += tl.load(
                query_at + (start + part * num_queries.to(tl.int64)), mask=mask, other=0.0
            )
        keys = tl.load(keys_at + start, mask=key_exists[None, :] & inside[:, None], other=0.0).to(
            tl.float32
        )
        total = tl.dot(query, keys, total, input_precision="ieee")
    out_at = (
        logits_ptr
        + (side * num_rows + first_r) * num_keys
        + first_s
        + (r[:, None] * num_keys + s[None, :])
    )
    tl.store(out_at, total, mask=row_exists[:, None] & key_exists[None, :])


@jit
def _pair_kernel(
    logits_ptr,
    at_ptr,
    weights_ptr,
    ids_ptr,
    watch_ptr,
    num_rows,
    num_keys,
    heads,
    BEST: tl.constexpr,
    FOUND: tl.constexpr,
    WATCHED: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_F: tl.constexpr,
    PDL: tl.constexpr,
):
    await_inputs(PDL)
    int_min: tl.constexpr = -2147483648
    r = tl.program_id(0).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    b = tl.arange(0, BLOCK_B)[None, :]
    exists = (r < num_rows)[:, None] & (b < BEST)
    row = tl.load(at_ptr + r[:, None] * BEST + b, mask=exists, other=0)
    column = tl.load(at_ptr + (num_rows + r)[:, None] * BEST + b, mask=exists, other=0)
    row_logit = tl.load(logits_ptr + r[:, None] * num_keys + row, mask=exists, other=0.0)
    column_logit = tl.load(
        logits_ptr + (num_rows + r)[:, None] * num_keys + column, mask=exists, other=0.0
    )
    if WATCHED:
        finite = tl.maximum(tl.abs(row_logit), tl.abs(column_logit)) < float("inf")
        # A maximum may ignore NaN, a comparison with itself does not.
        finite = finite & (row_logit == row_logit) & (column_logit == column_logit)
        note(watch_ptr, LOGITS, exists & (finite == 0), (r // heads)[:, None])
    # Rows and columns ascend, so pairs of a row and a column ascend with the expert's id.
    sums = tl.reshape(
        row_logit[:, :, None] + column_logit[:, None, :], (BLOCK_R, BLOCK_B * BLOCK_B)
    )
    experts = tl.reshape(
        row[:, :, None] * num_keys + column[:, None, :], (BLOCK_R, BLOCK_B * BLOCK_B)
    )
    pairs = tl.reshape(exists[:, :, None] & exists[:, None, :], (BLOCK_R, BLOCK_B * BLOCK_B))
    keys = tl.where(pairs, order_key(sums), int_min)
    slot = tl.arange(0, BLOCK_F)[None, :]
    chosen_key = tl.full((BLOCK_R, BLOCK_F), int_min, tl.int32)
    chosen_id = tl.zeros((BLOCK_R, BLOCK_F), tl.int32)
    for f in range(FOUND):
        top = tl.max(keys, axis=1)[:, None]
        # Of equal sums the lowest expert; sums already taken have a key that no pair has.
        expert = tl.min(tl.where((keys == top) & pairs, experts, 2147483647), axis=1)[:, None]
        chosen_key = tl.where(slot == f, top, chosen_key)
        chosen_id = tl.where(slot == f, expert, chosen_id)
        keys = tl.where(experts == expert, int_min, keys)
    best_logit = key_logit(tl.max(chosen_key, axis=1))[:, None]
    score = tl.where(slot < FOUND, score_of(key_logit(chosen_key), best_logit, False), 0.0)
    total = tl.sum(score, axis=1)[:, None]
    weights = tl.where(total > 0.0, score / total, 1.0 / FOUND) / heads
    writes = (r < num_rows)[:, None] & (slot < FOUND)
    tl.store(weights_ptr + r[:, None] * FOUND + slot, weights, mask=writes)
    tl.store(ids_ptr + r[:, None] * FOUND + slot, chosen_id, mask=writes)


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
    x_TH: torch.Tensor,
    query_QH: torch.Tensor,
    keys_2Sq: torch.Tensor,
    heads: int,
    top_k: int,
    watch: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Choose experts by their row and column keys.

    Args:
        x_TH: Tokens, bfloat16, float16 or float32 of shape (T, H), contiguous.
        query_QH: Projection to the queries of all heads in the same format, shape (heads x
            query_size, H), contiguous.
        keys_2Sq: Row keys and column keys, shape (2, S, query_size / 2).
        heads: Number of queries of each token.
        top_k: Number of experts each token uses, a multiple of the heads.
        watch: Memory where the first token whose best logits are not finite is noted
            (`moesim_kernels.ops.watch`); None for no watch.

    Returns:
        Weights, float32 of shape (T, K), summing to 1; expert ids, int32 of shape (T, K), head by
        head.

    Raises:
        ValueError: Shapes or numbers do not fit each other, or there are more than 16,384 padded
            keys or pairs.
        RuntimeError: Triton cannot launch kernels here.
    """
    _check(x_TH, query_QH, keys_2Sq, heads, top_k)
    require_triton(x_TH, query_QH, keys_2Sq)
    rows, (_, keys, depth), found = len(x_TH) * heads, keys_2Sq.shape, top_k // heads
    best = min(found, keys)
    block_b = next_power_of_2(best)
    if block_b**2 > MOST_SUMS:
        raise ValueError(
            f"top_k: expected at most {MOST_SUMS} padded pairs of a head, got {block_b**2}"
        )
    weights_RK = torch.empty(rows, found, dtype=torch.float32, device=x_TH.device)
    ids_RK = torch.empty(rows, found, dtype=torch.int32, device=x_TH.device)
    if rows:
        queries_STQ = gate_parts(x_TH, query_QH)
        logits_2RS = torch.empty(1, 2 * rows, keys, dtype=torch.float32, device=x_TH.device)
        blocks = cdiv(rows, BLOCK_R) * cdiv(keys, BLOCK_S)
        launch(
            _half_logits_kernel,
            (blocks, 2),
            queries_STQ,
            keys_2Sq,
            logits_2RS,
            rows,
            rows * 2 * depth,
            keys,
            depth,
            PARTS=len(queries_STQ),
            BLOCK_R=BLOCK_R,
            BLOCK_S=BLOCK_S,
            BLOCK_K=BLOCK_K,
            num_warps=WARPS,
        )
        # Listed by id, which settles ties of the sums below.
        at_2Rk = route_parts(logits_2RS, best, options=UNCHECKED, ascending=True)[1]
        block_r = tile_rows(rows, 2 * block_b**2)
        launch(
            _pair_kernel,
            (cdiv(rows, block_r),),
            logits_2RS,
            at_2Rk,
            weights_RK,
            ids_RK,
            watch,
            rows,
            keys,
            heads,
            BEST=best,
            FOUND=found,
            WATCHED=watch is not None,
            BLOCK_R=block_r,
            BLOCK_B=block_b,
            BLOCK_F=next_power_of_2(found),
        )
    return weights_RK.view(-1, top_k), ids_RK.view(-1, top_k)


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
