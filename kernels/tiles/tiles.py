"""Give tile sizes of the grouped GEMMs, and how many row tiles any routing needs: numpy only, no
torch, no Triton.

A row tile holds rows of one expert, so an expert with c rows fills ceil(c / block_m) tiles, the
last one partly. A simulator that prices tiles and the plan on the device must count the same tiles;
both are tested against `tiles_per_expert`.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from moesim.costs.tiles import Tile


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Resources that one GPU architecture gives a program.

    Attributes:
        shared_bytes: Shared memory (NVIDIA) or LDS (AMD) of one program, in bytes.
        elements_per_warp: Accumulator elements a warp holds without spilling: 4,096 where the
            matrix unit reads its operands from shared memory (Hopper, data-center Blackwell) or a
            wave has 64 lanes (AMD), otherwise 2,048. `moesim_kernels.compile.check` checks every
            default tile against it.
        fp8: 8-bit format that the matrix units multiply, as torch names it; "" without one.
        most_stages: Largest number of stages in the software pipeline.
        whole_line_rows: Number of rows of 16-bit operands up to which the fused projection takes a
            whole cache line of each row at a step; above, it takes half a line.
        float32_per_warp: Accumulator elements that a warp gets in a float32 GEMM.
        loaded_per_warp: Accumulator elements that a warp holds where a sum begins with numbers from
            memory, which data-center Blackwell keeps in registers on their way.
    """

    shared_bytes: int
    elements_per_warp: int
    fp8: str = "float8_e4m3fn"
    most_stages: int = 4
    whole_line_rows: int = 128
    float32_per_warp: int = 1024
    loaded_per_warp: int = 4096


#: NVIDIA: CUDA C++ Programming Guide, "Technical Specifications per Compute Capability", maximum
#: shared memory per thread block. AMD: CDNA 3 and CDNA 4 instruction set architecture guides, LDS
#: of a compute unit. 8-bit formats: PTX ISA, mma (e4m3 needs sm_89); the CDNA guides' MFMA
#: instructions (CDNA 3 has the fnuz encoding only). The other limits keep the code that Triton 3.7
#: and 3.9 generate for the tiles legal and free of spills. On gfx950, 3.9 pads shared memory, so
#: four stages no longer fit, and its block ping-pong pass, which takes four stages for a chain of
#: two products, fails on scaled products. On sm_120 a persistent kernel gathers rows through
#: registers, and whole lines of 128 rows overflow them. On sm_80, 3.9 spills float32 accumulators
#: of 1,024 elements per warp.
LIMITS = {
    "sm_80": Limits(shared_bytes=163 * 1024, elements_per_warp=2048, fp8="", float32_per_warp=512),
    "sm_89": Limits(shared_bytes=99 * 1024, elements_per_warp=2048),
    "sm_90": Limits(shared_bytes=227 * 1024, elements_per_warp=4096),
    "sm_100": Limits(shared_bytes=227 * 1024, elements_per_warp=4096, loaded_per_warp=2048),
    "sm_120": Limits(shared_bytes=99 * 1024, elements_per_warp=2048, whole_line_rows=64),
    "gfx942": Limits(shared_bytes=64 * 1024, elements_per_warp=4096, fp8="float8_e4m3fnuz"),
    "gfx950": Limits(shared_bytes=160 * 1024, elements_per_warp=4096, most_stages=3),
}


def _power_of_two(value: float, low: int, high: int) -> int:
    """Return the smallest power of two >= ``value``, within ``low`` and ``high`` (themselves powers
    of two).
    """
    return min(max(1 << max(int(np.ceil(value)) - 1, 0).bit_length(), low), high)


