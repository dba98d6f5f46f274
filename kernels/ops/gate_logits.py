"""Compute the logits of a gate, with the hidden size cut into parts so that few tokens and experts
keep the whole GPU busy.

    for each part s of the hidden size, tile of tokens t and tile of experts e:   # one program each
        for each step k of the part:  acc[t, e] += x[t, k] @ keys[e, k].T
        logits[s, t, e] = acc
    # the router adds the parts in their order where it loads them

A gate is a small product: 2,048 tokens and 256 experts are 32 tiles of 128 x 128, a quarter of an
H100, and 16 tokens are one or two. Parts of the hidden size fill the rest. They are written side by
side instead of added by atomics, so every run gives the same sums, and no kernel of its own adds
them.
"""

import torch
from moesim_kernels.ops.chain import await_inputs
from moesim_kernels.ops.launches import launch
from moesim_kernels.ops.runtime import (
    cdiv,
    dot_dtype,
    jit,
    limits,
    next_power_of_2,
    num_sms,
    require_float,
    require_triton,
    tl,
)
from moesim_kernels.tiles.tiles import Limits

#: the least depth of a part, the most parts, and the most experts whose logits come in parts
LEAST_DEPTH, MOST_PARTS, MOST_PARTED = 256, 16, 2048


@jit
def _gate_logits_kernel(
    x_ptr,
    keys_ptr,
    logits_ptr,
    num_tokens,
    num_experts,
    hidden,
    steps,
    DOT: tl.constexpr,
    EVEN: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_E: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PDL: tl.constexpr,
):
    await_inputs(PDL)
    # Tiles of experts are neighbors, so that tokens are read from memory once. Inside a tile
    # offsets are 32-bit numbers, of which registers hold twice as many as of addresses.
    blocks_e = tl.cdiv(num_experts, BLOCK_E)
    first_t = (tl.program_id(0) // blocks_e).to(tl.int64) * BLOCK_T
    first_e = (tl.program_id(0) % blocks_e).to(tl.int64) * BLOCK_E
    depth = steps * BLOCK_K
    t = tl.arange(0, BLOCK_T)
    e = tl.arange(0, BLOCK_E)
    k = tl.program_id(1) * depth + tl.arange(0, BLOCK_K)
    tokens = (num_tokens - first_t).to(tl.int32)
    experts = (num_experts - first_e).to(tl.int32)
    # Rows past the last repeat it and are not stored, which saves a mask in the loop.
    x_at = x_ptr + first_t * hidden + (tl.minimum(t, tokens - 1)[:, None] * hidden + k[None, :])
    keys_at = (
        keys_ptr + first_e * hidden + (tl.minimum(e, experts - 1)[None, :] * hidden + k[:, None])
    )
    total = tl.zeros((BLOCK_T, BLOCK_E), tl.float32)
    for start in range(0, depth, BLOCK_K):
        if EVEN:
            x = tl.load(x_at + start).to(DOT)
            keys = tl.load(keys_at + start).to(DOT)
        else:
            inside = k < hidden - start
            x = tl.load(x_at + start, mask=inside[None, :], other=0.0).to(DOT)
            keys = tl.load(keys_at + start, mask=inside[:, None], other=0.0).to(DOT)
        total = tl.dot(x, keys, total, input_precision="ieee")
    out_ptr = (
        logits_ptr + (tl.program_id(1).to(tl.int64) * num_tokens + first_t) * num_experts + first_e
    )
    tl.store(
        out_ptr + (t[:, None] * num_experts + e[None, :]),
        total,
        mask=(t < tokens)[:, None] & (e < experts)[None, :],
    )


def gate_tile(
    num_tokens: int, num_experts: int, element_bytes: int, limits: Limits
) -> tuple[int, int, int, int, int]:
    """Return the tokens, experts and depth of a tile, its warps and its stages."""
    block_t = 16 if num_tokens <= 16 else 64 if num_tokens <= 512 else 128
    block_e = min(max(next_power_of_2(num_experts), 16), 32 if num_tokens <= 16 else 128)
    if element_bytes == 4:
        # Vector units multiply these and keep operands and sums in registers.
        return min(block_t, 32), min(block_e, 64), 32, 4, 2
    block_k = 128 if block_t == 16 else 64
    stages = min(4, limits.shared_bytes // ((block_t + block_e) * block_k * element_bytes))
    return block_t, block_e, block_k, 8 if block_t * block_e >= 128 * 128 else 4, max(stages, 1)


def part_steps(num_tiles: int, num_experts: int, hidden: int, block_k: int) -> int:
    """Return the number of steps of a part, so that parts fill the multiprocessors and each has
    some depth.

    Rows of very many experts come whole: the router's registers have no room for their parts.
    """
    most = MOST_PARTS if num_experts <= MOST_PARTED else 1
    parts = max(min(num_sms() // max(num_tiles, 1), most, hidden // LEAST_DEPTH), 1)
    return cdiv(cdiv(hidden, parts), block_k)


def gate_parts(x_TH: torch.Tensor, keys_EH: torch.Tensor) -> torch.Tensor:
    """Return parts of the logits x K^T of a flat gate, which add up to them.

    Args:
        x_TH: Tokens of shape (T, H), contiguous.
        keys_EH: Keys in the same format, shape (E, H), contiguous.

    Returns:
        float32 of shape (S, T, E): S parts, to be added in their order.

    Raises:
        ValueError: Shapes or formats do not fit each other.
        RuntimeError: Triton cannot launch kernels here.
    """
    require_float("x_TH", x_TH)
    if (
        x_TH.ndim != 2
        or keys_EH.ndim != 2
        or x_TH.shape[1] != keys_EH.shape[1]
        or x_TH.dtype != keys_EH.dtype
    ):
        raise ValueError(
            f"expected x_TH of shape (T, H) and keys_EH of shape (E, H) in one format, got "
            f"{tuple(x_TH.shape)} of {x_TH.dtype} and {tuple(keys_EH.shape)} of {keys_EH.dtype}"
        )
    require_triton(x_TH, keys_EH)
    (num_tokens, hidden), num_experts = x_TH.shape, len(keys_EH)
    block_t, block_e, block_k, warps, stages = gate_tile(
        num_tokens, num_experts, x_TH.element_size(), limits()
    )
    tiles = cdiv(num_tokens, block_t) * cdiv(num_experts, block_e)
    steps = part_steps(tiles, num_experts, hidden, block_k)
    parts = max(cdiv(hidden, steps * block_k), 1)
    logits_STE = torch.empty(
        parts, num_tokens, num_experts, dtype=torch.float32, device=x_TH.device
    )
    if logits_STE.numel():
        launch(
            _gate_logits_kernel,
            (tiles, parts),
            x_TH,
            keys_EH,
            logits_STE,
            num_tokens,
            num_experts,
            hidden,
            steps,
            DOT=dot_dtype(x_TH.dtype),
            EVEN=hidden == parts * steps * block_k,
            BLOCK_T=block_t,
            BLOCK_E=block_e,
            BLOCK_K=block_k,
            num_warps=warps,
            num_stages=stages,
        )
    return logits_STE


def gate_logits(x_TH: torch.Tensor, keys_EH: torch.Tensor) -> torch.Tensor:
    """Return the float32 logits x K^T of a flat gate, shape (T, E); arguments and errors are those
    of `gate_parts`.
    """
    parts_STE = gate_parts(x_TH, keys_EH)
    return parts_STE[0] if len(parts_STE) == 1 else parts_STE.sum(0)
