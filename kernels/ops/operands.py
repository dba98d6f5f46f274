"""Hold operands of the grouped GEMMs: plain numbers, or 8-bit numbers with a scale for each block.

A product of block-scaled operands accumulates in float32; the scales of row and weight are applied
to the sum of each 128 elements of the depth (DeepSeek-V3, arXiv 2412.19437, section 3.3.2).
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from moesim_kernels.ops.runtime import limits, require_float, triton_mode
from moesim_kernels.tiles.tiles import Tile

#: number of elements of a row, and of rows and columns of a weight matrix, that share a scale
SCALE_BLOCK = 128
#: the largest number of each format
LARGEST = {torch.float8_e4m3fn: 448.0, torch.float8_e4m3fnuz: 240.0}


@dataclass(frozen=True, slots=True)
class BlockScaled:
    """A tensor stored as 8-bit numbers and the float32 scales they are multiplied by.

    Attributes:
        values: Numbers in a format of `LARGEST`, shape (R, C) for rows, (E, N, C) for weights.
        scales: Scales, float32, shape (R, ceil(C / 128)) for rows, (E, ceil(N / 128), ceil(C /
            128)) for weights.
    """

    values: torch.Tensor
    scales: torch.Tensor


Operand = torch.Tensor | BlockScaled


def blocks_of(size: int) -> int:
    """Return the number of blocks of scales along ``size`` elements."""
    return -(-size // SCALE_BLOCK)


def values(operand: Operand) -> torch.Tensor:
    """Return the numbers of an operand, without scales."""
    return operand.values if isinstance(operand, BlockScaled) else operand


def scales(operand: Operand) -> torch.Tensor | None:
    """Return the scales of an operand, None for plain numbers."""
    return operand.scales if isinstance(operand, BlockScaled) else None


def tensors(*operands: Operand) -> list[torch.Tensor]:
    """Return every tensor of the operands, scales included."""
    return [
        t for o in operands for t in ((o.values, o.scales) if isinstance(o, BlockScaled) else (o,))
    ]


def check_operands(name: str, rows: Operand, weights_name: str, weights: Operand) -> None:
    """Refuse a row operand and a weight operand that do not fit each other.

    Raises:
        ValueError: The kernels do not know a format, the formats differ, or scales do not have the
            shape of their numbers.
    """
    if not isinstance(rows, BlockScaled):
        require_float(name, rows)
    if isinstance(rows, BlockScaled) != isinstance(weights, BlockScaled):
        raise ValueError(f"{name}, {weights_name}: expected both as BlockScaled or neither")
    if values(rows).dtype != values(weights).dtype:
        raise ValueError(
            f"{weights_name}: expected {values(rows).dtype} as {name}, got {values(weights).dtype}"
        )
    if isinstance(rows, BlockScaled):
        check_scaled(name, rows, 2)
        check_scaled(weights_name, weights, 3)


def check_scaled(name: str, operand: Operand, dimensions: int) -> None:
    """Refuse an operand that is not block-scaled, as rows (2 dimensions) or weights (3 dimensions).

    Raises:
        ValueError: A format or shape does not fit.
    """
    if not isinstance(operand, BlockScaled):
        raise ValueError(f"{name}: expected BlockScaled as the other operands, got {operand.dtype}")
    shape = operand.values.shape
    if (
        operand.values.dtype not in LARGEST
        or len(shape) != dimensions
        or operand.scales.dtype != torch.float32
    ):
        raise ValueError(
            f"{name}: expected 8-bit values of {dimensions} dimensions and float32 scales, got "
            f"{operand.values.dtype} of shape {tuple(shape)} and {operand.scales.dtype}"
        )
    # The first dimension (rows or experts) is never divided into blocks.
    blocks = (shape[0], *(blocks_of(size) for size in shape[1:]))
    if operand.scales.shape != blocks:
        raise ValueError(
            f"{name}: expected scales of shape {blocks}, one for each {SCALE_BLOCK} elements, got "
            f"{tuple(operand.scales.shape)}"
        )


def require_product(operand: Operand, tile: Tile) -> None:
    """Refuse a product that this GPU's matrix units, or this tile, cannot compute.

    Raises:
        ValueError: The GPU does not multiply this 8-bit format, or the tile's steps cross blocks of
            scales.
    """
    if not isinstance(operand, BlockScaled):
        return
    # The interpreter multiplies any format; OCP e4m3 stands for it.
    can = limits().fp8 if triton_mode() == "gpu" else "float8_e4m3fn"
    if str(operand.values.dtype) != f"torch.{can}":
        wanted = f"{can} values" if can else "formats of 16 bits or more"
        raise ValueError(
            f"expected {wanted} on this GPU, whose matrix units have no product of "
            f"{operand.values.dtype}"
        )
    # A step must lie inside one block of scales: the kernels scale each step's product once.
    for name in ("block_n", "block_k"):
        if SCALE_BLOCK % getattr(tile, name):
            raise ValueError(
                f"tile.{name}: expected a divisor of {SCALE_BLOCK} for scaled operands, got "
                f"{getattr(tile, name)}"
            )


def result_dtype(operand: Operand) -> torch.dtype:
    """Return the default format of a product: the format of its rows, bfloat16 for scaled rows."""
    return torch.bfloat16 if isinstance(operand, BlockScaled) else operand.dtype


def expanded_blocks(scales: torch.Tensor, width: int, inner: int) -> torch.Tensor:
    """Return a scale for each weight: shape (..., N, C) from (..., ceil(N / 128), ceil(C /
    128)).
    """
    # Cut to size after each repeat, since the last block may be shorter.
    by_row = scales.repeat_interleave(SCALE_BLOCK, -2)[..., :width, :]
    return by_row.repeat_interleave(SCALE_BLOCK, -1)[..., :inner]


def float_rows(rows: Operand) -> torch.Tensor:
    """Return the float32 numbers that rows stand for."""
    if not isinstance(rows, BlockScaled):
        return rows.float()
    return (
        rows.values.float()
        * rows.scales.repeat_interleave(SCALE_BLOCK, 1)[:, : rows.values.shape[1]]
    )


def float_matrices(weights: Operand) -> Iterator[torch.Tensor]:
    """Yield the float32 matrix of each expert, one after the other."""
    if not isinstance(weights, BlockScaled):
        yield from (w.float() for w in weights)
        return
    for w, w_scales in zip(weights.values, weights.scales, strict=True):
        yield w.float() * expanded_blocks(w_scales, *w.shape)
