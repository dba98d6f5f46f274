"""Run the second half of the experts: down projection and combine.

    y_PH[p]   = act_PI[row of pair p] @ W_down[expert of p].T        # grouped_down
    for each token t:                                                # combine
        out[t] = sum over k of weights[t, k] x y_PH[t x K + k]       # float32, router's order

The projection leaves one row per (token, expert) pair. The combine sums the K rows of a token in
float32, in the order the router listed them, with no atomics, so the same routing gives the same
bits every time. Where every token has one expert, there is nothing to sum, and the projection
multiplies by the weights itself. With more, its programs would have to wait for each other to add
in a fixed order.
"""

import torch
from moesim_kernels.ops.chain import await_inputs
from moesim_kernels.ops.gemm_paths import Path
from moesim_kernels.ops.grouped_linear import grouped_linear, grouped_linear_reference
from moesim_kernels.ops.launches import launch
from moesim_kernels.ops.operands import Operand
from moesim_kernels.ops.plan import Plan
from moesim_kernels.ops.runtime import (
    cdiv,
    jit,
    next_power_of_2,
    require_float,
    require_triton,
    store_dtype,
    tile_rows,
    tl,
)
from moesim_kernels.tiles.tiles import Tile


def grouped_down(
    act_PI: Operand,
    w_down: Operand,
    plan: Plan,
    config: Tile | None = None,
    *,
    out_dtype: torch.dtype | None = None,
    path: Path | None = None,
    weights_TK: torch.Tensor | None = None,
) -> torch.Tensor:
    """Project the activations back to the hidden size.

    Args:
        act_PI: Activations in the plan's order, shape (P, I), contiguous; or `BlockScaled` by rows.
        w_down: Weights in the same format, shape (E, H, I), contiguous; or `BlockScaled`.
        plan: Plan for this routing.
        config: Tile; by default chosen from the mean load. The plan's block_m replaces its own.
        out_dtype: Format of the result; by default the format of ``act_PI``, or bfloat16 for scaled
            activations.
        path: "pointers" or "descriptors" (see `moesim_kernels.ops.persistent`); by default the one
            that suits this GPU.
        weights_TK: Router weights, float32 of shape (T, 1), contiguous, of tokens with one expert
            each: then the result is combined. None for a `combine` that follows.

    Returns:
        A tensor of shape (P, H), with row p for pair p = t x K + j.

    Raises:
        ValueError: Shapes or formats do not fit each other.
        RuntimeError: Triton cannot launch kernels here.
    """
    if weights_TK is not None:
        _check_weights(weights_TK)
        if plan.top_k != 1 or len(weights_TK) != plan.num_rows:
            raise ValueError(
                f"weights_TK: expected shape ({plan.num_rows}, 1) and one expert for each token, "
                f"got {tuple(weights_TK.shape)} and {plan.top_k}"
            )
    return grouped_linear(
        act_PI,
        w_down,
        plan,
        gather=False,
        config=config,
        out_dtype=out_dtype,
        path=path,
        weights_TK=weights_TK,
    )


def grouped_down_reference(
    act_PI: Operand, w_down: Operand, plan: Plan, *, out_dtype: torch.dtype | None = None
) -> torch.Tensor:
    """Compute `grouped_down` in torch."""
    return grouped_linear_reference(act_PI, w_down, plan, gather=False, out_dtype=out_dtype)


#: experts of a token up to which their rows are asked for all at once, and columns a program takes
UNROLLED, MOST_COLUMNS = 16, 1024


@jit
def _combine_kernel(
    y_ptr,
    weights_ptr,
    out_ptr,
    num_tokens,
    hidden,
    TOP_K: tl.constexpr,
    UNROLLED: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_H: tl.constexpr,
    PDL: tl.constexpr,
):
    await_inputs(PDL)
    # 64-bit indices, since pairs x hidden size can exceed 2^31 elements.
    t = tl.program_id(0).to(tl.int64) * BLOCK_T + tl.arange(0, BLOCK_T)
    h = tl.program_id(1) * BLOCK_H + tl.arange(0, BLOCK_H)
    mask = (t < num_tokens)[:, None] & (h < hidden)[None, :]
    total = tl.zeros((BLOCK_T, BLOCK_H), tl.float32)
    # Unrolled, the loads of all rows are under way together.
    if UNROLLED:
        for k in tl.static_range(TOP_K):
            total += _weighted(y_ptr, weights_ptr, t, h, k, mask, num_tokens, hidden, TOP_K)
    else:
        for k in range(TOP_K):
            total += _weighted(y_ptr, weights_ptr, t, h, k, mask, num_tokens, hidden, TOP_K)
    tl.store(
        out_ptr + t[:, None] * hidden + h[None, :], total.to(out_ptr.dtype.element_ty), mask=mask
    )


