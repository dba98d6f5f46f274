"""Compute gather, gate and up projections, and SwiGLU of all experts in one kernel.

    for each tile (expert e, rows r) and column block n:       # one program each
        x    = x_TH[sorted_pairs[r] // K]                      # gathered, never copied
        gate = x @ W_gate[e, n].T;  up = x @ W_up[e, n].T      # float32 accumulators
        out_PI[r, n] = silu(gate) * up                         # rounded once

Row r of the result belongs to pair ``plan.sorted_pairs[r]``. Rows 0..I-1 of an expert's
``w_gate_up`` are W_gate, rows I..2I-1 are W_up. Tokens are read where they are stored, both
products accumulate in float32, and only the activation is rounded and stored. Operands may be
`BlockScaled`: then each step of the depth lies inside one block of scales, and the scales are
applied to the product of that step.
"""

import torch
from moesim_kernels.ops.chain import await_inputs
from moesim_kernels.ops.gemm_paths import DESCRIBED_ROWS, Path, chosen_path, gathers_rows
from moesim_kernels.ops.launches import launch
from moesim_kernels.ops.operands import (
    BlockScaled,
    Operand,
    check_operands,
    float_matrices,
    float_rows,
    require_product,
    result_dtype,
    tensors,
    values,
)
from moesim_kernels.ops.persistent import persistent_swiglu
from moesim_kernels.ops.plan import Plan
from moesim_kernels.ops.plan_kernels import work_tile
from moesim_kernels.ops.runtime import (
    cdiv,
    dot_dtype,
    jit,
    limits,
    require_triton,
    store_dtype,
    target,
    tl,
)
from moesim_kernels.ops.wide_swiglu import is_wide, wide_swiglu
from moesim_kernels.tiles.tiles import Tile, tile_config


