"""Gather, gate and up projections and SwiGLU of all experts in one kernel.

Row r of the result belongs to pair ``plan.sorted_pairs[r]``: silu(x W_gate^T) * (x W_up^T) with that pair's token and
expert. Rows 0..I-1 of an expert's ``w_gate_up`` are W_gate, rows I..2I-1 are W_up. Tokens are read where they lie (no
permuted copy), both products accumulate in float32, and only the activation is rounded and stored.
"""

import torch
from moesim_kernels.plan import Plan, program_tile
from moesim_kernels.runtime import dot_dtype, jit, limits, require_float, require_triton, store_dtype, tl, triton
from moesim_kernels.tiles import Tile, tile_config


@jit
def _swiglu_kernel(x_ptr, w_ptr, out_ptr, sorted_pairs_ptr, offsets_ptr, tile_expert_ptr, tile_row_ptr, max_tiles,
                   hidden, width, TOP_K: tl.constexpr, DOT: tl.constexpr, EVEN_H: tl.constexpr, BLOCK_M: tl.constexpr,
                   BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP_M: tl.constexpr):
    expert, rows, exists, pairs, block_n = program_tile(sorted_pairs_ptr, offsets_ptr, tile_expert_ptr, tile_row_ptr,
                                                        max_tiles, tl.cdiv(width, BLOCK_N), BLOCK_M, GROUP_M)
    if expert < 0:
        return
    n = block_n * BLOCK_N + tl.arange(0, BLOCK_N)
    h = tl.arange(0, BLOCK_K)
    x_at = x_ptr + (pairs // TOP_K).to(tl.int64)[:, None] * hidden + h[None, :]
    gate_at = w_ptr + (expert * 2 * width + n)[None, :] * hidden + h[:, None]
    up_at = w_ptr + ((expert * 2 + 1) * width + n)[None, :] * hidden + h[:, None]
    gate = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    up = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for start in range(0, hidden, BLOCK_K):
        if EVEN_H:
            x_mask = exists[:, None]
            w_mask = (n < width)[None, :]
        else:
            x_mask = exists[:, None] & (h < hidden - start)[None, :]
            w_mask = (n < width)[None, :] & (h < hidden - start)[:, None]
        x = tl.load(x_at, mask=x_mask, other=0.0).to(DOT)
        gate = tl.dot(x, tl.load(gate_at, mask=w_mask, other=0.0).to(DOT), gate, input_precision="ieee")
        up = tl.dot(x, tl.load(up_at, mask=w_mask, other=0.0).to(DOT), up, input_precision="ieee")
        x_at += BLOCK_K
        gate_at += BLOCK_K
        up_at += BLOCK_K
    out = gate / (1.0 + tl.exp(-gate)) * up
    out_at = out_ptr + rows.to(tl.int64)[:, None] * width + n[None, :]
    tl.store(out_at, out.to(out_ptr.dtype.element_ty), mask=exists[:, None] & (n < width)[None, :])


def _check(x_TH: torch.Tensor, w_gate_up: torch.Tensor, plan: Plan) -> None:
    require_float("x_TH", x_TH)
    shape = tuple(w_gate_up.shape)
    if x_TH.ndim != 2 or len(shape) != 3 or shape[0] != plan.num_experts or shape[1] % 2 or shape[2] != x_TH.shape[1]:
        raise ValueError(f"expected x_TH of shape (T, H) and w_gate_up of shape (E = {plan.num_experts}, 2I, H), got "
                         f"{tuple(x_TH.shape)} and {shape}")
    if x_TH.dtype != w_gate_up.dtype:
        raise ValueError(f"w_gate_up: expected {x_TH.dtype} as x_TH, got {w_gate_up.dtype}")
    if x_TH.shape[0] * plan.top_k != plan.num_rows:
        raise ValueError(f"plan: expected {x_TH.shape[0]} x {plan.top_k} pairs, got {plan.num_rows}")


def grouped_swiglu(x_TH: torch.Tensor, w_gate_up: torch.Tensor, plan: Plan,
                   config: Tile | None = None) -> torch.Tensor:
    """The experts' activations, in the plan's order.

    Args:
        x_TH: Tokens, bfloat16, float16 or float32 of shape (T, H), contiguous.
        w_gate_up: Weights in the same format, shape (E, 2I, H), contiguous.
        plan: Plan of the routing.
        config: Tile; by default from the mean load. Its block_m gives way to the plan's.

    Returns:
        Activations in the format of ``x_TH``, shape (P, I).

    Raises:
        ValueError: Shapes or formats that do not fit each other.
        RuntimeError: No Triton to launch with.
    """
    _check(x_TH, w_gate_up, plan)
    require_triton(x_TH, w_gate_up, plan.sorted_pairs)
    hidden, width = x_TH.shape[1], w_gate_up.shape[1] // 2
    out_PI = torch.empty(plan.num_rows, width, dtype=store_dtype(x_TH.dtype), device=x_TH.device)
    if plan.num_rows:
        tile = config or tile_config(plan.num_rows / plan.num_experts, width, operand_bits=x_TH.element_size() * 8,
                                     num_accumulators=2, block_m=plan.block_m, limits=limits())
        _swiglu_kernel[(plan.max_tiles * triton.cdiv(width, tile.block_n),)](
            x_TH, w_gate_up, out_PI, plan.sorted_pairs, plan.expert_offsets_E1, plan.tile_expert, plan.tile_row,
            plan.max_tiles, hidden, width, TOP_K=plan.top_k, DOT=dot_dtype(x_TH.dtype),
            EVEN_H=hidden % tile.block_k == 0, BLOCK_M=plan.block_m, BLOCK_N=tile.block_n, BLOCK_K=tile.block_k,
            GROUP_M=tile.group_m, num_warps=tile.num_warps, num_stages=tile.num_stages)
    return out_PI.to(x_TH.dtype)


def grouped_swiglu_reference(x_TH: torch.Tensor, w_gate_up: torch.Tensor, plan: Plan) -> torch.Tensor:
    """`grouped_swiglu` in torch: float32 products of the stored numbers, expert by expert, rounded where it rounds."""
    _check(x_TH, w_gate_up, plan)
    rows_PH = x_TH[plan.sorted_pairs.long() // plan.top_k].float()
    parts = []
    for rows, w in zip(rows_PH.split(plan.expert_offsets_E1.diff().tolist()), w_gate_up, strict=True):
        gate, up = (rows @ w.float().T).chunk(2, dim=1)
        parts.append(torch.nn.functional.silu(gate) * up)
    return torch.cat(parts).to(x_TH.dtype)
