"""Quantize tokens, activations, and weights to block-scaled 8-bit floats.

    for each block of 128 elements of a row (or 128 x 128 of a weight matrix):
        largest = max(|x| over the block, 2^-100)
        scale   = largest / LARGEST[format]
        values  = round(clamp(x x LARGEST[format] / largest))

This is the convention of DeepSeek-V3 (arXiv 2412.19437, section 3.3.2): 128 consecutive elements of
a token share one float32 scale, and so do 128 x 128 elements of a weight matrix; a product
accumulates in float32, and the scales are applied to the sum of each 128 elements of the depth.
Blocks at the end of a row or column may be shorter. The scale of a block is its largest magnitude,
but at least 2^-100, divided by the largest number of the format.

Formats: NVIDIA multiplies OCP e4m3 (``torch.float8_e4m3fn``, up to 448) from compute capability 8.9
on, and AMD from CDNA 4 on. CDNA 3 (gfx942) multiplies only e4m3fnuz (up to 240; CDNA 3 instruction
set architecture guide), so operands are made in that format there. Ampere multiplies neither.
"""

import torch
from moesim_kernels.ops.chain import await_inputs
from moesim_kernels.ops.launches import launch
from moesim_kernels.ops.operands import (
    LARGEST,
    SCALE_BLOCK,
    BlockScaled,
    blocks_of,
    expanded_blocks,
)
from moesim_kernels.ops.runtime import (
    cdiv,
    jit,
    require_float,
    require_triton,
    store_dtype,
    tile_rows,
    tl,
)

#: the smallest magnitude for which a block is scaled
SMALLEST = 2.0**-100
#: number of rows of a weight block that a program takes at once
BLOCK_STEP = 16


@jit
def _quantised(x, largest, LARGEST: tl.constexpr):
    # div_rn rounds as torch does, with one division for a block: the usual division is off by a
    # unit in the last place. Rounding may leave a product above the largest number, which the cast
    # would turn into NaN, hence the clamp.
    values = x * tl.div_rn(tl.zeros_like(largest) + LARGEST, largest)
    return tl.minimum(tl.maximum(values, -LARGEST), LARGEST)


@jit
def _quantise_rows_kernel(
    x_ptr,
    values_ptr,
    scales_ptr,
    num_rows,
    num_columns,
    LARGEST: tl.constexpr,
    SMALLEST: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
    PDL: tl.constexpr,
):
    await_inputs(PDL)
    r = tl.program_id(0).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    at = r[:, None] * num_columns + c[None, :]
    mask = (r < num_rows)[:, None] & (c < num_columns)[None, :]
    x = tl.load(x_ptr + at, mask=mask, other=0.0).to(tl.float32)
    # Zeros of masked lanes cannot raise the maximum.
    largest = tl.maximum(tl.max(tl.abs(x), axis=1), SMALLEST)
    values = _quantised(x, largest[:, None], LARGEST)
    tl.store(values_ptr + at, values.to(values_ptr.dtype.element_ty), mask=mask)
    scale = tl.div_rn(largest, tl.zeros_like(largest) + LARGEST)
    tl.store(
        scales_ptr + r * tl.cdiv(num_columns, BLOCK_C) + tl.program_id(1), scale, mask=r < num_rows
    )


@jit
def _quantise_blocks_kernel(
    x_ptr,
    values_ptr,
    scales_ptr,
    num_rows,
    num_columns,
    LARGEST: tl.constexpr,
    SMALLEST: tl.constexpr,
    BLOCK: tl.constexpr,
    STEP: tl.constexpr,
):
    c = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    matrix = tl.program_id(2).to(tl.int64)
    largest = tl.full((1,), SMALLEST, tl.float32)
    # A first pass finds the block's magnitude a few rows at a time, which needs few registers.
    for step in range(0, BLOCK, STEP):
        r = tl.program_id(1) * BLOCK + step + tl.arange(0, STEP)
        mask = (r < num_rows)[:, None] & (c < num_columns)[None, :]
        at = (matrix * num_rows + r)[:, None] * num_columns + c[None, :]
        x = tl.load(x_ptr + at, mask=mask, other=0.0).to(tl.float32)
        largest = tl.maximum(largest, tl.max(tl.max(tl.abs(x), axis=1), axis=0))
    # The second pass reads the block again, most likely from a cache.
    for step in range(0, BLOCK, STEP):
        r = tl.program_id(1) * BLOCK + step + tl.arange(0, STEP)
        mask = (r < num_rows)[:, None] & (c < num_columns)[None, :]
        at = (matrix * num_rows + r)[:, None] * num_columns + c[None, :]
        x = tl.load(x_ptr + at, mask=mask, other=0.0).to(tl.float32)
        values = _quantised(x, largest[:, None], LARGEST)
        tl.store(values_ptr + at, values.to(values_ptr.dtype.element_ty), mask=mask)
    scale_at = (matrix * tl.num_programs(1) + tl.program_id(1)) * tl.num_programs(
        0
    ) + tl.program_id(0)
    tl.store(
        scales_ptr + scale_at + tl.arange(0, 1),
        tl.div_rn(largest, tl.zeros_like(largest) + LARGEST),
    )