@jit
def _swiglu_kernel(
    x_ptr,
    w_ptr,
    out_ptr,
    sorted_pairs_ptr,
    offsets_ptr,
    tile_expert_ptr,
    tile_row_ptr,
    max_tiles,
    hidden,
    width,
    TOP_K: tl.constexpr,
    DOT: tl.constexpr,
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
    # The grid covers the bound on tiles; programs past the last tile have nothing to do.
    if expert < 0:
        return
    n = block_n * BLOCK_N + tl.arange(0, BLOCK_N)
    h = tl.arange(0, BLOCK_K)
    # Row indices are 64 bits wide: tokens x hidden size can exceed 2^31 elements.
    x_at = x_ptr + (pairs // TOP_K).to(tl.int64)[:, None] * hidden + h[None, :]
    gate_at = w_ptr + (expert * 2 * width + n)[None, :] * hidden + h[:, None]
    up_at = w_ptr + ((expert * 2 + 1) * width + n)[None, :] * hidden + h[:, None]
    gate = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    up = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for start in range(0, hidden, BLOCK_K):
        # Masks along the depth cost registers, so they are left out where blocks divide it.
        if EVEN_H:
            x_mask = exists[:, None]
            w_mask = (n < width)[None, :]
        else:
            x_mask = exists[:, None] & (h < hidden - start)[None, :]
            w_mask = (n < width)[None, :] & (h < hidden - start)[:, None]
        x = tl.load(x_at, mask=x_mask, other=0.0).to(DOT)
        w_gate = tl.load(gate_at, mask=w_mask, other=0.0).to(DOT)
        w_up = tl.load(up_at, mask=w_mask, other=0.0).to(DOT)
        # "ieee" keeps float32 operands from being rounded to TF32.
        gate = tl.dot(x, w_gate, gate, input_precision="ieee")
        up = tl.dot(x, w_up, up, input_precision="ieee")
        x_at += BLOCK_K
        gate_at += BLOCK_K
        up_at += BLOCK_K
    # SiLU and the product stay in float32; only their result is rounded.
    out = gate / (1.0 + tl.exp(-gate)) * up
    out_at = out_ptr + rows.to(tl.int64)[:, None] * width + n[None, :]
    tl.store(out_at, out.to(out_ptr.dtype.element_ty), mask=exists[:, None] & (n < width)[None, :])


def _check(x_TH: Operand, w_gate_up: Operand, plan: Plan) -> tuple[torch.Tensor, torch.Tensor]:
    check_operands("x_TH", x_TH, "w_gate_up", w_gate_up)
    x, w = values(x_TH), values(w_gate_up)
    shape = tuple(w.shape)
    if (
        x.ndim != 2
        or len(shape) != 3
        or shape[0] != plan.num_experts
        or shape[1] % 2
        or shape[2] != x.shape[1]
    ):
        raise ValueError(
            f"expected x_TH of shape (T, H) and w_gate_up of shape (E = {plan.num_experts}, 2I, "
            f"H), got {tuple(x.shape)} and {shape}"
        )
    if x.shape[0] * plan.top_k != plan.num_rows:
        raise ValueError(f"plan: expected {x.shape[0]} x {plan.top_k} pairs, got {plan.num_rows}")
    return x, w


def grouped_swiglu(
    x_TH: Operand,
    w_gate_up: Operand,
    plan: Plan,
    config: Tile | None = None,
    *,
    out_dtype: torch.dtype | None = None,
    path: Path | None = None,
    saved_P2I: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return the experts' activations, in the plan's order.

    Args:
        x_TH: Tokens, bfloat16, float16, or float32 of shape (T, H), contiguous; or `BlockScaled` by
            rows.
        w_gate_up: Weights in the same format, shape (E, 2I, H), contiguous; or `BlockScaled` by
            blocks of the 2I rows.
        plan: Plan for this routing.
        config: Tile; by default chosen from the mean load. The plan's block_m replaces its own;
            block_k must divide 128 for scaled operands.
        out_dtype: Format of the result; by default the format of ``x_TH``, or bfloat16 for scaled
            tokens.
        path: "pointers" or "descriptors" (see `moesim_kernels.ops.persistent`); by default the one
            that suits this GPU.
        saved_P2I: Memory where the pre-activations go that a backward pass needs: row p for pair p,
            gate columns before up columns, in the format that kernels store
            (`moesim_kernels.ops.runtime.store_dtype`). It may be given only where `saves` is true.

    Returns:
        Activations of shape (P, I).

    Raises:
        ValueError: Shapes or formats do not fit each other, or this GPU does not multiply the
            format.
        RuntimeError: Triton cannot launch kernels here.
    """
    x, w = _check(x_TH, w_gate_up, plan)
    require_triton(*tensors(x_TH, w_gate_up), plan.sorted_pairs)
    hidden, width = x.shape[1], w.shape[1] // 2
    out_dtype = out_dtype or result_dtype(x_TH)
    out_PI = torch.empty(plan.num_rows, width, dtype=store_dtype(out_dtype), device=x.device)
    if out_PI.numel():
        tile = config or tile_config(
            plan.num_rows / plan.num_experts,
            width,
            operand_bits=x.element_size() * 8,
            num_accumulators=2,
            block_m=plan.block_m,
            limits=limits(),
        )
        require_product(x_TH, tile)
        described = (
            chosen_path(path, x_TH, w_gate_up, plan.block_m, tile.descriptors) == "descriptors"
        )
        # Operands of 8 or 16 bits take the wide product, except where the accelerator gathers
        # tokens.
        if is_wide(x, w) and not (described and gathers_rows()):
            wide_swiglu(
                x_TH, w_gate_up, out_PI, plan, tile, described=described, saved_P2I=saved_P2I
            )
            return out_PI.to(out_dtype)
        # Operands that the tensor memory accelerator can copy take the persistent kernel instead.
        if described:
            persistent_swiglu(x_TH, w_gate_up, out_PI, plan, tile)
            return out_PI.to(out_dtype)
        if isinstance(x_TH, BlockScaled):
            raise ValueError(
                "w_gate_up: expected fewer than 2**31 numbers in a block-scaled expert, got shape "
                f"{tuple(w.shape)}"
            )
        # The number of tiles is on the device; the grid is sized by its bound.
        launch(
            _swiglu_kernel,
            (plan.max_tiles * cdiv(width, tile.block_n),),
            x,
            w,
            out_PI,
            plan.sorted_pairs,
            plan.expert_offsets_E1,
            plan.tile_expert,
            plan.tile_row,
            plan.max_tiles,
            hidden,
            width,
            TOP_K=plan.top_k,
            DOT=dot_dtype(x.dtype),
            EVEN_H=hidden % tile.block_k == 0,
            BLOCK_M=plan.block_m,
            BLOCK_N=tile.block_n,
            BLOCK_K=tile.block_k,
            GROUP_M=tile.group_m,
            num_warps=tile.num_warps,
            num_stages=tile.num_stages,
        )
    return out_PI.to(out_dtype)


def saves(x_TH: torch.Tensor, w_gate_up: torch.Tensor, block_m: int) -> bool:
    """Return whether `grouped_swiglu` can keep the pre-activations of these plain operands on its
    way.
    """
    if not is_wide(x_TH, w_gate_up) or gathers_rows():
        return False
    described = chosen_path(None, x_TH, w_gate_up, block_m) == "descriptors"
    return keeps_registers(target(), block_m, described)


def keeps_registers(target: str, block_m: int, described: bool) -> bool:
    """Return whether a GPU has registers to keep pre-activations: Hopper's largest tile has none
    left beside pointers.
    """
    return described or target != "sm_90" or block_m < DESCRIBED_ROWS


def grouped_swiglu_reference(
    x_TH: Operand, w_gate_up: Operand, plan: Plan, *, out_dtype: torch.dtype | None = None
) -> torch.Tensor:
    """Compute `grouped_swiglu` in torch: float32 products of the stored numbers, expert by expert,
    rounded where the kernel rounds.
    """
    _check(x_TH, w_gate_up, plan)
    rows_PH = float_rows(x_TH)[plan.sorted_pairs.long() // plan.top_k]
    parts = []
    for rows, w in zip(
        rows_PH.split(plan.expert_offsets_E1.diff().tolist()),
        float_matrices(w_gate_up),
        strict=True,
    ):
        gate, up = (rows @ w.T).chunk(2, dim=1)
        parts.append(torch.nn.functional.silu(gate) * up)
    return torch.cat(parts).to(out_dtype or result_dtype(x_TH))
