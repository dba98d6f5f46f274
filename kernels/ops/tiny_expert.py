"""Compute experts of one to a few neurons, up to millions of them, by gathering vectors.

    for each token t and each neuron i of its K experts:        # _tiny_in_kernel
        act[t, k, i] = weight[t, k] x activation(w_in[e, i] . x[t])
    for each token t:                                           # _tiny_out_kernel
        out[t] = sum over k, i of act[t, k, i] x w_out[e, i]    # in the router's order

An expert of one neuron is a pair of vectors: it reads a token with one and writes with the other
(PEER, arXiv 2407.04153, section 2.2). Grouping tokens by expert has no point there, since hardly
any two tokens share an expert; each token gathers the rows of its experts where they are stored.
The first kernel computes the K x I activations of a token, router weights included, in float32. The
second sums its output rows in the order the router listed them, with no atomics, so the same
routing gives the same bits every time. All products run on the vector units: the cost is the bytes
of the gathered rows.
"""

from typing import Literal

import torch
from moesim_kernels.ops.chain import await_inputs
from moesim_kernels.ops.launches import launch
from moesim_kernels.ops.plan import check_ids
from moesim_kernels.ops.runtime import (
    cdiv,
    jit,
    next_power_of_2,
    require_float,
    require_triton,
    store_dtype,
    tl,
)
from moesim_kernels.ops.watch import IDS, Checked, looks, note, report

#: number of neurons and of columns that a program takes at once
BLOCK_P, BLOCK_H = 16, 256
# Rows of w_in for each neuron: a gate row and an up row, or a single row.
_ROWS = {"swiglu": 2, "gelu": 1}


@jit
def _activated(first, second, GATED: tl.constexpr):
    if GATED:
        return first / (1.0 + tl.exp(-first)) * second
    # The exact GELU, not its tanh approximation, as in PEER.
    return 0.5 * first * (1.0 + tl.erf(first * 0.7071067811865476))


@jit
def _tiny_in_kernel(
    x_ptr,
    w_ptr,
    ids_ptr,
    weights_ptr,
    act_ptr,
    num_neurons,
    hidden,
    width,
    top_k,
    num_experts,
    watch_ptr,
    GATED: tl.constexpr,
    WATCHED: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_H: tl.constexpr,
    PDL: tl.constexpr,
):
    await_inputs(PDL)
    t = tl.program_id(0).to(tl.int64)
    p = tl.program_id(1) * BLOCK_P + tl.arange(0, BLOCK_P)
    exists = p < num_neurons
    # Consecutive neurons of a token belong to the same expert, ``width`` of them at a time.
    pair = t * top_k + p // width
    given = tl.load(ids_ptr + pair, mask=exists, other=0)
    if WATCHED:
        note(watch_ptr, IDS, (given < 0) | (given >= num_experts), t + tl.zeros_like(given))
    # An id out of range is read as the nearest expert, so that no address is wrong.
    expert = tl.minimum(tl.maximum(given, 0), num_experts - 1).to(tl.int64)
    # With SwiGLU an expert has its gate rows first, then as many up rows.
    row = expert * (2 * width if GATED else width) + p % width
    # Products are added up lane by lane and across lanes once, at the end: the loop only loads and
    # multiplies.
    firsts = tl.zeros((BLOCK_P, BLOCK_H), tl.float32)
    seconds = tl.zeros((BLOCK_P, BLOCK_H), tl.float32)
    for start in range(0, hidden, BLOCK_H):
        h = start + tl.arange(0, BLOCK_H)
        mask = exists[:, None] & (h < hidden)[None, :]
        x = tl.load(x_ptr + t * hidden + h, mask=h < hidden, other=0.0).to(tl.float32)[None, :]
        at = w_ptr + row[:, None] * hidden + h[None, :]
        firsts += tl.load(at, mask=mask, other=0.0).to(tl.float32) * x
        if GATED:
            at = w_ptr + (row + width)[:, None] * hidden + h[None, :]
            seconds += tl.load(at, mask=mask, other=0.0).to(tl.float32) * x
    act = _activated(tl.sum(firsts, axis=1), tl.sum(seconds, axis=1), GATED)
    # Weighted here, so that the second kernel is a plain sum.
    weight = tl.load(weights_ptr + pair, mask=exists, other=0.0)
    tl.store(act_ptr + t * num_neurons + p, weight * act, mask=exists)


