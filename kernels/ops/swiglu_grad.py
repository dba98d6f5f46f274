"""Compute the gradient of SwiGLU and of the router's weights, in one pass over the pairs.

    for each pair p with pre-activations g, u, and z = W_down^T (gradient of its token's output):
        d_act = weight[p] * z;  act = silu(g) * u
        d_gate, d_up = d_act * u * silu'(g), d_act * silu(g)
        weighted[p] = weight[p] * act;  d_weight[p] = sum of z * act

In torch these are some fifteen passes over tensors as large as the layer's activations. Here each
number is read and written once. A program owns the whole row of a pair, so the sum needs no
atomics.
"""

import torch
from moesim_kernels.ops.chain import await_inputs
from moesim_kernels.ops.launches import launch
from moesim_kernels.ops.runtime import (
    jit,
    next_power_of_2,
    require_float,
    require_triton,
    store_dtype,
    tl,
)

#: columns of a step
BLOCK_I = 1024


@jit
def _swiglu_grad_kernel(
    gate_up_ptr,
    z_ptr,
    weights_ptr,
    d_gate_up_ptr,
    weighted_ptr,
    d_weights_ptr,
    width,
    BLOCK_I: tl.constexpr,
    PDL: tl.constexpr,
):
    await_inputs(PDL)
    pair = tl.program_id(0).to(tl.int64)
    weight = tl.load(weights_ptr + pair)
    total = tl.zeros((BLOCK_I,), tl.float32)
    for start in range(0, width, BLOCK_I):
        i = start + tl.arange(0, BLOCK_I)
        inside = i < width
        gate = tl.load(gate_up_ptr + pair * 2 * width + i, mask=inside, other=0.0).to(tl.float32)
        up = tl.load(gate_up_ptr + (pair * 2 + 1) * width + i, mask=inside, other=0.0).to(
            tl.float32
        )
        z = tl.load(z_ptr + pair * width + i, mask=inside, other=0.0).to(tl.float32)
        sigmoid = 1.0 / (1.0 + tl.exp(-gate))
        silu = gate * sigmoid
        act = silu * up
        d_act = weight * z
        d_gate = d_act * up * sigmoid * (1.0 + gate * (1.0 - sigmoid))
        tl.store(
            d_gate_up_ptr + pair * 2 * width + i,
            d_gate.to(d_gate_up_ptr.dtype.element_ty),
            mask=inside,
        )
        tl.store(
            d_gate_up_ptr + (pair * 2 + 1) * width + i,
            (d_act * silu).to(d_gate_up_ptr.dtype.element_ty),
            mask=inside,
        )
        tl.store(
            weighted_ptr + pair * width + i,
            (weight * act).to(weighted_ptr.dtype.element_ty),
            mask=inside,
        )
        total += z * act
    tl.store(d_weights_ptr + pair, tl.sum(total, axis=0))


def _check(gate_up_P2I: torch.Tensor, z_PI: torch.Tensor, weights_TK: torch.Tensor) -> None:
    require_float("gate_up_P2I", gate_up_P2I)
    pairs, columns = gate_up_P2I.shape
    if columns % 2 or z_PI.shape != (pairs, columns // 2) or z_PI.dtype != gate_up_P2I.dtype:
        raise ValueError(
            f"z_PI: expected {gate_up_P2I.dtype} of shape ({pairs}, {columns // 2}), got "
            f"{z_PI.dtype} of shape {tuple(z_PI.shape)}"
        )
    if weights_TK.dtype != torch.float32 or weights_TK.numel() != pairs:
        raise ValueError(
            f"weights_TK: expected {pairs} numbers of float32, got {weights_TK.dtype} of shape "
            f"{tuple(weights_TK.shape)}"
        )


def swiglu_grad(
    gate_up_P2I: torch.Tensor, z_PI: torch.Tensor, weights_TK: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Compute the gradients of pre-activations and router weights, and the weighted activations.

    Args:
        gate_up_P2I: Pre-activations, row p for pair p, gate columns before up columns, bfloat16,
            float16, or float32 of shape (P, 2I), contiguous.
        z_PI: Product of each pair's down projection and its token's gradient, in the same format,
            shape (P, I), contiguous.
        weights_TK: Router weights, float32 of shape (T, K), contiguous.

    Returns:
        The gradient of ``gate_up_P2I`` and the weighted activations, both in its format, and the
        gradient of ``weights_TK``.

    Raises:
        ValueError: Shapes or formats do not fit each other.
        RuntimeError: Triton cannot launch kernels here.
    """
    _check(gate_up_P2I, z_PI, weights_TK)
    require_triton(gate_up_P2I, z_PI, weights_TK)
    dtype, (pairs, width) = gate_up_P2I.dtype, z_PI.shape
    d_gate_up_P2I = torch.empty(pairs, 2 * width, dtype=store_dtype(dtype), device=z_PI.device)
    weighted_PI = torch.empty(pairs, width, dtype=store_dtype(dtype), device=z_PI.device)
    d_weights_TK = torch.empty(weights_TK.shape, dtype=torch.float32, device=z_PI.device)
    if pairs:
        block_i = min(BLOCK_I, next_power_of_2(width))
        launch(
            _swiglu_grad_kernel,
            (pairs,),
            gate_up_P2I,
            z_PI,
            weights_TK,
            d_gate_up_P2I,
            weighted_PI,
            d_weights_TK,
            width,
            BLOCK_I=block_i,
            num_warps=4,
        )
    return d_gate_up_P2I.to(dtype), weighted_PI.to(dtype), d_weights_TK


def swiglu_grad_reference(
    gate_up_P2I: torch.Tensor, z_PI: torch.Tensor, weights_TK: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Compute `swiglu_grad` in torch."""
    _check(gate_up_P2I, z_PI, weights_TK)
    dtype, weight_P1, z_PI = gate_up_P2I.dtype, weights_TK.reshape(-1, 1), z_PI.float()
    gate_PI, up_PI = gate_up_P2I.float().chunk(2, dim=1)
    sigmoid_PI = gate_PI.sigmoid()
    silu_PI = gate_PI * sigmoid_PI
    act_PI, d_act_PI = silu_PI * up_PI, weight_P1 * z_PI
    d_gate_PI = d_act_PI * up_PI * sigmoid_PI * (1.0 + gate_PI * (1.0 - sigmoid_PI))
    d_gate_up_P2I = torch.cat([d_gate_PI, d_act_PI * silu_PI], dim=1).to(dtype)
    return d_gate_up_P2I, (weight_P1 * act_PI).to(dtype), (z_PI * act_PI).sum(1).view_as(weights_TK)
