"""Grouped GEMMs as persistent kernels: tensor descriptors, and as many programs as the GPU holds at once.

On compute capability 9.0 and later the tensor memory accelerator copies whole blocks of a matrix to shared memory
asynchronously, without a thread computing addresses (CUDA C++ Programming Guide, "Tensor Memory Access"). Weights come
that way here, and so do rows that lie side by side. Tokens of the up projection lie anywhere: pointers gather them, and
on compute capability 10.0 the accelerator's gather does. Programs walk over the plan's tiles with a stride of their
number; how many tiles there are is read on the device, so nothing waits and no program is launched in vain.

The mathematics, and so the results, are those of `grouped_swiglu` and `grouped_linear`, which choose between the two
ways by `gemm_path`.
"""

from dataclasses import replace
from typing import Literal

import torch
from moesim_kernels.launches import launch
from moesim_kernels.operands import BlockScaled, Operand, scales, values
from moesim_kernels.plan import Plan, work_tile
from moesim_kernels.runtime import dot_dtype, jit, limits, num_sms, target, tensor_descriptor, tl, triton
from moesim_kernels.tiles import Tile

Path = Literal["pointers", "descriptors"]
#: what the accelerator asks of a matrix: rows that begin on multiples of 16 bytes
_ALIGNED = 16


def gemm_path(target: str, *, element_bytes: int, depth: int, address: int = 0) -> Path:
    """Which way a grouped GEMM takes on a GPU.

    Args:
        target: Architecture, such as "sm_90" or "gfx942"; "" where kernels are interpreted.
        element_bytes: Bytes of one operand element.
        depth: Elements of a row.
        address: Where the matrices begin, as far as alignment goes: any common multiple of their addresses.

    Returns:
        "descriptors" on compute capability 9.0 and later for operands of 8 or 16 bits whose rows are aligned to 16
        bytes; else "pointers": float32 products run on the vector units, which the copies do not wait for.
    """
    has_accelerator = target.startswith("sm_") and int(target.removeprefix("sm_")) >= 90
    aligned = depth * element_bytes % _ALIGNED == 0 and address % _ALIGNED == 0
    return "descriptors" if has_accelerator and aligned and element_bytes <= 2 else "pointers"


def gathers_by_descriptor(target: str) -> bool:
    """Whether the accelerator can gather rows: the data centre's Blackwell alone (PTX ISA, tile::gather4)."""
    return target in ("sm_100", "sm_103")


def gathers_rows() -> bool:
    """Whether the active GPU's accelerator gathers rows, which the persistent up projection then makes use of."""
    return gathers_by_descriptor(target())