@jit
def _tiny_out_kernel(
    act_ptr,
    w_ptr,
    ids_ptr,
    out_ptr,
    num_neurons,
    hidden,
    width,
    top_k,
    num_experts,
    BLOCK_P: tl.constexpr,
    BLOCK_H: tl.constexpr,
    PDL: tl.constexpr,
):
    await_inputs(PDL)
    t = tl.program_id(0).to(tl.int64)
    h = tl.program_id(1) * BLOCK_H + tl.arange(0, BLOCK_H)
    # One program sums all neurons of a token in a fixed order, so the result is deterministic; as
    # above, it adds across rows once, at the end.
    totals = tl.zeros((BLOCK_P, BLOCK_H), tl.float32)
    for start in range(0, num_neurons, BLOCK_P):
        p = start + tl.arange(0, BLOCK_P)
        exists = p < num_neurons
        expert = tl.load(ids_ptr + t * top_k + p // width, mask=exists, other=0)
        expert = tl.minimum(tl.maximum(expert, 0), num_experts - 1).to(tl.int64)
        act = tl.load(act_ptr + t * num_neurons + p, mask=exists, other=0.0)
        rows = tl.load(
            w_ptr + (expert * width + p % width)[:, None] * hidden + h[None, :],
            mask=exists[:, None] & (h < hidden)[None, :],
            other=0.0,
        )
        totals += act[:, None] * rows.to(tl.float32)
    tl.store(
        out_ptr + t * hidden + h,
        tl.sum(totals, axis=0).to(out_ptr.dtype.element_ty),
        mask=h < hidden,
    )


def _check(
    x_TH: torch.Tensor,
    w_in: torch.Tensor,
    w_out_EIH: torch.Tensor,
    ids_TK: torch.Tensor,
    weights_TK: torch.Tensor,
    activation: str,
) -> None:
    require_float("x_TH", x_TH)
    if activation not in _ROWS:
        raise ValueError(
            f"activation: expected {' or '.join(map(repr, _ROWS))}, got {activation!r}"
        )
    if (
        x_TH.ndim != 2
        or w_out_EIH.ndim != 3
        or w_out_EIH.shape[2] != x_TH.shape[1]
        or 0 in w_out_EIH.shape
    ):
        raise ValueError(
            "expected x_TH of shape (T, H) and w_out_EIH of shape (E, I, H), got "
            f"{tuple(x_TH.shape)} and {tuple(w_out_EIH.shape)}"
        )
    # w_in has as many rows per neuron as the activation reads.
    experts, width, hidden = w_out_EIH.shape
    if w_in.shape != (experts, _ROWS[activation] * width, hidden):
        raise ValueError(
            f"w_in: expected shape ({experts}, {_ROWS[activation] * width}, {hidden}), got "
            f"{tuple(w_in.shape)}"
        )
    if not x_TH.dtype == w_in.dtype == w_out_EIH.dtype:
        raise ValueError(
            f"w_in, w_out_EIH: expected {x_TH.dtype} as x_TH, got {w_in.dtype}, {w_out_EIH.dtype}"
        )
    for name, tensor, dtype in (
        ("ids_TK", ids_TK, torch.int32),
        ("weights_TK", weights_TK, torch.float32),
    ):
        if (
            tensor.dtype != dtype
            or tensor.ndim != 2
            or tensor.shape != (len(x_TH), ids_TK.shape[1])
        ):
            raise ValueError(
                f"{name}: expected {dtype} of shape ({len(x_TH)}, K), got {tensor.dtype} of shape "
                f"{tuple(tensor.shape)}"
            )


def tiny_expert(
    x_TH: torch.Tensor,
    w_in: torch.Tensor,
    w_out_EIH: torch.Tensor,
    ids_TK: torch.Tensor,
    weights_TK: torch.Tensor,
    activation: Literal["swiglu", "gelu"] = "swiglu",
    *,
    checked: Checked = True,
) -> torch.Tensor:
    """Return the weighted sum of each token's tiny experts.

    Args:
        x_TH: Tokens, bfloat16, float16, or float32 of shape (T, H), contiguous.
        w_in: Input rows in the same format, contiguous: the gate rows of every expert followed by
            its up rows, shape (E, 2I, H); for GELU shape (E, I, H).
        w_out_EIH: Output rows in the same format, shape (E, I, H), contiguous; this is the
            transpose of a down projection.
        ids_TK: Expert ids, int32 of shape (T, K), contiguous; each must lie in 0..E-1.
        weights_TK: Router weights, float32 of shape (T, K), contiguous.
        activation: "swiglu", or "gelu" (exact, as in PEER).
        checked: Whether ids out of range are refused, with the first token named. On a CPU they
            always are. On a GPU True waits for the device, and "later" waits for nothing: the next
            checked call or `moesim_kernels.ops.watch.synchronize` raises. Otherwise, and while a
            graph is recorded, they are read as the nearest expert.

    Returns:
        A tensor of shape (T, H) in the format of ``x_TH``; summed in float32, rounded once.

    Raises:
        ValueError: Shapes or formats do not fit each other, or an id is out of range.
        RuntimeError: Triton cannot launch kernels here.
    """
    _check(x_TH, w_in, w_out_EIH, ids_TK, weights_TK, activation)
    require_triton(x_TH, w_in, w_out_EIH, ids_TK, weights_TK)
    (experts, width, hidden), (num_tokens, top_k) = w_out_EIH.shape, ids_TK.shape
    looked_at, watch = looks(checked, x_TH)
    report(watch)
    # Interpreted kernels always have their ids checked.
    if looked_at or ids_TK.device.type == "cpu":
        check_ids(ids_TK, experts)
    neurons = top_k * width
    act_TP = torch.empty(num_tokens, neurons, dtype=torch.float32, device=x_TH.device)
    out_TH = torch.empty(num_tokens, hidden, dtype=store_dtype(x_TH.dtype), device=x_TH.device)
    if num_tokens:
        # Narrow layers get one block as wide as a row instead of mostly masked lanes.
        block_h = min(BLOCK_H, next_power_of_2(hidden))
        if neurons:
            launch(
                _tiny_in_kernel,
                (num_tokens, cdiv(neurons, BLOCK_P)),
                x_TH,
                w_in,
                ids_TK,
                weights_TK,
                act_TP,
                neurons,
                hidden,
                width,
                top_k,
                experts,
                watch,
                GATED=activation == "swiglu",
                WATCHED=watch is not None,
                BLOCK_P=BLOCK_P,
                BLOCK_H=block_h,
            )
        launch(
            _tiny_out_kernel,
            (num_tokens, cdiv(hidden, block_h)),
            act_TP,
            w_out_EIH,
            ids_TK,
            out_TH,
            neurons,
            hidden,
            width,
            top_k,
            experts,
            BLOCK_P=BLOCK_P,
            BLOCK_H=block_h,
        )
    return out_TH.to(x_TH.dtype)


def tiny_expert_reference(
    x_TH: torch.Tensor,
    w_in: torch.Tensor,
    w_out_EIH: torch.Tensor,
    ids_TK: torch.Tensor,
    weights_TK: torch.Tensor,
    activation: Literal["swiglu", "gelu"] = "swiglu",
) -> torch.Tensor:
    """Compute `tiny_expert` in torch; this copies the rows of all pairs."""
    _check(x_TH, w_in, w_out_EIH, ids_TK, weights_TK, activation)
    check_ids(ids_TK, len(w_in))
    ids = ids_TK.long()
    # The gathered copies make this readable, not fast.
    read_TKI = torch.einsum("tkih,th->tki", w_in[ids].float(), x_TH.float())
    if activation == "swiglu":
        gate_TKI, up_TKI = read_TKI.chunk(2, dim=2)
        act_TKI = torch.nn.functional.silu(gate_TKI) * up_TKI
    else:
        act_TKI = torch.nn.functional.gelu(read_TKI)
    out_TH = torch.einsum("tki,tkih->th", act_TKI * weights_TK[:, :, None], w_out_EIH[ids].float())
    return out_TH.to(x_TH.dtype)
