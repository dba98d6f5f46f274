"""Compute logits and choose experts in one kernel, for many tokens and few experts.

    for each block of tokens t:                                    # one program each
        for each step k of the hidden size:  acc[t, e] += x[t, k] @ keys[e, k].T    # all experts
        ids, weights = select(acc)                                 # router_kernel.py
        count the choices for a plan

A program holds the logits of its tokens for all experts, so they never leave its registers. It
reads all keys, which pays where blocks of tokens alone fill the GPU; with fewer tokens the hidden
size is cut into parts (`moesim_kernels.ops.gate_logits`), and the router is a kernel of its own.
The rules are those of `moesim_kernels.ops.router`.
"""

import torch
from moesim_kernels.ops.chain import await_inputs
from moesim_kernels.ops.counting_sort import Segments
from moesim_kernels.ops.launches import launch
from moesim_kernels.ops.router_kernel import (
    lanes,
    select,
    store_histogram,
    weights_of,
    with_noise,
)
from moesim_kernels.ops.router_options import Options
from moesim_kernels.ops.runtime import (
    cdiv,
    dot_dtype,
    jit,
    limits,
    next_power_of_2,
    num_sms,
    require_triton,
    tl,
)
from moesim_kernels.tiles.tiles import Limits

#: tokens of a program at most, its depth of a step, and the most lanes of a row that it holds
BLOCK_T, BLOCK_H, MOST_LANES = 64, 64, 256


@jit
def _fused_gate_kernel(
    x_ptr,
    keys_ptr,
    bias_ptr,
    missing_ptr,
    weights_ptr,
    ids_ptr,
    counts_ptr,
    table_ptr,
    watch_ptr,
    num_tokens,
    num_groups,
    num_limited_groups,
    per_group,
    hidden,
    top_k,
    seed,
    inverse_temperature,
    noise_std,
    SIGMOID: tl.constexpr,
    GROUPED: tl.constexpr,
    BIASED: tl.constexpr,
    MASKED: tl.constexpr,
    WATCHED: tl.constexpr,
    NOISY: tl.constexpr,
    COUNTED: tl.constexpr,
    EVEN: tl.constexpr,
    DOT: tl.constexpr,
    BINS: tl.constexpr,
    SEGMENT_T: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_G: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_H: tl.constexpr,
    PDL: tl.constexpr,
):
    await_inputs(PDL)
    first = tl.program_id(0).to(tl.int64) * BLOCK_T
    t = tl.arange(0, BLOCK_T)
    h = tl.arange(0, BLOCK_H)
    _, expert, is_expert = lanes(num_groups, per_group, BLOCK_G, BLOCK_S)
    # Rows past the last repeat it, which saves a mask in the loop; they are not chosen, nor stored.
    tokens = (num_tokens - first).to(tl.int32)
    x_at = x_ptr + first * hidden + (tl.minimum(t, tokens - 1)[:, None] * hidden + h[None, :])
    row = tl.minimum(expert, num_groups * per_group - 1)
    keys_at = keys_ptr + (row[None, :] * hidden + h[:, None])
    logits = tl.zeros((BLOCK_T, BLOCK_G * BLOCK_S), tl.float32)
    for start in range(0, hidden, BLOCK_H):
        if EVEN:
            x = tl.load(x_at + start).to(DOT)
            keys = tl.load(keys_at + start).to(DOT)
        else:
            inside = h < hidden - start
            x = tl.load(x_at + start, mask=inside[None, :], other=0.0).to(DOT)
            keys = tl.load(keys_at + start, mask=inside[:, None], other=0.0).to(DOT)
        logits = tl.dot(x, keys, logits)
    token = (first + t)[:, None]
    exists = (t < tokens)[:, None] & is_expert[None, :]
    logits = with_noise(logits, token, expert[None, :], inverse_temperature, noise_std, seed, NOISY)
    chosen_key, chosen_id = select(
        logits,
        exists,
        token,
        bias_ptr,
        missing_ptr,
        watch_ptr,
        num_groups,
        num_limited_groups,
        per_group,
        top_k,
        SIGMOID,
        GROUPED,
        BIASED,
        MASKED,
        WATCHED,
        True,
        BLOCK_T,
        BLOCK_G,
        BLOCK_S,
        BLOCK_K,
    )
    slot = tl.arange(0, BLOCK_K)[None, :]
    writes = (t < tokens)[:, None] & (slot < top_k)
    out = token * top_k + slot
    tl.store(weights_ptr + out, weights_of(chosen_key, top_k, SIGMOID, BLOCK_K), mask=writes)
    tl.store(ids_ptr + out, chosen_id, mask=writes)
    if COUNTED:
        tl.atomic_add(counts_ptr + chosen_id, 1, mask=writes, sem="relaxed")
    if BINS:
        store_histogram(table_ptr, chosen_id, num_tokens, top_k, BINS, BLOCK_T, BLOCK_K, SEGMENT_T)