def _check(name: str, x: torch.Tensor, dimensions: int, dtype: torch.dtype) -> None:
    require_float(name, x)
    if x.ndim != dimensions or 0 in x.shape[1:]:
        raise ValueError(
            f"{name}: expected {dimensions} dimensions without an empty matrix, got shape "
            f"{tuple(x.shape)}"
        )
    if dtype not in LARGEST:
        raise ValueError(f"dtype: expected one of {', '.join(map(str, LARGEST))}, got {dtype}")


def quantise_rows(x_RC: torch.Tensor, dtype: torch.dtype = torch.float8_e4m3fn) -> BlockScaled:
    """Quantize tokens or activations to 8 bits, with a scale for each 128 elements of a row.

    Args:
        x_RC: Numbers to quantize, bfloat16, float16, or float32 of shape (R, C), contiguous,
            finite.
        dtype: 8-bit format, a key of `LARGEST`.

    Returns:
        Values of shape (R, C) with scales of shape (R, ceil(C / 128)).

    Raises:
        ValueError: A shape or format is not one of these.
        RuntimeError: Triton cannot launch kernels here.
    """
    _check("x_RC", x_RC, 2, dtype)
    require_triton(x_RC)
    (rows, columns), blocks = x_RC.shape, blocks_of(x_RC.shape[1])
    values = torch.empty(rows, columns, dtype=store_dtype(dtype), device=x_RC.device)
    scales = torch.empty(rows, blocks, dtype=torch.float32, device=x_RC.device)
    if rows:
        block_r = tile_rows(rows, SCALE_BLOCK)
        launch(
            _quantise_rows_kernel,
            (cdiv(rows, block_r), blocks),
            x_RC,
            values,
            scales,
            rows,
            columns,
            LARGEST=LARGEST[dtype],
            SMALLEST=SMALLEST,
            BLOCK_R=block_r,
            BLOCK_C=SCALE_BLOCK,
        )
    return BlockScaled(values.to(dtype), scales)


def quantise_blocks(w_ENC: torch.Tensor, dtype: torch.dtype = torch.float8_e4m3fn) -> BlockScaled:
    """Quantize weights to 8 bits, with a scale for each 128 x 128 block of every expert's matrix.

    Args:
        w_ENC: Weights to quantize, bfloat16, float16, or float32 of shape (E, N, C), contiguous,
            finite.
        dtype: 8-bit format, a key of `LARGEST`.

    Returns:
        Values of shape (E, N, C) with scales of shape (E, ceil(N / 128), ceil(C / 128)).

    Raises:
        ValueError: A shape or format is not one of these.
        RuntimeError: Triton cannot launch kernels here.
    """
    _check("w_ENC", w_ENC, 3, dtype)
    require_triton(w_ENC)
    experts, width, inner = w_ENC.shape
    values = torch.empty(experts, width, inner, dtype=store_dtype(dtype), device=w_ENC.device)
    scales = torch.empty(
        experts, blocks_of(width), blocks_of(inner), dtype=torch.float32, device=w_ENC.device
    )
    if experts:
        launch(
            _quantise_blocks_kernel,
            (blocks_of(inner), blocks_of(width), experts),
            w_ENC,
            values,
            scales,
            width,
            inner,
            LARGEST=LARGEST[dtype],
            SMALLEST=SMALLEST,
            BLOCK=SCALE_BLOCK,
            STEP=BLOCK_STEP,
        )
    return BlockScaled(values.to(dtype), scales)


def quantise_rows_reference(
    x_RC: torch.Tensor, dtype: torch.dtype = torch.float8_e4m3fn
) -> BlockScaled:
    """Quantize rows in torch, bit-identical to `quantise_rows`."""
    _check("x_RC", x_RC, 2, dtype)
    # Padding with zeros completes the last block without changing its magnitude.
    padded = torch.nn.functional.pad(x_RC.float(), (0, -x_RC.shape[1] % SCALE_BLOCK))
    largest = padded.unflatten(1, (-1, SCALE_BLOCK)).abs().amax(2).clamp(min=SMALLEST)
    most = torch.full_like(largest, LARGEST[dtype])
    inverse = (most / largest).repeat_interleave(SCALE_BLOCK, 1)[:, : x_RC.shape[1]]
    return BlockScaled(_rounded(x_RC.float() * inverse, dtype), largest / most)


def quantise_blocks_reference(
    w_ENC: torch.Tensor, dtype: torch.dtype = torch.float8_e4m3fn
) -> BlockScaled:
    """Quantize blocks in torch, bit-identical to `quantise_blocks`."""
    _check("w_ENC", w_ENC, 3, dtype)
    (_, width, inner), block = w_ENC.shape, SCALE_BLOCK
    padded = torch.nn.functional.pad(w_ENC.float(), (0, -inner % block, 0, -width % block))
    largest = (
        padded.unflatten(2, (-1, block))
        .unflatten(1, (-1, block))
        .abs()
        .amax((2, 4))
        .clamp(min=SMALLEST)
    )
    most = torch.full_like(largest, LARGEST[dtype])
    inverse = expanded_blocks(most / largest, width, inner)
    return BlockScaled(_rounded(w_ENC.float() * inverse, dtype), largest / most)


# Tensors are divided by tensors in both: by a number, torch divides on a CPU and multiplies with
# its rounded inverse on a GPU, which is off by a unit in the last place.
def _rounded(values: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return values.clamp(-LARGEST[dtype], LARGEST[dtype]).to(dtype)
