"""Compute gradients of expert weights: for every expert, the sum of its pairs' outer products.

    for each expert e and each block (n, c) of its matrix:       # one program each
        total = 0                                                # float32
        for rows r of expert e, BLOCK_R at a time, in plan order:
            total += a[pairs r, n].T @ b[pairs r, c]
        out[e, n, c] = total, or out[e, n, c] += total where gradients are accumulated

This is the third grouped GEMM of training: the forward pass and the gradients of activations
multiply rows by matrices (`grouped_linear`); here the rows of each expert are the inner dimension.
A program owns a block of one expert's matrix and walks over that expert's rows in the plan's order.
It needs no atomics, gives the same bits every time, and stores zeros for experts without rows.
Sums can be added to a buffer of gradients in place, which needs no memory beside it and leaves the
matrices of experts without rows alone.
"""

from dataclasses import dataclass

import torch
from moesim_kernels.ops.chain import await_inputs
from moesim_kernels.ops.launches import launch
from moesim_kernels.ops.plan import Plan
from moesim_kernels.ops.runtime import (
    cdiv,
    dot_dtype,
    jit,
    limits,
    next_power_of_2,
    require_float,
    require_triton,
    store_dtype,
    tl,
)
from moesim_kernels.tiles.tiles import Limits


@dataclass(frozen=True, slots=True)
class OuterTile:
    """A tile of `grouped_outer`.

    Attributes:
        block_r: Rows of a step.
        block_n: Rows of the block of the matrix.
        block_c: Columns of the block.
        num_warps: Warps of a program.
        num_stages: Stages of the software pipeline.
    """

    block_r: int
    block_n: int
    block_c: int
    num_warps: int
    num_stages: int


def outer_tile(
    width: int, inner: int, operand_bits: int, limits: Limits, added: bool = False
) -> OuterTile:
    """Return the tile for a format on a GPU: as large as its warps hold without spilling and its
    shared memory feeds.

    Args:
        width: Number of rows of a matrix.
        inner: Number of columns of a matrix.
        operand_bits: Bits of one operand element.
        limits: What the GPU gives a program.
        added: Whether the sums begin with the numbers of a buffer.
    """
    # Vector units multiply float32 and keep operands and sums in registers.
    if operand_bits >= 32:
        return OuterTile(32, 64, 64, 4, 2)
    per_warp = min(limits.elements_per_warp, limits.loaded_per_warp if added else 4096)
    large = per_warp >= 4096 and limits.shared_bytes >= 160 * 1024
    block_n = min(max(next_power_of_2(width), 16), 128)
    block_c = min(max(next_power_of_2(inner), 16), 256 if large else 128)
    stages = limits.shared_bytes // ((block_n + block_c) * 64 * operand_bits // 8)
    return OuterTile(
        64, block_n, block_c, 8 if block_n * block_c > 64 * 128 else 4, max(min(stages, 3), 1)
    )