@jit
def _weighted(y_ptr, weights_ptr, t, h, k, mask, num_tokens, hidden, TOP_K: tl.constexpr):
    pair = t * TOP_K + k
    weight = tl.load(weights_ptr + pair, mask=t < num_tokens, other=0.0)
    y = tl.load(y_ptr + pair[:, None] * hidden + h[None, :], mask=mask, other=0.0)
    return weight[:, None] * y.to(tl.float32)


def combine_blocks(num_tokens: int, hidden: int) -> tuple[int, int]:
    """Return the rows and columns that a program of `combine` takes: fewer of few tokens, since
    every multiprocessor should get some.
    """
    block_h = min(MOST_COLUMNS if num_tokens >= 128 else MOST_COLUMNS // 4, next_power_of_2(hidden))
    return tile_rows(num_tokens, 2 * block_h, cdiv(hidden, block_h)), block_h


def _check_weights(weights_TK: torch.Tensor) -> None:
    if weights_TK.ndim != 2 or weights_TK.dtype != torch.float32:
        raise ValueError(
            f"weights_TK: expected float32 of shape (T, K), got {weights_TK.dtype} of shape "
            f"{tuple(weights_TK.shape)}"
        )


def _check(y_PH: torch.Tensor, weights_TK: torch.Tensor) -> None:
    require_float("y_PH", y_PH)
    _check_weights(weights_TK)
    # One row of y_PH for each router weight.
    if y_PH.ndim != 2 or y_PH.shape[0] != weights_TK.numel():
        raise ValueError(f"y_PH: expected shape ({weights_TK.numel()}, H), got {tuple(y_PH.shape)}")


def combine(y_PH: torch.Tensor, weights_TK: torch.Tensor) -> torch.Tensor:
    """Sum every token's expert outputs, weighted by the router.

    Args:
        y_PH: Expert outputs, row p for pair p = t x K + j, shape (P, H), contiguous.
        weights_TK: Router weights, float32 of shape (T, K), contiguous.

    Returns:
        A tensor of shape (T, H) in the format of ``y_PH``; summed in float32, rounded once.

    Raises:
        ValueError: Shapes or formats do not fit each other.
        RuntimeError: Triton cannot launch kernels here.
    """
    _check(y_PH, weights_TK)
    require_triton(y_PH, weights_TK)
    (num_tokens, top_k), hidden = weights_TK.shape, y_PH.shape[1]
    out_TH = torch.empty(num_tokens, hidden, dtype=store_dtype(y_PH.dtype), device=y_PH.device)
    if num_tokens:
        block_t, block_h = combine_blocks(num_tokens, hidden)
        launch(
            _combine_kernel,
            (cdiv(num_tokens, block_t), cdiv(hidden, block_h)),
            y_PH,
            weights_TK,
            out_TH,
            num_tokens,
            hidden,
            TOP_K=top_k,
            UNROLLED=top_k <= UNROLLED,
            BLOCK_T=block_t,
            BLOCK_H=block_h,
        )
    return out_TH.to(y_PH.dtype)


def combine_reference(y_PH: torch.Tensor, weights_TK: torch.Tensor) -> torch.Tensor:
    """Compute `combine` in torch, with the same order of the same float32 sums."""
    _check(y_PH, weights_TK)
    y_TKH = y_PH.float().view(*weights_TK.shape, y_PH.shape[1])
    total_TH = torch.zeros_like(y_TKH[:, 0])
    # A loop and not torch's sum, which would add in another order.
    for j in range(weights_TK.shape[1]):
        total_TH = total_TH + weights_TK[:, j, None] * y_TKH[:, j]
    return total_TH.to(y_PH.dtype)
