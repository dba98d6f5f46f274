"""Grouped GEMM: every row is multiplied with its own expert's matrix.

The down projection reads rows in the plan's order; the gates read the tokens where they lie. Both write row p for pair
p = t x K + j, so whatever comes next finds a token's results side by side. C is the inner dimension here.
"""

import torch
from moesim_kernels.plan import Plan, program_tile
from moesim_kernels.runtime import dot_dtype, jit, limits, require_float, require_triton, store_dtype, tl, triton
from moesim_kernels.tiles import Tile, tile_bound, tile_config


@jit
def _linear_kernel(a_ptr, w_ptr, out_ptr, sorted_pairs_ptr, offsets_ptr, tile_expert_ptr, tile_row_ptr, max_tiles,
                   inner, width, TOP_K: tl.constexpr, GATHER: tl.constexpr, DOT: tl.constexpr, EVEN_K: tl.constexpr,
                   BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP_M: tl.constexpr):
    expert, rows, exists, pairs, block_n = program_tile(sorted_pairs_ptr, offsets_ptr, tile_expert_ptr, tile_row_ptr,
                                                        max_tiles, tl.cdiv(width, BLOCK_N), BLOCK_M, GROUP_M)
    if expert < 0:
        return
    n = block_n * BLOCK_N + tl.arange(0, BLOCK_N)
    k = tl.arange(0, BLOCK_K)
    source = pairs // TOP_K if GATHER else rows
    a_at = a_ptr + source.to(tl.int64)[:, None] * inner + k[None, :]
    w_at = w_ptr + (expert * width + n)[None, :] * inner + k[:, None]
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for start in range(0, inner, BLOCK_K):
        if EVEN_K:
            a_mask = exists[:, None]
            w_mask = (n < width)[None, :]
        else:
            a_mask = exists[:, None] & (k < inner - start)[None, :]
            w_mask = (n < width)[None, :] & (k < inner - start)[:, None]
        a = tl.load(a_at, mask=a_mask, other=0.0).to(DOT)
        total = tl.dot(a, tl.load(w_at, mask=w_mask, other=0.0).to(DOT), total, input_precision="ieee")
        a_at += BLOCK_K
        w_at += BLOCK_K
    out_at = out_ptr + pairs.to(tl.int64)[:, None] * width + n[None, :]
    tl.store(out_at, total.to(out_ptr.dtype.element_ty), mask=exists[:, None] & (n < width)[None, :])


def _check(a: torch.Tensor, w_ENC: torch.Tensor, plan: Plan, gather: bool) -> None:
    require_float("a", a)
    rows = plan.num_rows // plan.top_k if gather else plan.num_rows
    if a.ndim != 2 or w_ENC.ndim != 3 or w_ENC.shape[0] != plan.num_experts or w_ENC.shape[2] != a.shape[1]:
        raise ValueError(f"expected a of shape (rows, C) and w_ENC of shape (E = {plan.num_experts}, N, C), got "
                         f"{tuple(a.shape)} and {tuple(w_ENC.shape)}")
    if a.dtype != w_ENC.dtype:
        raise ValueError(f"w_ENC: expected {a.dtype} as a, got {w_ENC.dtype}")
    if a.shape[0] != rows:
        raise ValueError(f"a: expected {rows} rows as the plan, got {a.shape[0]}")


