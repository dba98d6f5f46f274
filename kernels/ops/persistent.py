"""Run the grouped GEMMs as persistent kernels, with tensor descriptors and as many programs as the
GPU holds at once.

    for work in range(program, num_tiles x column blocks, programs):   # num_tiles: on the device
        expert, rows, block_n = work_tile(work)
        for k in depth steps: acc += row block (descriptor or gather) @ weight block (descriptor).T
        store acc, or silu(gate) * up, for the rows that exist

On compute capability 9.0 and later the tensor memory accelerator copies whole blocks of a matrix to
shared memory asynchronously, without a thread computing addresses (CUDA C++ Programming Guide,
"Tensor Memory Access"). Weights are loaded that way here, and so are rows that lie side by side.
The tokens of the up projection are scattered: pointers gather them, and on compute capability 10.0
the gather of the accelerator does. Each program starts at its own index and steps through the
plan's tiles by the number of programs; the number of tiles is read on the device, so nothing waits
and no program is launched in vain.

The mathematics, and therefore the results, are those of `grouped_swiglu` and `grouped_linear`,
which choose between the two paths (`gemm_paths`).
"""

from dataclasses import replace

import torch
from moesim_kernels.ops.chain import await_inputs
from moesim_kernels.ops.gemm_paths import gathers_rows
from moesim_kernels.ops.launches import launch
from moesim_kernels.ops.operands import BlockScaled, Operand, scales, values
from moesim_kernels.ops.plan import Plan
from moesim_kernels.ops.plan_kernels import work_tile
from moesim_kernels.ops.runtime import (
    cdiv,
    dot_dtype,
    jit,
    limits,
    num_sms,
    tensor_descriptor,
    tl,
)
from moesim_kernels.tiles.tiles import Tile


