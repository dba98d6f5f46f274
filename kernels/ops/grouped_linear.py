"""Multiply every row by its own expert's matrix: the grouped GEMM.

    for each tile (expert e, rows r) and column block n:       # one program each
        a = rows r of ``a`` in plan order, or tokens gathered by pair
        acc = a @ w_ENC[e, n].T                                # float32
        out_PN[pairs r, n] = acc

The down projection reads rows in the plan's order; the gates read the tokens where they are stored.
Both write row p for pair p = t x K + j, so the next kernel finds the results of a token side by
side. C is the inner dimension here.
"""

from dataclasses import replace

import torch
from moesim_kernels.ops.chain import await_inputs
from moesim_kernels.ops.gemm_paths import Path, chosen_path
from moesim_kernels.ops.launches import launch
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
from moesim_kernels.ops.persistent import persistent_linear, weighed
from moesim_kernels.ops.plan import Plan
from moesim_kernels.ops.plan_kernels import work_tile
from moesim_kernels.ops.runtime import cdiv, dot_dtype, jit, limits, require_triton, store_dtype, tl
from moesim_kernels.tiles.tiles import Limits, Tile, tile_config


@jit
def _linear_kernel(
    a_ptr,
    a_scales_ptr,
    w_ptr,
    w_scales_ptr,
    weights_ptr,
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
    TRANSPOSED: tl.constexpr,
    WEIGHED: tl.constexpr,
    DOT: tl.constexpr,
    SCALED: tl.constexpr,
    EVEN_K: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP_M: tl.constexpr,
    PDL: tl.constexpr,
):
    await_inputs(PDL)
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
    if TRANSPOSED:
        # Matrices of shape (C, N): a matrix unit takes either order, so no copy is turned around.
        # Offsets inside a matrix are 32-bit numbers, of which registers hold twice as many.
        w_at = w_ptr + expert * inner * width + (k[:, None] * width + n[None, :])
        w_step = BLOCK_K * width
    else:
        w_at = w_ptr + (expert * width + n)[None, :] * inner + k[:, None]
        w_step = BLOCK_K
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
        w_at += w_step
    if WEIGHED:
        total = weighed(total, weights_ptr, out_ptr, pairs, exists)
    # Stored by pair and not by row: the next step reads a token's pairs side by side.
    out_at = out_ptr + pairs.to(tl.int64)[:, None] * width + n[None, :]
    tl.store(
        out_at, total.to(out_ptr.dtype.element_ty), mask=exists[:, None] & (n < width)[None, :]
    )


def linear_tile(
    tokens_per_expert: float,
    num_columns: int,
    *,
    operand_bits: int,
    result_bits: int,
    block_m: int,
    transposed: bool,
    limits: Limits,
) -> Tile:
    """Return the tile of `tile_config`; narrower for transposed float32 matrices, whose rows take
    registers on their way.
    """
    tile = tile_config(
        tokens_per_expert,
        num_columns,
        operand_bits=operand_bits,
        result_bits=result_bits,
        block_m=block_m,
        limits=limits,
    )
    if transposed and operand_bits >= 32:
        return replace(tile, block_n=max(tile.block_n // 2, 16))
    return tile


def _check(a: Operand, w_ENC: Operand, plan: Plan, gather: bool, transposed: bool) -> None:
    check_operands("a", a, "w_ENC", w_ENC)
    # Gathered operands have one row per token, others one per pair.
    rows = plan.num_rows // plan.top_k if gather else plan.num_rows
    shape, w_shape = tuple(values(a).shape), tuple(values(w_ENC).shape)
    if transposed:
        if isinstance(w_ENC, BlockScaled):
            raise ValueError("w_ENC: expected plain matrices to transpose, got block-scaled ones")
        if w_shape[1] * w_shape[2] >= 2**31:
            raise ValueError(
                "w_ENC: expected transposed matrices of fewer than 2**31 elements, got shape "
                f"{w_shape}"
            )
        w_shape = (w_shape[0], *w_shape[:0:-1])
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
    transposed: bool = False,
    out_dtype: torch.dtype | None = None,
    config: Tile | None = None,
    path: Path | None = None,
    weights_TK: torch.Tensor | None = None,
) -> torch.Tensor:
    """Multiply every row by its expert's matrix, accumulating in float32.

    Args:
        a: Rows, bfloat16, float16, or float32, contiguous, or `BlockScaled` by rows; tokens of
            shape (T, C) if ``gather``, otherwise rows in the plan's order of shape (P, C).
        w_ENC: Matrices in the same format, shape (E, N, C), contiguous, or `BlockScaled`.
        plan: Plan for this routing.
        gather: Whether row r's operand is the token of pair ``sorted_pairs[r]``.
        transposed: Whether the matrices have shape (E, C, N), as a gradient finds them; this is for
            plain matrices only.
        out_dtype: Format of the result; by default the format of ``a``, or bfloat16 for scaled
            operands.
        config: Tile; by default chosen from the mean load. The plan's block_m replaces its own;
            block_k must divide 128 for scaled operands.
        path: "pointers" or "descriptors" (see `moesim_kernels.ops.persistent`); gathered rows and
            transposed matrices always use pointers. By default the path that suits this GPU.
        weights_TK: Router weights, float32 of shape (T, K), contiguous, by which the rounded rows
            are multiplied; None for no weights.

    Returns:
        A tensor of shape (P, N), with row p for pair p.

    Raises:
        ValueError: Shapes or formats do not fit each other, or this GPU does not multiply the
            format.
        RuntimeError: Triton cannot launch kernels here.
    """
    _check(a, w_ENC, plan, gather, transposed)
    require_triton(*tensors(a, w_ENC), plan.sorted_pairs)
    rows, w, out_dtype = values(a), values(w_ENC), out_dtype or result_dtype(a)
    width, inner = w.shape[:0:-1] if transposed else w.shape[1:]
    out_PN = torch.empty(plan.num_rows, width, dtype=store_dtype(out_dtype), device=rows.device)
    if out_PN.numel():
        tile = config or linear_tile(
            plan.num_rows / plan.num_experts,
            width,
            operand_bits=rows.element_size() * 8,
            result_bits=out_dtype.itemsize * 8,
            block_m=plan.block_m,
            transposed=transposed,
            limits=limits(),
        )
        require_product(a, tile)
        # The persistent kernel reads rows side by side only.
        if (
            not gather
            and not transposed
            and chosen_path(path, a, w_ENC, plan.block_m, tile.descriptors) == "descriptors"
        ):
            persistent_linear(a, w_ENC, out_PN, plan, tile, weights_TK)
            return out_PN.to(out_dtype)
        # The number of tiles is on the device; the grid is sized by its bound.
        launch(
            _linear_kernel,
            (plan.max_tiles * cdiv(width, tile.block_n),),
            rows,
            scales(a),
            w,
            scales(w_ENC),
            weights_TK,
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
            TRANSPOSED=transposed,
            WEIGHED=weights_TK is not None,
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
    a: Operand,
    w_ENC: Operand,
    plan: Plan,
    *,
    gather: bool,
    transposed: bool = False,
    out_dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """Compute `grouped_linear` in torch: float32 products of the stored numbers, expert by expert,
    rounded once.
    """
    _check(a, w_ENC, plan, gather, transposed)
    w_ENC = w_ENC.mT if transposed and isinstance(w_ENC, torch.Tensor) else w_ENC
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