def grouped_linear(a: torch.Tensor, w_ENC: torch.Tensor, plan: Plan, *, gather: bool,
                   out_dtype: torch.dtype | None = None, config: Tile | None = None) -> torch.Tensor:
    """Multiply every row with its expert's matrix, accumulating in float32.

    Args:
        a: bfloat16, float16 or float32, contiguous; tokens of shape (T, C) if ``gather``, else rows in the plan's order
            of shape (P, C).
        w_ENC: Matrices in the same format, shape (E, N, C), contiguous.
        plan: Plan of the routing.
        gather: Whether row r's operand is the token of pair ``sorted_pairs[r]``.
        out_dtype: Format of the result; by default that of ``a``.
        config: Tile; by default from the mean load. Its block_m gives way to the plan's.

    Returns:
        Shape (P, N), row p for pair p.

    Raises:
        ValueError: Shapes or formats that do not fit each other.
        RuntimeError: No Triton to launch with.
    """
    _check(a, w_ENC, plan, gather)
    require_triton(a, w_ENC, plan.sorted_pairs)
    (_, width, inner), out_dtype = w_ENC.shape, out_dtype or a.dtype
    out_PN = torch.empty(plan.num_rows, width, dtype=store_dtype(out_dtype), device=a.device)
    if plan.num_rows:
        tile = config or tile_config(plan.num_rows / plan.num_experts, width, operand_bits=a.element_size() * 8,
                                     result_bits=out_dtype.itemsize * 8, block_m=plan.block_m, limits=limits())
        _linear_kernel[(plan.max_tiles * triton.cdiv(width, tile.block_n),)](
            a, w_ENC, out_PN, plan.sorted_pairs, plan.expert_offsets_E1, plan.tile_expert, plan.tile_row,
            plan.max_tiles, inner, width, TOP_K=plan.top_k, GATHER=gather, DOT=dot_dtype(a.dtype),
            EVEN_K=inner % tile.block_k == 0, BLOCK_M=plan.block_m, BLOCK_N=tile.block_n, BLOCK_K=tile.block_k,
            GROUP_M=tile.group_m, num_warps=tile.num_warps, num_stages=tile.num_stages)
    return out_PN.to(out_dtype)


def grouped_linear_reference(a: torch.Tensor, w_ENC: torch.Tensor, plan: Plan, *, gather: bool,
                             out_dtype: torch.dtype | None = None) -> torch.Tensor:
    """`grouped_linear` in torch: float32 products of the stored numbers, expert by expert, rounded once."""
    _check(a, w_ENC, plan, gather)
    pairs = plan.sorted_pairs.long()
    rows = (a[pairs // plan.top_k] if gather else a).float()
    parts = [r @ w.float().T for r, w in zip(rows.split(plan.expert_offsets_E1.diff().tolist()), w_ENC, strict=True)]
    out_PN = torch.empty(plan.num_rows, w_ENC.shape[1], device=a.device)
    out_PN[pairs] = torch.cat(parts)
    return out_PN.to(out_dtype or a.dtype)


def dense_plan(num_rows: int, block_m: int, device: torch.device) -> Plan:
    """The plan of a plain GEMM: one expert that every row goes to, in order."""
    max_tiles = tile_bound(num_rows, 1, block_m)
    rows = torch.arange(num_rows, dtype=torch.int32, device=device)
    tiles = torch.arange(max_tiles, dtype=torch.int32, device=device)
    offsets_E1 = torch.arange(2, dtype=torch.int32, device=device) * num_rows
    return Plan(sorted_pairs=rows, expert_offsets_E1=offsets_E1, tile_expert=torch.zeros_like(tiles),
                tile_row=tiles * block_m, num_tiles=torch.full_like(offsets_E1[:1], max_tiles), block_m=block_m,
                top_k=1)


def gate_logits(x_TH: torch.Tensor, keys_EH: torch.Tensor) -> torch.Tensor:
    """Logits x K^T of a flat gate in float32, operands in their own format.

    Args:
        x_TH: Tokens of shape (T, H), contiguous.
        keys_EH: Keys in the same format, shape (E, H), contiguous.

    Returns:
        float32 of shape (T, E).

    Raises:
        ValueError: Shapes or formats that do not fit each other.
        RuntimeError: No Triton to launch with.
    """
    block_m = tile_config(x_TH.shape[0], keys_EH.shape[0]).block_m
    plan = dense_plan(x_TH.shape[0], block_m, x_TH.device)
    return grouped_linear(x_TH, keys_EH[None], plan, gather=True, out_dtype=torch.float32)