@jit
def _persistent_swiglu_kernel(
    x_ptr,
    x_desc,
    x_scales_ptr,
    w_desc,
    w_scales_ptr,
    out_ptr,
    sorted_pairs_ptr,
    offsets_ptr,
    tile_expert_ptr,
    tile_row_ptr,
    num_tiles_ptr,
    hidden,
    width,
    TOP_K: tl.constexpr,
    DOT: tl.constexpr,
    SCALED: tl.constexpr,
    GATHER_ROWS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP_M: tl.constexpr,
    PDL: tl.constexpr,
):
    await_inputs(PDL)
    # Read on the device, so the launch does not wait for the plan.
    num_tiles = tl.load(num_tiles_ptr)
    num_blocks_n = tl.cdiv(width, BLOCK_N)
    for work in range(tl.program_id(0), num_tiles * num_blocks_n, tl.num_programs(0)):
        expert, rows, exists, pairs, block_n = work_tile(
            work,
            sorted_pairs_ptr,
            offsets_ptr,
            tile_expert_ptr,
            tile_row_ptr,
            num_tiles,
            num_blocks_n,
            BLOCK_M,
            GROUP_M,
        )
        first = block_n * BLOCK_N
        # Descriptors take 32-bit coordinates; all experts form one tall matrix.
        gate_row = (expert * 2 * width).to(tl.int32) + first
        tokens = pairs // TOP_K
        if SCALED:
            blocks_h = tl.cdiv(hidden, 128)
            n = first + tl.arange(0, BLOCK_N)
            x_scale_at = x_scales_ptr + tokens.to(tl.int64) * blocks_h
            # All columns of a block share their gate scales. The up rows may begin inside a block
            # of scales, so they can need two different scales.
            scales_n = tl.cdiv(2 * width, 128)
            up_block = (width + first) // 128
            up_first = (width + n) // 128 == up_block
            gate_scale_at = w_scales_ptr + (expert * scales_n + first // 128) * blocks_h
            up_scale_at = w_scales_ptr + (expert * scales_n + up_block) * blocks_h
            next_scale_at = (
                w_scales_ptr
                + (expert * scales_n + tl.minimum(up_block + 1, scales_n - 1)) * blocks_h
            )
        gate = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
        up = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
        for k in range(0, hidden, BLOCK_K):
            # Tokens are scattered: the accelerator's gather where it exists, pointers otherwise.
            if GATHER_ROWS:
                x = x_desc.gather(tokens, k).to(DOT)
            else:
                h = k + tl.arange(0, BLOCK_K)[None, :]
                x = tl.load(
                    x_ptr + tokens.to(tl.int64)[:, None] * hidden + h,
                    mask=exists[:, None] & (h < hidden),
                    other=0.0,
                ).to(DOT)
            w_gate = w_desc.load([gate_row, k]).to(DOT).T
            w_up = w_desc.load([gate_row + width, k]).to(DOT).T
            if SCALED:
                # A step lies inside one block of scales, so scaling its product once is exact.
                x_scale = tl.load(x_scale_at + k // 128, mask=exists, other=0.0)[:, None]
                gate += tl.dot(x, w_gate) * (x_scale * tl.load(gate_scale_at + k // 128))
                up_scale = tl.where(
                    up_first, tl.load(up_scale_at + k // 128), tl.load(next_scale_at + k // 128)
                )
                up += tl.dot(x, w_up) * x_scale * up_scale[None, :]
            else:
                gate = tl.dot(x, w_gate, gate)
                up = tl.dot(x, w_up, up)
        columns = first + tl.arange(0, BLOCK_N)
        out = gate / (1.0 + tl.exp(-gate)) * up
        # The result is stored with pointers, since a descriptor would overwrite the next expert's
        # rows.
        out_at = out_ptr + rows.to(tl.int64)[:, None] * width + columns[None, :]
        tl.store(
            out_at,
            out.to(out_ptr.dtype.element_ty),
            mask=exists[:, None] & (columns < width)[None, :],
        )


@jit
def weighed(total, weights_ptr, out_ptr, pairs, exists):
    """Return rows times the router weights of their pairs, rounded before as a combine of its own
    would find them.
    """
    weights = tl.load(weights_ptr + pairs, mask=exists, other=0.0)
    return weights[:, None] * total.to(out_ptr.dtype.element_ty).to(tl.float32)


@jit
def _persistent_linear_kernel(
    a_desc,
    a_scales_ptr,
    w_desc,
    w_scales_ptr,
    weights_ptr,
    out_ptr,
    sorted_pairs_ptr,
    offsets_ptr,
    tile_expert_ptr,
    tile_row_ptr,
    num_tiles_ptr,
    inner,
    width,
    WEIGHED: tl.constexpr,
    DOT: tl.constexpr,
    SCALED: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP_M: tl.constexpr,
    PDL: tl.constexpr,
):
    await_inputs(PDL)
    num_tiles = tl.load(num_tiles_ptr)
    num_blocks_n = tl.cdiv(width, BLOCK_N)
    for work in range(tl.program_id(0), num_tiles * num_blocks_n, tl.num_programs(0)):
        expert, rows, exists, pairs, block_n = work_tile(
            work,
            sorted_pairs_ptr,
            offsets_ptr,
            tile_expert_ptr,
            tile_row_ptr,
            num_tiles,
            num_blocks_n,
            BLOCK_M,
            GROUP_M,
        )
        first = block_n * BLOCK_N
        w_row = (expert * width).to(tl.int32) + first
        # Rows past the expert's end belong to another expert: they are computed but not stored.
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
        if WEIGHED:
            total = weighed(total, weights_ptr, out_ptr, pairs, exists)
        columns = first + tl.arange(0, BLOCK_N)
        # Rows go to their pair's position, so the combine finds a token's results side by side.
        out_at = out_ptr + pairs.to(tl.int64)[:, None] * width + columns[None, :]
        tl.store(
            out_at,
            total.to(out_ptr.dtype.element_ty),
            mask=exists[:, None] & (columns < width)[None, :],
        )


def _grid(plan: Plan, width: int, tile: Tile, accumulators: int, element_bytes: int) -> tuple[int]:
    """Return the number of programs of a launch: one for each piece of work where that is cheap,
    otherwise as many as the GPU holds.

    On an H100, 16-bit products gain nothing from programs that walk on: one program for each tile
    is up to 5 % faster. How many the GPU holds is the estimate the simulator's waves are based on.
    """
    if element_bytes == 2 and accumulators == 1:
        return (plan.max_tiles * cdiv(width, tile.block_n),)
    # Both accumulators count as one tile of double width.
    wide = replace(tile, block_m=plan.block_m, block_n=tile.block_n * accumulators)
    held = num_sms() * int(wide.ctas_per_sm(element_bytes, limits().shared_bytes))
    return (max(min(held, plan.max_tiles * cdiv(width, tile.block_n)), 1),)


def persistent_swiglu(
    x_TH: Operand,
    w_gate_up: Operand,
    out_PI: torch.Tensor,
    plan: Plan,
    tile: Tile,
    gather_rows: bool | None = None,
) -> None:
    """Fill ``out_PI`` as `grouped_swiglu` does, after its checks have passed.

    Args:
        x_TH: Tokens.
        w_gate_up: Weights.
        out_PI: Activations, which are overwritten.
        plan: Plan for this routing.
        tile: Tile; the plan's block_m replaces its own.
        gather_rows: Whether the accelerator gathers tokens; by default where it can.
    """
    x, w = values(x_TH), values(w_gate_up)
    gather_rows = gathers_rows() if gather_rows is None else gather_rows
    (experts, rows, hidden), width = w.shape, w.shape[1] // 2
    launch(
        _persistent_swiglu_kernel,
        _grid(plan, width, tile, 2, x.element_size()),
        None if gather_rows else x,
        tensor_descriptor(x, [1, tile.block_k]) if gather_rows else None,
        scales(x_TH),
        # One descriptor covers the matrices of all experts, stacked below each other.
        tensor_descriptor(w.view(experts * rows, hidden), [tile.block_n, tile.block_k]),
        scales(w_gate_up),
        out_PI,
        plan.sorted_pairs,
        plan.expert_offsets_E1,
        plan.tile_expert,
        plan.tile_row,
        plan.num_tiles,
        hidden,
        width,
        TOP_K=plan.top_k,
        DOT=dot_dtype(x.dtype),
        SCALED=isinstance(x_TH, BlockScaled),
        GATHER_ROWS=gather_rows,
        BLOCK_M=plan.block_m,
        BLOCK_N=tile.block_n,
        BLOCK_K=tile.block_k,
        GROUP_M=tile.group_m,
        num_warps=tile.num_warps,
        num_stages=tile.num_stages,
    )


def persistent_linear(
    rows_PC: Operand,
    w_ENC: Operand,
    out_PN: torch.Tensor,
    plan: Plan,
    tile: Tile,
    weights_TK: torch.Tensor | None = None,
) -> None:
    """Fill ``out_PN`` as `grouped_linear` does for rows in the plan's order, after its checks have
    passed.
    """
    a, w = values(rows_PC), values(w_ENC)
    experts, width, inner = w.shape
    launch(
        _persistent_linear_kernel,
        _grid(plan, width, tile, 1, a.element_size()),
        tensor_descriptor(a, [plan.block_m, tile.block_k]),
        scales(rows_PC),
        tensor_descriptor(w.view(experts * width, inner), [tile.block_n, tile.block_k]),
        scales(w_ENC),
        weights_TK,
        out_PN,
        plan.sorted_pairs,
        plan.expert_offsets_E1,
        plan.tile_expert,
        plan.tile_row,
        plan.num_tiles,
        inner,
        width,
        WEIGHED=weights_TK is not None,
        DOT=dot_dtype(a.dtype),
        SCALED=isinstance(rows_PC, BlockScaled),
        BLOCK_M=plan.block_m,
        BLOCK_N=tile.block_n,
        BLOCK_K=tile.block_k,
        GROUP_M=tile.group_m,
        num_warps=tile.num_warps,
        num_stages=tile.num_stages,
    )
