"""Compute the up projection of experts of 8 or 16 bits as one wide product of gate and up columns
together.

    for each tile (expert e, rows r) and block of n gate columns and their n up columns:
        for each step k of the hidden size:
            acc[:, 2n] += x[tokens of r, k] @ W_gate_up[e, gate and up rows, k].T     # float32
            (block-scaled: the product of the step times the scales of its rows and columns)
        gate, up = the halves of acc
        out[r, n] = silu(gate) * up

A matrix unit is fed better by one product of 256 columns than by two of 128: on an H100 a trial
with weights copied so that gate and up rows alternate took 0.6 of the time of two products for the
largest layers. Here the weights stay as they are, gate rows before up rows, and no copy is made:

- pointers take a gate row and its up row in turns, so the results of both lie side by side in a
  thread;
- a tensor descriptor sees an expert as a matrix of 2 x I x H and takes n gate rows and n up rows as
  one block. What a thread then holds of a gate column it also holds of the up column n further on.

Either way SwiGLU is computed from registers, without exchange between threads. The mathematics, the
reference and the checks are those of `moesim_kernels.ops.grouped_swiglu`.
"""

from typing import Any

import torch
from moesim_kernels.ops.chain import await_inputs
from moesim_kernels.ops.launches import launch
from moesim_kernels.ops.operands import BlockScaled, Operand, scales, values
from moesim_kernels.ops.plan import Plan
from moesim_kernels.ops.plan_kernels import work_tile
from moesim_kernels.ops.runtime import cdiv, dot_dtype, jit, tensor_descriptor, tl
from moesim_kernels.tiles.tiles import Tile

#: offsets inside one expert's matrix are 32-bit numbers
MOST_ELEMENTS = 2**31