def tiles_per_expert(counts_E: ArrayLike, block_m: int) -> np.ndarray:
    """Return the number of row tiles of each expert: ceil(count / block_m).

    Args:
        counts_E: Number of rows of each expert, integers >= 0 of shape (E,).
        block_m: Number of rows in a tile.

    Returns:
        ndarray of int64, shape (E,).

    Raises:
        ValueError: block_m is below 1, or a count is negative.
    """
    counts = np.asarray(counts_E, dtype=np.int64)
    if block_m < 1 or (counts < 0).any():
        raise ValueError(
            f"expected block_m >= 1 and counts >= 0, got block_m = {block_m}, counts = {counts}"
        )
    return -(-counts // block_m)


def tile_bound(num_rows: int, num_experts: int, block_m: int) -> int:
    """Return the most row tiles that ``num_rows`` rows can need, however they fall on
    ``num_experts`` experts.

    Every partly filled tile needs an expert of its own. The worst case is therefore one row on each
    of E - 1 experts and the rest on one expert; with fewer rows than experts it is one tile per
    row.

    Raises:
        ValueError: The number of rows is negative, there are no experts, or block_m is below 1.
    """
    if num_rows < 0 or num_experts < 1 or block_m < 1:
        raise ValueError(
            f"expected num_rows >= 0, num_experts >= 1 and block_m >= 1, got {num_rows}, "
            f"{num_experts}, {block_m}"
        )
    if num_rows <= num_experts:
        return num_rows
    return -(-(num_rows - num_experts + 1) // block_m) + num_experts - 1


def tile_config(
    tokens_per_expert: float,
    num_columns: int,
    *,
    operand_bits: int = 16,
    result_bits: int = 16,
    num_accumulators: int = 1,
    block_m: int | None = None,
    limits: Limits = LIMITS["sm_80"],
) -> Tile:
    """Return a good tile without a search, from the mean load: the histogram itself stays on the
    device.

    Args:
        tokens_per_expert: Mean number of rows per expert.
        num_columns: Output columns of the GEMM, per accumulator.
        operand_bits: Bits of one operand element.
        result_bits: Bits of one stored element.
        num_accumulators: Number of accumulators a program keeps: 2 for the fused gate and up
            projection.
        block_m: Number of rows in a tile where a plan has fixed them.
        limits: Resources the GPU gives a program; by default an A100's.

    Returns:
        A tile. Its block_m is the load rounded up to a power of two, 16 to 128. block_n x
        num_accumulators is at most 256 (64 or 128 for 8-bit operands), and less where a tile of 8
        warps would spill. A row of block_k is 1,024 bits, one cache line, or half of it
        (`Limits.whole_line_rows`). Stages fill the shared memory, up to `Limits.most_stages`.

    Raises:
        ValueError: A width or a size is below 1.
    """
    if tokens_per_expert < 0 or min(num_columns, operand_bits, num_accumulators) < 1:
        raise ValueError(
            f"expected tokens_per_expert >= 0 and positive sizes, got {tokens_per_expert}, "
            f"{num_columns}, {operand_bits}, {num_accumulators}"
        )
    block_m = block_m or _power_of_two(tokens_per_expert, 16, 128)
    # float32 products run on the vector units and need registers for the operands too; float32
    # results need more addresses than fit next to a full accumulator; 8-bit products wait in
    # registers, next to the accumulator, for their scales.
    if operand_bits >= 32:
        elements_per_warp, most_elements = (
            limits.float32_per_warp,
            4096 if num_accumulators > 1 else 8192,
        )
    else:
        elements_per_warp = min(
            limits.elements_per_warp // (2 if operand_bits <= 8 else 1),
            2048 if result_bits >= 32 else 4096,
        )
        most_elements = 8 * elements_per_warp
    widest = limits.elements_per_warp // 32 if operand_bits <= 8 else 256
    widest = min(widest, most_elements // block_m) // num_accumulators
    block_n = _power_of_two(num_columns, 16, widest)
    # The fused projection with many rows takes half a cache line at a step (`whole_line_rows`).
    halved = operand_bits == 16 and num_accumulators > 1 and block_m > limits.whole_line_rows
    block_k = max((512 if halved else 1024) // operand_bits, 16)
    stage_bytes = (block_m + num_accumulators * block_n) * block_k * operand_bits // 8
    return Tile(
        block_m=block_m,
        block_n=block_n,
        block_k=block_k,
        num_warps=_power_of_two(block_m * block_n * num_accumulators / elements_per_warp, 4, 8),
        num_stages=min(max(limits.shared_bytes // stage_bytes, 1), limits.most_stages),
        group_m=int(min(max(np.ceil(tokens_per_expert / block_m), 1), 8)),
    )
