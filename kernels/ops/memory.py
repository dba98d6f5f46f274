"""Move bytes and nothing else, to measure a GPU's memory: a stream, and a gather of random rows.

    stream: target[i] = source[i]                  # BLOCK consecutive elements per program
    gather: target[r, c] = source[rows[r], c]      # a block of rows and columns per program

Both read and write, so the bytes moved are twice the bytes of the result.
"""

import torch
from moesim_kernels.ops.runtime import cdiv, jit, next_power_of_2, require_triton, tl

#: number of elements a program moves at once, and its number of warps
BLOCK, WARPS = 4096, 8


@jit
def _stream_kernel(source_ptr, target_ptr, num_elements, BLOCK: tl.constexpr):
    # 64-bit indices, since working sets may have more than 2^31 elements.
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = i < num_elements
    tl.store(target_ptr + i, tl.load(source_ptr + i, mask=mask, other=0.0), mask=mask)


@jit
def _gather_kernel(
    source_ptr,
    rows_ptr,
    target_ptr,
    num_rows,
    num_columns,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    r = tl.program_id(0).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    # Rows that are read come from the table, rows that are written follow the program.
    row = tl.load(rows_ptr + r, mask=r < num_rows, other=0).to(tl.int64)
    mask = (r < num_rows)[:, None] & (c < num_columns)[None, :]
    values = tl.load(source_ptr + row[:, None] * num_columns + c[None, :], mask=mask, other=0.0)
    tl.store(target_ptr + r[:, None] * num_columns + c[None, :], values, mask=mask)


def _check(name: str, tensor: torch.Tensor, dtype: torch.dtype, dimensions: int) -> None:
    if tensor.dtype != dtype or tensor.ndim != dimensions:
        raise ValueError(
            f"{name}: expected {dtype} of {dimensions} dimensions, got {tensor.dtype} of shape "
            f"{tuple(tensor.shape)}"
        )


def stream(source_N: torch.Tensor, target_N: torch.Tensor) -> None:
    """Copy a vector.

    Args:
        source_N: Vector to read, float32 of shape (N,), contiguous.
        target_N: Vector to overwrite, float32 of shape (N,), contiguous.

    Raises:
        ValueError: Shapes or formats do not fit each other.
        RuntimeError: Triton cannot launch kernels here.
    """
    _check("source_N", source_N, torch.float32, 1)
    _check("target_N", target_N, torch.float32, 1)
    if source_N.shape != target_N.shape:
        raise ValueError(
            f"target_N: expected shape {tuple(source_N.shape)}, got {tuple(target_N.shape)}"
        )
    require_triton(source_N, target_N)
    if len(source_N):
        grid = (cdiv(len(source_N), BLOCK),)
        _stream_kernel[grid](source_N, target_N, len(source_N), BLOCK=BLOCK, num_warps=WARPS)


def stream_reference(source_N: torch.Tensor, target_N: torch.Tensor) -> None:
    """Copy a vector in torch."""
    target_N.copy_(source_N)


def gather(source_SC: torch.Tensor, rows_R: torch.Tensor, target_RC: torch.Tensor) -> None:
    """Copy rows of a table in any order.

    Args:
        source_SC: The table, float32 of shape (S, C), contiguous.
        rows_R: Rows to copy, int32 of shape (R,), contiguous, each below S.
        target_RC: Result to overwrite, float32 of shape (R, C), contiguous.

    Raises:
        ValueError: Shapes or formats do not fit each other.
        RuntimeError: Triton cannot launch kernels here.
    """
    _check("source_SC", source_SC, torch.float32, 2)
    _check("rows_R", rows_R, torch.int32, 1)
    _check("target_RC", target_RC, torch.float32, 2)
    shape = (len(rows_R), source_SC.shape[1])
    if target_RC.shape != shape:
        raise ValueError(f"target_RC: expected shape {shape}, got {tuple(target_RC.shape)}")
    require_triton(source_SC, rows_R, target_RC)
    if not target_RC.numel():
        return
    # Wide rows are split over programs, narrow ones share a program.
    columns = min(next_power_of_2(shape[1]), BLOCK)
    rows = BLOCK // columns
    _gather_kernel[(cdiv(shape[0], rows), cdiv(shape[1], columns))](
        source_SC, rows_R, target_RC, *shape, BLOCK_R=rows, BLOCK_C=columns, num_warps=WARPS
    )


def gather_reference(
    source_SC: torch.Tensor, rows_R: torch.Tensor, target_RC: torch.Tensor
) -> None:
    """Copy rows of a table in torch."""
    torch.index_select(source_SC, 0, rows_R, out=target_RC)