def fuses(x_TH: torch.Tensor, num_experts: int, num_groups: int) -> bool:
    """Return whether a gate is computed by `fused_gate`: 16-bit operands, rows of at most 256
    lanes, and tokens for every multiprocessor.
    """
    block_g = next_power_of_2(num_groups)
    block_s = next_power_of_2(num_experts // num_groups)
    return (
        x_TH.element_size() == 2
        and block_g * block_s <= MOST_LANES
        and len(x_TH) >= BLOCK_T * num_sms()
    )


def fused_tile(lanes: int, limits: Limits, biased: bool) -> tuple[int, int, int]:
    """Return the tokens, warps and stages of a program with this many lanes in a row."""
    # With a bias a program keeps the logits beside the numbers that choose.
    block_t = BLOCK_T // 2 if biased and lanes > 128 else BLOCK_T
    stages = limits.shared_bytes // ((BLOCK_T + max(lanes, 16)) * BLOCK_H * 2)
    # Three stages of 64 lanes spill on GPUs with less than 128 KiB of shared memory.
    most = 4 if limits.shared_bytes >= 128 * 1024 else 2
    return block_t, (8 if lanes > 64 else 4), max(min(stages, most), 1)


def fused_gate(
    x_TH: torch.Tensor,
    keys_EH: torch.Tensor,
    top_k: int,
    score: str,
    num_groups: int,
    num_limited_groups: int,
    options: Options,
    segments: Segments | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Choose experts by the rules of `moesim_kernels.ops.router` where `fuses` is true.

    Args:
        x_TH: Tokens of shape (T, H), contiguous.
        keys_EH: Keys in the same format, shape (E, H), contiguous.
        top_k: Number of experts each token uses.
        score: Score function, "softmax" or "sigmoid".
        num_groups: Number of groups of consecutive experts; 1 for a flat gate.
        num_limited_groups: Number of groups a token may use.
        options: Bias, noise, temperature, histogram, and missing experts; NaN counts as -inf.
        segments: Memory in which the choices are counted for a plan; None for no counts.

    Returns:
        Weights, float32 of shape (T, K), each row summing to 1; expert ids, int32 of shape (T, K).

    Raises:
        ValueError: Options do not fit the logits.
        RuntimeError: Triton cannot launch kernels here.
    """
    (num_tokens, hidden), num_experts = x_TH.shape, len(keys_EH)
    options.check_shapes(num_experts)
    require_triton(*(x for x in (x_TH, keys_EH, *options.tensors) if x is not None))
    block_g = next_power_of_2(num_groups)
    block_s = next_power_of_2(num_experts // num_groups)
    # A matrix unit multiplies no fewer than 16 columns.
    block_s = max(block_s, 16 // block_g)
    block_t, warps, stages = fused_tile(block_g * block_s, limits(), options.bias_E is not None)
    weights_TK = torch.empty(num_tokens, top_k, dtype=torch.float32, device=x_TH.device)
    ids_TK = torch.empty(num_tokens, top_k, dtype=torch.int32, device=x_TH.device)
    noisy = options.noise_std > 0
    launch(
        _fused_gate_kernel,
        (cdiv(num_tokens, block_t),),
        x_TH,
        keys_EH,
        options.bias_E,
        options.missing_E,
        weights_TK,
        ids_TK,
        options.counts_E,
        None if segments is None else segments.counts_SE,
        options.watch,
        num_tokens,
        num_groups,
        num_limited_groups,
        num_experts // num_groups,
        hidden,
        top_k,
        options.seed,
        1.0 / options.temperature,
        options.noise_std,
        SIGMOID=score == "sigmoid",
        GROUPED=num_limited_groups < num_groups,
        BIASED=options.bias_E is not None,
        MASKED=options.missing_E is not None,
        WATCHED=options.watch is not None,
        NOISY=noisy,
        COUNTED=options.counts_E is not None,
        EVEN=hidden % BLOCK_H == 0,
        DOT=dot_dtype(x_TH.dtype),
        BINS=0 if segments is None else segments.counts_SE.shape[1],
        SEGMENT_T=block_t if segments is None else segments.tokens,
        BLOCK_T=block_t,
        BLOCK_G=block_g,
        BLOCK_S=block_s,
        BLOCK_K=next_power_of_2(top_k),
        BLOCK_H=BLOCK_H,
        num_warps=warps,
        num_stages=stages,
        # A product fused with a sum would be rounded once where the reference rounds twice.
        **({"enable_fp_fusion": False} if noisy else {}),
    )
    return weights_TK, ids_TK