@jit
def _wide_swiglu_kernel(
    x_ptr,
    x_scales_ptr,
    w_ptr,
    w_desc,
    w_scales_ptr,
    out_ptr,
    saved_ptr,
    sorted_pairs_ptr,
    offsets_ptr,
    tile_expert_ptr,
    tile_row_ptr,
    max_tiles,
    hidden,
    width,
    TOP_K: tl.constexpr,
    DOT: tl.constexpr,
    SCALED: tl.constexpr,
    DESCRIBED: tl.constexpr,
    SAVED: tl.constexpr,
    EVEN_H: tl.constexpr,
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
    if expert < 0:
        return
    first = block_n * BLOCK_N
    h = tl.arange(0, BLOCK_K)
    tokens = (pairs // TOP_K).to(tl.int64)
    x_at = x_ptr + tokens[:, None] * hidden + h[None, :]
    if SCALED:
        blocks_h = tl.cdiv(hidden, 128)
        blocks_n = tl.cdiv(2 * width, 128)
        x_scale_at = x_scales_ptr + tokens * blocks_h
        # All gate columns of a block share their scales. The up rows may begin inside a block of
        # scales, so they can need two different ones.
        up_block = (width + first) // 128
        scale_at = w_scales_ptr + expert * blocks_n * blocks_h
        gate_scale_at = scale_at + first // 128 * blocks_h
        up_scale_at = scale_at + up_block * blocks_h
        next_scale_at = scale_at + tl.minimum(up_block + 1, blocks_n - 1) * blocks_h
        column = tl.arange(0, 2 * BLOCK_N)
        is_up = column >= BLOCK_N if DESCRIBED else column % 2 == 1
        up_column = first + (column % BLOCK_N if DESCRIBED else column // 2)
        is_first = (width + up_column) // 128 == up_block
    if not DESCRIBED:
        # Column 2n is gate row n, column 2n + 1 up row n. Columns past the last repeat it and are
        # not stored, which saves a mask in the loop.
        n = tl.arange(0, 2 * BLOCK_N)
        w_row = n % 2 * width + tl.minimum(first + n // 2, width - 1)
        w_at = w_ptr + expert * 2 * width * hidden + (w_row[None, :] * hidden + h[:, None])
    total = tl.zeros((BLOCK_M, 2 * BLOCK_N), tl.float32)
    for start in range(0, hidden, BLOCK_K):
        if EVEN_H:
            x = tl.load(x_at + start, mask=exists[:, None], other=0.0).to(DOT)
        else:
            x = tl.load(
                x_at + start, mask=exists[:, None] & (h < hidden - start)[None, :], other=0.0
            ).to(DOT)
        if DESCRIBED:
            w = (
                w_desc.load([expert.to(tl.int32), 0, first, start])
                .reshape(2 * BLOCK_N, BLOCK_K)
                .to(DOT)
                .T
            )
        elif EVEN_H:
            w = tl.load(w_at + start).to(DOT)
        else:
            w = tl.load(w_at + start, mask=(h < hidden - start)[:, None], other=0.0).to(DOT)
        if SCALED:
            # A step lies inside one block of scales, so scaling its product once is exact.
            x_scale = tl.load(x_scale_at + start // 128, mask=exists, other=0.0)
            up_scale = tl.where(
                is_first, tl.load(up_scale_at + start // 128), tl.load(next_scale_at + start // 128)
            )
            w_scale = tl.where(is_up, up_scale, tl.load(gate_scale_at + start // 128))
            total += tl.dot(x, w) * (x_scale[:, None] * w_scale[None, :])
        else:
            total = tl.dot(x, w, total, input_precision="ieee")
    if DESCRIBED:
        # Gate columns, then up columns.
        gate, up = tl.split(tl.permute(tl.reshape(total, (BLOCK_M, 2, BLOCK_N)), (0, 2, 1)))
    else:
        # Gate and up columns in turns.
        gate, up = tl.split(tl.reshape(total, (BLOCK_M, BLOCK_N, 2)))
    columns = first + tl.arange(0, BLOCK_N)
    mask = exists[:, None] & (columns < width)[None, :]
    if SAVED:
        # Training keeps the pre-activations, by pair. Rounded first, they take half the registers.
        kept_gate = gate.to(saved_ptr.dtype.element_ty)
        kept_up = up.to(saved_ptr.dtype.element_ty)
    out = (gate / (1.0 + tl.exp(-gate)) * up).to(out_ptr.dtype.element_ty)
    tl.store(out_ptr + rows.to(tl.int64)[:, None] * width + columns[None, :], out, mask=mask)
    if SAVED:
        saved_at = saved_ptr + pairs.to(tl.int64)[:, None] * (2 * width) + columns[None, :]
        tl.store(saved_at, kept_gate, mask=mask)
        tl.store(saved_at + width, kept_up, mask=mask)


def is_wide(x: torch.Tensor, w_gate_up: torch.Tensor) -> bool:
    """Return whether the up projection of these numbers is computed here: for formats of 8 and 16
    bits and experts of any usual size.

    float32 products run on the vector units, which gain nothing from width and need the registers.
    """
    return x.element_size() <= 2 and w_gate_up.shape[1] * w_gate_up.shape[2] < MOST_ELEMENTS


def describe_gate_up(w_gate_up: torch.Tensor, tile: Tile) -> Any:
    """Return the descriptor of an up projection's weights, shape (E, 2I, H), that takes gate and up
    rows as one block.
    """
    experts, rows, hidden = w_gate_up.shape
    return tensor_descriptor(
        w_gate_up.view(experts, 2, rows // 2, hidden), [1, 2, tile.block_n, tile.block_k]
    )


def wide_swiglu(
    x_TH: Operand,
    w_gate_up: Operand,
    out_PI: torch.Tensor,
    plan: Plan,
    tile: Tile,
    *,
    described: bool,
    saved_P2I: torch.Tensor | None = None,
) -> None:
    """Fill ``out_PI`` as `grouped_swiglu` does, after its checks have passed.

    Args:
        x_TH: Tokens.
        w_gate_up: Weights.
        out_PI: Activations, which are overwritten.
        plan: Plan for this routing.
        tile: Tile; block_n counts columns of the result, half of those of the product, and the
            plan's block_m replaces its own.
        described: Whether a descriptor reads the weights.
        saved_P2I: Memory where the pre-activations of training go, row p for pair p, gate columns
            before up columns.
    """
    x, w = values(x_TH), values(w_gate_up)
    hidden, width = x.shape[1], w.shape[1] // 2
    launch(
        _wide_swiglu_kernel,
        (plan.max_tiles * cdiv(width, tile.block_n),),
        x,
        scales(x_TH),
        None if described else w,
        describe_gate_up(w, tile) if described else None,
        scales(w_gate_up),
        out_PI,
        saved_P2I,
        plan.sorted_pairs,
        plan.expert_offsets_E1,
        plan.tile_expert,
        plan.tile_row,
        plan.max_tiles,
        hidden,
        width,
        TOP_K=plan.top_k,
        DOT=dot_dtype(x.dtype),
        SCALED=isinstance(x_TH, BlockScaled),
        DESCRIBED=described,
        SAVED=saved_P2I is not None,
        EVEN_H=hidden % tile.block_k == 0,
        BLOCK_M=plan.block_m,
        BLOCK_N=tile.block_n,
        BLOCK_K=tile.block_k,
        GROUP_M=tile.group_m,
        num_warps=tile.num_warps,
        num_stages=tile.num_stages,
    )