@jit
def _persistent_swiglu_kernel(x_ptr, x_desc, x_scales_ptr, w_desc, w_scales_ptr, out_ptr, sorted_pairs_ptr, offsets_ptr,
                              tile_expert_ptr, tile_row_ptr, num_tiles_ptr, hidden, width, TOP_K: tl.constexpr,
                              DOT: tl.constexpr, SCALED: tl.constexpr, GATHER_ROWS: tl.constexpr,
                              BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
                              GROUP_M: tl.constexpr):
    num_tiles = tl.load(num_tiles_ptr)
    num_blocks_n = tl.cdiv(width, BLOCK_N)
    for work in range(tl.program_id(0), num_tiles * num_blocks_n, tl.num_programs(0)):
        expert, rows, exists, pairs, block_n = work_tile(work, sorted_pairs_ptr, offsets_ptr, tile_expert_ptr,
                                                         tile_row_ptr, num_tiles, num_blocks_n, BLOCK_M, GROUP_M)
        first = block_n * BLOCK_N
        gate_row = (expert * 2 * width).to(tl.int32) + first
        tokens = pairs // TOP_K
        if SCALED:
            blocks_h = tl.cdiv(hidden, 128)
            n = first + tl.arange(0, BLOCK_N)
            x_scale_at = x_scales_ptr + tokens.to(tl.int64) * blocks_h
            # Columns of a block share their gate scales; up rows may begin inside a block of scales and so meet two.
            scales_n = tl.cdiv(2 * width, 128)
            up_block = (width + first) // 128
            up_first = (width + n) // 128 == up_block
            gate_scale_at = w_scales_ptr + (expert * scales_n + first // 128) * blocks_h
            up_scale_at = w_scales_ptr + (expert * scales_n + up_block) * blocks_h
            next_scale_at = w_scales_ptr + (expert * scales_n + tl.minimum(up_block + 1, scales_n - 1)) * blocks_h
        gate = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
        up = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
        for k in range(0, hidden, BLOCK_K):
            if GATHER_ROWS:
                x = x_desc.gather(tokens, k).to(DOT)
            else:
                h = k + tl.arange(0, BLOCK_K)[None, :]
                x = tl.load(x_ptr + tokens.to(tl.int64)[:, None] * hidden + h, mask=exists[:, None] & (h < hidden),
                            other=0.0).to(DOT)
            w_gate = w_desc.load([gate_row, k]).to(DOT).T
            w_up = w_desc.load([gate_row + width, k]).to(DOT).T
            if SCALED:
                x_scale = tl.load(x_scale_at + k // 128, mask=exists, other=0.0)[:, None]
                gate += tl.dot(x, w_gate) * (x_scale * tl.load(gate_scale_at + k // 128))
                up_scale = tl.where(up_first, tl.load(up_scale_at + k // 128), tl.load(next_scale_at + k // 128))
                up += tl.dot(x, w_up) * x_scale * up_scale[None, :]
            else:
                gate = tl.dot(x, w_gate, gate)
                up = tl.dot(x, w_up, up)
        columns = first + tl.arange(0, BLOCK_N)
        out = gate / (1.0 + tl.exp(-gate)) * up
        out_at = out_ptr + rows.to(tl.int64)[:, None] * width + columns[None, :]
        tl.store(out_at, out.to(out_ptr.dtype.element_ty), mask=exists[:, None] & (columns < width)[None, :])


@jit
def _persistent_linear_kernel(a_desc, a_scales_ptr, w_desc, w_scales_ptr, out_ptr, sorted_pairs_ptr, offsets_ptr,
                              tile_expert_ptr, tile_row_ptr, num_tiles_ptr, inner, width, DOT: tl.constexpr,
                              SCALED: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
                              BLOCK_K: tl.constexpr, GROUP_M: tl.constexpr):
    num_tiles = tl.load(num_tiles_ptr)
    num_blocks_n = tl.cdiv(width, BLOCK_N)
    for work in range(tl.program_id(0), num_tiles * num_blocks_n, tl.num_programs(0)):
        expert, rows, exists, pairs, block_n = work_tile(work, sorted_pairs_ptr, offsets_ptr, tile_expert_ptr,
                                                         tile_row_ptr, num_tiles, num_blocks_n, BLOCK_M, GROUP_M)
        first = block_n * BLOCK_N
        w_row = (expert * width).to(tl.int32) + first
        # Rows past the expert's end are another's: computed, and not stored.
        a_row = tl.min(rows, axis=0)
        if SCALED:
            blocks_k = tl.cdiv(inner, 128)
            a_scale_at = a_scales_ptr + rows.to(tl.int64) * blocks_k
            w_scale_at = w_scales_ptr + (expert * tl.cdiv(width, 128) + first // 128) * blocks_k
        total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
        for k in range(0, inner, BLOCK_K):
            a = a_desc.load([a_row, k]).to(DOT)
            w = w_desc.load([w_row, k]).to(DOT).T
            if SCALED:
                a_scale = tl.load(a_scale_at + k // 128, mask=exists, other=0.0)[:, None]
                total += tl.dot(a, w) * (a_scale * tl.load(w_scale_at + k // 128))
            else:
                total = tl.dot(a, w, total)
        columns = first + tl.arange(0, BLOCK_N)
        out_at = out_ptr + pairs.to(tl.int64)[:, None] * width + columns[None, :]
        tl.store(out_at, total.to(out_ptr.dtype.element_ty), mask=exists[:, None] & (columns < width)[None, :])


#: rows of a tile from which descriptors pay for 16-bit operands; below, pointers were up to 3 % faster on an H100
DESCRIBED_ROWS = 128


def chosen_path(path: Path | None, rows: Operand, weights: Operand, block_m: int = DESCRIBED_ROWS) -> Path:
    """The way asked for, or that of the operands and of a tile of ``block_m`` rows on this GPU.

    Raises:
        ValueError: An unknown way, or descriptors of matrices they cannot describe.
    """
    a, w = values(rows), values(weights)
    about: dict[str, int] = {"element_bytes": a.element_size(), "depth": a.shape[1],
                             "address": a.data_ptr() | w.data_ptr()}
    if path is None:
        if block_m < DESCRIBED_ROWS and a.element_size() == 2:
            return "pointers"
        return gemm_path(target(), **about)
    if path not in ("pointers", "descriptors"):
        raise ValueError(f"path: expected 'pointers' or 'descriptors', got {path!r}")
    if path == "descriptors" and gemm_path("sm_90", **about) != path:
        raise ValueError("path: expected 'pointers' for operands of more than 16 bits or rows that do not begin on "
                         f"multiples of {_ALIGNED} bytes, got {a.dtype} of shape {tuple(a.shape)}")
    return path


def _grid(plan: Plan, width: int, tile: Tile, accumulators: int, element_bytes: int) -> tuple[int]:
    """The programs of a launch: a program for each piece of work where it is cheap, else as many as the GPU holds.

    On an H100 16-bit products gain nothing from walking on: a program of its own for each tile is up to 5 % faster.
    How many the GPU holds is the estimate that the simulator's waves rest on.
    """
    if element_bytes == 2 and accumulators == 1:
        return (plan.max_tiles * triton.cdiv(width, tile.block_n),)
    wide = replace(tile, block_m=plan.block_m, block_n=tile.block_n * accumulators)
    held = num_sms() * int(wide.ctas_per_sm(element_bytes, limits().shared_bytes))
    return (max(min(held, plan.max_tiles * triton.cdiv(width, tile.block_n)), 1),)


def persistent_swiglu(x_TH: Operand, w_gate_up: Operand, out_PI: torch.Tensor, plan: Plan, tile: Tile,
                      gather_rows: bool | None = None) -> None:
    """Fill ``out_PI`` as `grouped_swiglu` does, whose checks have passed.

    Args:
        x_TH: Tokens.
        w_gate_up: Weights.
        out_PI: Activations; are overwritten.
        plan: Plan of the routing.
        tile: Tile; block_m is the plan's.
        gather_rows: Whether the accelerator gathers tokens; by default where it can.
    """
    x, w = values(x_TH), values(w_gate_up)
    gather_rows = gathers_rows() if gather_rows is None else gather_rows
    (experts, rows, hidden), width = w.shape, w.shape[1] // 2
    launch(_persistent_swiglu_kernel, _grid(plan, width, tile, 2, x.element_size()), None if gather_rows else x,
           tensor_descriptor(x, [1, tile.block_k]) if gather_rows else None, scales(x_TH),
           tensor_descriptor(w.view(experts * rows, hidden), [tile.block_n, tile.block_k]), scales(w_gate_up), out_PI,
           plan.sorted_pairs, plan.expert_offsets_E1, plan.tile_expert, plan.tile_row, plan.num_tiles, hidden, width,
           TOP_K=plan.top_k, DOT=dot_dtype(x.dtype), SCALED=isinstance(x_TH, BlockScaled), GATHER_ROWS=gather_rows,
           BLOCK_M=plan.block_m, BLOCK_N=tile.block_n, BLOCK_K=tile.block_k, GROUP_M=tile.group_m,
           num_warps=tile.num_warps, num_stages=tile.num_stages)


def persistent_linear(rows_PC: Operand, w_ENC: Operand, out_PN: torch.Tensor, plan: Plan, tile: Tile) -> None:
    """Fill ``out_PN`` as `grouped_linear` does for rows in the plan's order; its checks have passed."""
    a, w = values(rows_PC), values(w_ENC)
    experts, width, inner = w.shape
    launch(_persistent_linear_kernel, _grid(plan, width, tile, 1, a.element_size()),
           tensor_descriptor(a, [plan.block_m, tile.block_k]), scales(rows_PC),
           tensor_descriptor(w.view(experts * width, inner), [tile.block_n, tile.block_k]), scales(w_ENC), out_PN,
           plan.sorted_pairs, plan.expert_offsets_E1, plan.tile_expert, plan.tile_row, plan.num_tiles, inner, width,
           DOT=dot_dtype(a.dtype), SCALED=isinstance(rows_PC, BlockScaled), BLOCK_M=plan.block_m,
           BLOCK_N=tile.block_n, BLOCK_K=tile.block_k, GROUP_M=tile.group_m, num_warps=tile.num_warps,
           num_stages=tile.num_stages)