@jit
def _outer_kernel(
    a_ptr,
    b_ptr,
    out_ptr,
    sorted_pairs_ptr,
    offsets_ptr,
    width,
    inner,
    A_TOP_K: tl.constexpr,
    B_TOP_K: tl.constexpr,
    ADDED: tl.constexpr,
    DOT: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
    PDL: tl.constexpr,
):
    await_inputs(PDL)
    # Programs count through the blocks of one expert before the next, so that neighbors share its
    # rows.
    blocks_c = tl.cdiv(inner, BLOCK_C)
    blocks = tl.cdiv(width, BLOCK_N) * blocks_c
    expert = (tl.program_id(0) // blocks).to(tl.int64)
    block = tl.program_id(0) % blocks
    n = block // blocks_c * BLOCK_N + tl.arange(0, BLOCK_N)
    c = block % blocks_c * BLOCK_C + tl.arange(0, BLOCK_C)
    # An expert without rows runs no step and stores zeros.
    first = tl.load(offsets_ptr + expert)
    end = tl.load(offsets_ptr + expert + 1)
    if ADDED and first == end:
        return
    # Offsets inside a block are 32-bit numbers, of which registers hold twice as many as of
    # addresses.
    out_ptr += (expert * width + block // blocks_c * BLOCK_N) * inner + block % blocks_c * BLOCK_C
    out_at = tl.arange(0, BLOCK_N)[:, None] * inner + tl.arange(0, BLOCK_C)[None, :]
    inside = (n < width)[:, None] & (c < inner)[None, :]
    if ADDED:
        # The sum begins with the buffer's numbers, which costs no registers beside it.
        total = tl.load(out_ptr + out_at, mask=inside, other=0.0).to(tl.float32)
    else:
        total = tl.zeros((BLOCK_N, BLOCK_C), tl.float32)
    for step in range(0, tl.cdiv(end - first, BLOCK_R)):
        r = first + step * BLOCK_R + tl.arange(0, BLOCK_R)
        pairs = tl.load(sorted_pairs_ptr + r, mask=r < end, other=0).to(tl.int64)
        # Loaded transposed: rows are the inner dimension of this product.
        a = tl.load(
            a_ptr + (pairs // A_TOP_K)[:, None] * width + n[None, :],
            mask=(r < end)[:, None] & (n < width)[None, :],
            other=0.0,
        ).to(DOT)
        b = tl.load(
            b_ptr + (pairs // B_TOP_K)[:, None] * inner + c[None, :],
            mask=(r < end)[:, None] & (c < inner)[None, :],
            other=0.0,
        ).to(DOT)
        # Both are loaded row by row; a matrix unit takes the first one turned around.
        total = tl.dot(tl.trans(a), b, total, input_precision="ieee")
    tl.store(out_ptr + out_at, total.to(out_ptr.dtype.element_ty), mask=inside)


def _rows_per_operand(name: str, operand: torch.Tensor, plan: Plan) -> int:
    """Return how many pairs share a row of ``operand``: top_k where its rows are tokens, 1 where
    they are pairs.
    """
    require_float(name, operand)
    num_tokens = plan.num_rows // plan.top_k
    if operand.ndim != 2 or operand.shape[0] not in (num_tokens, plan.num_rows):
        raise ValueError(
            f"{name}: expected {num_tokens} rows (tokens) or {plan.num_rows} (pairs), got shape "
            f"{tuple(operand.shape)}"
        )
    return 1 if operand.shape[0] == plan.num_rows else plan.top_k


def _check(a: torch.Tensor, b: torch.Tensor, plan: Plan) -> tuple[int, int]:
    shared = _rows_per_operand("a", a, plan), _rows_per_operand("b", b, plan)
    if a.dtype != b.dtype:
        raise ValueError(f"b: expected {a.dtype} as a, got {b.dtype}")
    return shared


def _check_buffer(into_ENC: torch.Tensor, a: torch.Tensor, b: torch.Tensor, plan: Plan) -> None:
    shape = (plan.num_experts, a.shape[1], b.shape[1])
    if (
        into_ENC.shape != shape
        or into_ENC.dtype not in (a.dtype, torch.float32)
        or not into_ENC.is_contiguous()
    ):
        raise ValueError(
            f"into_ENC: expected contiguous {a.dtype} or torch.float32 of shape {shape}, got "
            f"{into_ENC.dtype} of shape {tuple(into_ENC.shape)}"
        )


def grouped_outer(
    a: torch.Tensor, b: torch.Tensor, plan: Plan, into_ENC: torch.Tensor | None = None
) -> torch.Tensor:
    """Sum a^T b over each expert's pairs, accumulating in float32.

    Args:
        a: First factors, bfloat16, float16, or float32, contiguous; tokens of shape (T, N), or
            pairs p = t x K + j of shape (P, N).
        b: Second factors in the same format, contiguous, shape (T, C) or (P, C).
        plan: Plan for this routing.
        into_ENC: Buffer to which the sums are added in place, contiguous, in the format of ``a`` or
            float32, shape (E, N, C); None for a new tensor.

    Returns:
        A tensor of shape (E, N, C) in the format of ``a``, or the buffer.

    Raises:
        ValueError: Shapes or formats do not fit each other.
        RuntimeError: Triton cannot launch kernels here.
    """
    a_top_k, b_top_k = _check(a, b, plan)
    width, inner = a.shape[1], b.shape[1]
    if into_ENC is None:
        require_triton(a, b, plan.sorted_pairs)
        out_ENC = torch.empty(
            plan.num_experts, width, inner, dtype=store_dtype(a.dtype), device=a.device
        )
    else:
        _check_buffer(into_ENC, a, b, plan)
        require_triton(a, b, plan.sorted_pairs, into_ENC)
        # The buffer itself, except where the interpreter cannot store its format.
        out_ENC = into_ENC.to(store_dtype(into_ENC.dtype))
    if out_ENC.numel():
        tile = outer_tile(width, inner, 8 * a.element_size(), limits(), into_ENC is not None)
        blocks = cdiv(width, tile.block_n) * cdiv(inner, tile.block_c)
        launch(
            _outer_kernel,
            (plan.num_experts * blocks,),
            a,
            b,
            out_ENC,
            plan.sorted_pairs,
            plan.expert_offsets_E1,
            width,
            inner,
            A_TOP_K=a_top_k,
            B_TOP_K=b_top_k,
            ADDED=into_ENC is not None,
            DOT=dot_dtype(a.dtype),
            BLOCK_R=tile.block_r,
            BLOCK_N=tile.block_n,
            BLOCK_C=tile.block_c,
            num_warps=tile.num_warps,
            num_stages=tile.num_stages,
        )
    if into_ENC is None:
        return out_ENC.to(a.dtype)
    return into_ENC if out_ENC is into_ENC else into_ENC.copy_(out_ENC)


def grouped_outer_reference(
    a: torch.Tensor, b: torch.Tensor, plan: Plan, into_ENC: torch.Tensor | None = None
) -> torch.Tensor:
    """Compute `grouped_outer` in torch: float32 products of the stored numbers, expert by expert,
    rounded once.
    """
    a_top_k, b_top_k = _check(a, b, plan)
    pairs, sizes = plan.sorted_pairs.long(), plan.expert_offsets_E1.diff().tolist()
    parts = zip(
        a[pairs // a_top_k].float().split(sizes),
        b[pairs // b_top_k].float().split(sizes),
        strict=True,
    )
    # Experts without rows multiply empty matrices, which gives zeros.
    sums_ENC = torch.stack([rows.T @ others for rows, others in parts])
    if into_ENC is None:
        return sums_ENC.to(a.dtype)
    _check_buffer(into_ENC, a, b, plan)
    return into_ENC.copy_(into_ENC.float() + sums_ENC)
