"""Multiply every row by its own expert's matrix: the grouped GEMM.

    for each tile (expert e, rows r) and column block n:       # one program each
        a = rows r of ``a`` in plan order, or tokens gathered by pair
        acc = a @ w_ENC[e, n].T                                # float32
        out_PN[pairs r, n] = acc

The down projection reads rows in the plan's order; the gates read the tokens where they are stored.
Both write row p for pair p = t x K + j, so the next kernel finds the results of a token side by
side. C is the inner dimension here.
"""

import torch
from moesim_kernels.ops.operands import (
    BlockScaled,
    Operand,
    check_operands,
    float_matrices,
    float_rows,
    require_product,
    result_dtype,
    scales,
    tensors,
    values,
)
from moesim_kernels.ops.persistent import Path, chosen_path, persistent_linear
from moesim_kernels.ops.plan import Plan
from moesim_kernels.ops.plan_kernels import work_tile
from moesim_kernels.ops.runtime import (
    dot_dtype,
    jit,
    limits,
    require_triton,
    store_dtype,
    tl,
    triton,
)
from moesim_kernels.tiles.tiles import Tile, tile_bound, tile_config


@jit
def _linear_kernel(
    a_ptr,
    a_scales_ptr,
    w_ptr,
    w_scales_ptr,
    out_ptr,
    sorted_pairs_ptr,
    offsets_ptr,
    tile_expert_ptr,
    tile_row_ptr,
    max_tiles,
    inner,
    width,
    TOP_K: tl.constexpr,
    GATHER: tl.constexpr,
    DOT: tl.constexpr,
    SCALED: tl.constexpr,
    EVEN_K: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP_M: tl.constexpr,
):
    expert, rows, exists, pairs, block_n = work_tile(
        tl.program_id(0),
        sorted_pairs_ptr,
        offsets_ptr,
        tile_expert_ptr,
        tile_row_ptr,
        max_tiles,
        tl.cdiv(width, BLOCK_N),
        BLOCK_M,
        GROUP_M,
    )
    # The grid covers the bound on tiles; programs past the last tile have nothing to do.
    if expert < 0:
        return
    n = block_n * BLOCK_N + tl.arange(0, BLOCK_N)
    k = tl.arange(0, BLOCK_K)
    # Rows to gather are tokens; other rows already lie in the plan's order.
    source = pairs // TOP_K if GATHER else rows
    a_at = a_ptr + source.to(tl.int64)[:, None] * inner + k[None, :]
    w_at = w_ptr + (expert * width + n)[None, :] * inner + k[:, None]
    if SCALED:
        blocks_k = tl.cdiv(inner, 128)
        a_scale_at = a_scales_ptr + source.to(tl.int64) * blocks_k
        w_scale_at = (
            w_scales_ptr + (expert * tl.cdiv(width, 128) + block_n * BLOCK_N // 128) * blocks_k
        )
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for start in range(0, inner, BLOCK_K):
        # Masks along the depth cost registers, so they are left out where blocks divide it.
        if EVEN_K:
            a_mask = exists[:, None]
            w_mask = (n < width)[None, :]
        else:
            a_mask = exists[:, None] & (k < inner - start)[None, :]
            w_mask = (n < width)[None, :] & (k < inner - start)[:, None]
        a = tl.load(a_at, mask=a_mask, other=0.0).to(DOT)
        w = tl.load(w_at, mask=w_mask, other=0.0).to(DOT)
        if SCALED:
            # A step lies inside one block of scales, so scaling its product once is exact.
            a_scale = tl.load(a_scale_at + start // 128, mask=exists, other=0.0)[:, None]
            total += tl.dot(a, w) * (a_scale * tl.load(w_scale_at + start // 128))
        else:
            # "ieee" keeps float32 operands from being rounded to TF32.
            total = tl.dot(a, w, total, input_precision="ieee")
        a_at += BLOCK_K
        w_at += BLOCK_K
    # Stored by pair and not by row: the next step reads a token's pairs side by side.
    out_at = out_ptr + pairs.to(tl.int64)[:, None] * width + n[None, :]
    tl.store(
        out_at, total.to(out_ptr.dtype.element_ty), mask=exists[:, None] & (n < width)[None, :]
    )


def _check(a: Operand, w_ENC: Operand, plan: Plan, gather: bool) -> None:
    check_operands("a", a, "w_ENC", w_ENC)
    # Gathered operands have one row per token, others one per pair.
    rows = plan.num_rows // plan.top_k if gather else plan.num_rows
    shape, w_shape = tuple(values(a).shape), tuple(values(w_ENC).shape)
    if (
        len(shape) != 2
        or len(w_shape) != 3
        or w_shape[0] != plan.num_experts
        or w_shape[2] != shape[1]
    ):
        raise ValueError(
            f"expected a of shape (rows, C) and w_ENC of shape (E = {plan.num_experts}, N, C), got "
            f"{shape} and {w_shape}"
        )
    if shape[0] != rows:
        raise ValueError(f"a: expected {rows} rows as the plan, got {shape[0]}")


def grouped_linear(
    a: Operand,
    w_ENC: Operand,
    plan: Plan,
    *,
    gather: bool,
    out_dtype: torch.dtype | None = None,
    config: Tile | None = None,
    path: Path | None = None,
) -> torch.Tensor:
    """Multiply every row by its expert's matrix, accumulating in float32.

    Args:
        a: Rows, bfloat16, float16, or float32, contiguous, or `BlockScaled` by rows; tokens of
            shape (T, C) if ``gather``, otherwise rows in the plan's order of shape (P, C).
        w_ENC: Matrices in the same format, shape (E, N, C), contiguous, or `BlockScaled`.
        plan: Plan for this routing.
        gather: Whether row r's operand is the token of pair ``sorted_pairs[r]``.
        out_dtype: Format of the result; by default the format of ``a``, or bfloat16 for scaled
            operands.
        config: Tile; by default chosen from the mean load. The plan's block_m replaces its own;
            block_k must divide 128 for scaled operands.
        path: "pointers" or "descriptors" (see `moesim_kernels.ops.persistent`); gathered rows
            always use pointers. By default the path that suits this GPU.

    Returns:
        A tensor of shape (P, N), with row p for pair p.

    Raises:
        ValueError: Shapes or formats do not fit each other, or this GPU does not multiply the
            format.
        RuntimeError: Triton cannot launch kernels here.
    """
    _check(a, w_ENC, plan, gather)
    require_triton(*tensors(a, w_ENC), plan.sorted_pairs)
    rows, w, out_dtype = values(a), values(w_ENC), out_dtype or result_dtype(a)
    _, width, inner = w.shape
    out_PN = torch.empty(plan.num_rows, width, dtype=store_dtype(out_dtype), device=rows.device)
    if out_PN.numel():
        tile = config or tile_config(
            plan.num_rows / plan.num_experts,
            width,
            operand_bits=rows.element_size() * 8,
            result_bits=out_dtype.itemsize * 8,
            block_m=plan.block_m,
            limits=limits(),
        )
        require_product(a, tile)
        # The persistent kernel reads rows side by side only.
        if not gather and chosen_path(path, a, w_ENC) == "descriptors":
            persistent_linear(a, w_ENC, out_PN, plan, tile)
            return out_PN.to(out_dtype)
        # The number of tiles is on the device; the grid is sized by its bound.
        _linear_kernel[(plan.max_tiles * triton.cdiv(width, tile.block_n),)](
            rows,
            scales(a),
            w,
            scales(w_ENC),
            out_PN,
            plan.sorted_pairs,
            plan.expert_offsets_E1,
            plan.tile_expert,
            plan.tile_row,
            plan.max_tiles,
            inner,
            width,
            TOP_K=plan.top_k,
            GATHER=gather,
            DOT=dot_dtype(rows.dtype),
            SCALED=isinstance(a, BlockScaled),
            EVEN_K=inner % tile.block_k == 0,
            BLOCK_M=plan.block_m,
            BLOCK_N=tile.block_n,
            BLOCK_K=tile.block_k,
            GROUP_M=tile.group_m,
            num_warps=tile.num_warps,
            num_stages=tile.num_stages,
        )
    return out_PN.to(out_dtype)


def grouped_linear_reference(
    a: Operand, w_ENC: Operand, plan: Plan, *, gather: bool, out_dtype: torch.dtype | None = None
) -> torch.Tensor:
    """Compute `grouped_linear` in torch: float32 products of the stored numbers, expert by expert,
    rounded once.
    """
    _check(a, w_ENC, plan, gather)
    pairs, rows = plan.sorted_pairs.long(), float_rows(a)
    parts = zip(
        (rows[pairs // plan.top_k] if gather else rows).split(
            plan.expert_offsets_E1.diff().tolist()
        ),
        float_matrices(w_ENC),
        strict=True,
    )
    out_PN = torch.empty(plan.num_rows, values(w_ENC).shape[1], device=rows.device)
    out_PN[pairs] = torch.cat([part @ w.T for part, w in parts])
    return out_PN.to(out_dtype or result_dtype(a))


def dense_plan(num_rows: int, block_m: int, device: torch.device) -> Plan:
    """Return the plan of a plain GEMM: one expert that every row goes to, in order."""
    max_tiles = tile_bound(num_rows, 1, block_m)
    rows = torch.arange(num_rows, dtype=torch.int32, device=device)
    tiles = torch.arange(max_tiles, dtype=torch.int32, device=device)
    # Made by arange and not from a list, which would be a copy to the device that waits.
    offsets_E1 = torch.arange(2, dtype=torch.int32, device=device) * num_rows
    return Plan(
        sorted_pairs=rows,
        expert_offsets_E1=offsets_E1,
        tile_expert=torch.zeros_like(tiles),
        tile_row=tiles * block_m,
        num_tiles=torch.full_like(offsets_E1[:1], max_tiles),
        block_m=block_m,
        top_k=1,
    )


def gate_logits(x_TH: torch.Tensor, keys_EH: torch.Tensor) -> torch.Tensor:
    """Return the float32 logits x K^T of a flat gate, with operands in their own format.

    Args:
        x_TH: Tokens of shape (T, H), contiguous.
        keys_EH: Keys in the same format, shape (E, H), contiguous.

    Returns:
        float32 of shape (T, E).

    Raises:
        ValueError: Shapes or formats do not fit each other.
        RuntimeError: Triton cannot launch kernels here.
    """
    block_m = tile_config(x_TH.shape[0], keys_EH.shape[0]).block_m
    # A flat gate is a grouped GEMM with a single expert: all keys as columns.
    plan = dense_plan(x_TH.shape[0], block_m, x_TH.device)
    return grouped_linear(x_TH, keys_EH[None], plan, gather=True, out_dtype=torch.float32)
