"""Compute the expert phase forward and backward, for training: gradients of tokens, router weights,
and expert weights.

    forward:   gate_up = x @ W_gate_up.T (kept);  out = combine(swiglu(gate_up) @ W_down.T)
    backward:  z = g @ W_down                         # g: gradient of the token's output
               d_gate_up, weighted act, d_weight = swiglu_grad(gate_up, z, weight)
               dx = sum over a token's pairs of d_gate_up @ W_gate_up
               dW_gate_up = d_gate_up.T @ x;  dW_down = g.T @ (weighted act)

With g the gradient of a token's output, z = W_down^T g of each of its pairs gives both other
factors of the down projection: the gradient of a router weight is z . act, and the gradient of the
activation is the weight times z. Backward is therefore two grouped GEMMs of rows (z, dx), one pass
over their results (`moesim_kernels.ops.swiglu_grad`), and two GEMMs of outer products
(`grouped_outer`), and no gradient is summed by atomics. The GEMMs of rows read the weights as they
are stored. The inputs, the plan and the pre-activations are kept; pre-activations are computed
again on request, and where kernels do not keep them (float32). Intermediates are rounded to the
experts' format.

A weight with an attribute ``main_grad`` (a tensor of its shape, contiguous, in its format or
float32) gets no gradient of its own: it is added to that buffer in place, as frameworks for
training in parts expect. ``weight.main_grad = weight.grad`` accumulates in a gradient that exists.

Expert choices have no gradient, and second derivatives are not supported. `gate_weights` makes the
router's weights of given choices differentiable.
"""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import torch
from moesim_kernels.ops.grouped_down import (
    combine,
    combine_reference,
    grouped_down,
    grouped_down_reference,
)
from moesim_kernels.ops.grouped_linear import grouped_linear, grouped_linear_reference
from moesim_kernels.ops.grouped_outer import grouped_outer, grouped_outer_reference
from moesim_kernels.ops.grouped_swiglu import grouped_swiglu, grouped_swiglu_reference, saves
from moesim_kernels.ops.plan import Plan
from moesim_kernels.ops.router_options import noise
from moesim_kernels.ops.runtime import store_dtype, target
from moesim_kernels.ops.swiglu_grad import swiglu_grad, swiglu_grad_reference
from moesim_kernels.ops.weights import LayerWeights
from moesim_kernels.tiles.tiles import Tile
from moesim_kernels.tiles.training import TILES, fitted
from torch.autograd.function import once_differentiable

from moesim.model import Gate


def _up(
    x_TH: torch.Tensor, w_gate_up: torch.Tensor, plan: Plan, save: bool
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return activations, and pre-activations where the kernel can keep them on its way."""
    tile = _tile(plan, x_TH.element_size(), w_gate_up.shape[1] // 2, up=True)
    if not save or not saves(x_TH, w_gate_up, plan.block_m):
        return grouped_swiglu(x_TH, w_gate_up, plan, tile), None
    gate_up_P2I = torch.empty(
        plan.num_rows, w_gate_up.shape[1], dtype=store_dtype(x_TH.dtype), device=x_TH.device
    )
    act_PI = grouped_swiglu(x_TH, w_gate_up, plan, tile, saved_P2I=gate_up_P2I)
    return act_PI, gate_up_P2I.to(x_TH.dtype)


def _up_reference(
    x_TH: torch.Tensor, w_gate_up: torch.Tensor, plan: Plan, save: bool
) -> tuple[torch.Tensor, torch.Tensor | None]:
    gate_up_P2I = grouped_linear_reference(x_TH, w_gate_up, plan, gather=True) if save else None
    return grouped_swiglu_reference(x_TH, w_gate_up, plan), gate_up_P2I


def _linear(
    a: torch.Tensor, w_ENC: torch.Tensor, plan: Plan, *, gather: bool, transposed: bool = False
) -> torch.Tensor:
    columns = w_ENC.shape[2] if transposed else w_ENC.shape[1]
    tile = _tile(plan, a.element_size(), columns, up=False)
    return grouped_linear(a, w_ENC, plan, gather=gather, transposed=transposed, config=tile)


def _tile(plan: Plan, element_bytes: int, columns: int, *, up: bool) -> Tile | None:
    """Return training's tile for this plan's rows on Hopper; elsewhere None, which leaves it to the
    mean load.
    """
    if target() != "sm_90" or element_bytes != 2 or plan.block_m not in TILES:
        return None
    return fitted(TILES[plan.block_m][0 if up else 1], columns)


def _down(act_PI: torch.Tensor, w_down: torch.Tensor, plan: Plan) -> torch.Tensor:
    return grouped_down(
        act_PI, w_down, plan, _tile(plan, act_PI.element_size(), w_down.shape[1], up=False)
    )


# The same formulas run through the kernels or through their torch references.
_TRITON = SimpleNamespace(
    linear=_linear, up=_up, down=_down, outer=grouped_outer, combine=combine, grad=swiglu_grad
)
_TORCH = SimpleNamespace(
    linear=grouped_linear_reference,
    up=_up_reference,
    down=grouped_down_reference,
    outer=grouped_outer_reference,
    combine=combine_reference,
    grad=swiglu_grad_reference,
)


def _weight_grad(
    run: SimpleNamespace,
    a: torch.Tensor,
    b: torch.Tensor,
    plan: Plan,
    buffer_ENC: torch.Tensor | None,
) -> torch.Tensor | None:
    gradient_ENC = run.outer(a, b, plan, buffer_ENC)
    # Autograd must not add once more what the buffer has got already.
    return gradient_ENC if buffer_ENC is None else None


# Routed experts and combine with their gradients; ``run`` names the functions to compute them with.
class _Experts(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x_TH: torch.Tensor,
        weights_TK: torch.Tensor,
        w_gate_up: torch.Tensor,
        w_down: torch.Tensor,
        plan: Plan,
        run: SimpleNamespace,
        recompute: bool,
    ) -> torch.Tensor:
        act_PI, gate_up_P2I = run.up(x_TH, w_gate_up, plan, not recompute)
        ctx.save_for_backward(x_TH, weights_TK, w_gate_up, w_down, gate_up_P2I)
        ctx.plan, ctx.run = plan, run
        ctx.buffers = tuple(getattr(w, "main_grad", None) for w in (w_gate_up, w_down))
        return run.combine(run.down(act_PI, w_down, plan), weights_TK)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x_TH, weights_TK, w_gate_up, w_down, gate_up_P2I = ctx.saved_tensors
        plan, run, dtype = ctx.plan, ctx.run, x_TH.dtype
        # Rows that are pairs, not tokens, follow the same plan with one expert each.
        grad_TH, pairs_plan = grads[0].to(dtype).contiguous(), replace(plan, top_k=1)
        if gate_up_P2I is None:
            gate_up_P2I = run.linear(x_TH, w_gate_up, plan, gather=True)
        z_PI = run.linear(grad_TH, w_down, plan, gather=True, transposed=True)
        d_gate_up_P2I, weighted_PI, d_weights_TK = run.grad(gate_up_P2I, z_PI, weights_TK)
        needs = ctx.needs_input_grad
        d_x_TH = d_w_gate_up = d_w_down = None
        # Frozen inputs skip their GEMM.
        if needs[0]:
            d_x_PH = run.linear(d_gate_up_P2I, w_gate_up, pairs_plan, gather=True, transposed=True)
            # Combine with weights of 1 sums the gradients of a token's pairs without atomics.
            d_x_TH = run.combine(d_x_PH, torch.ones_like(weights_TK))
        if needs[2]:
            d_w_gate_up = _weight_grad(run, d_gate_up_P2I, x_TH, plan, ctx.buffers[0])
        if needs[3]:
            d_w_down = _weight_grad(run, grad_TH, weighted_PI, plan, ctx.buffers[1])
        return d_x_TH, d_weights_TK, d_w_gate_up, d_w_down, None, None, None


def experts(
    x_TH: torch.Tensor,
    weights_TK: torch.Tensor,
    w_gate_up: torch.Tensor,
    w_down: torch.Tensor,
    plan: Plan,
    *,
    recompute: bool = False,
) -> torch.Tensor:
    """Compute routed experts and combine, with gradients of all four tensors.

    Args:
        x_TH: Tokens, bfloat16, float16, or float32 of shape (T, H), contiguous.
        weights_TK: Router weights, float32 of shape (T, K), contiguous.
        w_gate_up: Weights in the format of ``x_TH``, shape (E, 2I, H), contiguous.
        w_down: Weights in the same format, shape (E, H, I), contiguous.
        plan: Plan for this routing.
        recompute: Whether no pre-activations are kept, which are 2 x P x I numbers, but computed
            again in the backward pass.

    Returns:
        A tensor of shape (T, H) in the format of ``x_TH``.

    Raises:
        ValueError: Shapes or formats do not fit each other.
        RuntimeError: Triton cannot launch kernels here.
    """
    return _Experts.apply(x_TH, weights_TK, w_gate_up, w_down, plan, _TRITON, recompute)


def experts_reference(
    x_TH: torch.Tensor,
    weights_TK: torch.Tensor,
    w_gate_up: torch.Tensor,
    w_down: torch.Tensor,
    plan: Plan,
    *,
    recompute: bool = False,
) -> torch.Tensor:
    """Compute `experts` in torch: the same steps in both directions, roundings included."""
    return _Experts.apply(x_TH, weights_TK, w_gate_up, w_down, plan, _TORCH, recompute)


def gate_weights(
    x_TH: torch.Tensor, gate: Gate, weights: LayerWeights, ids_TK: torch.Tensor, *, seed: int = 0
) -> torch.Tensor:
    """Return the router's weights of experts already chosen, differentiable in tokens and keys; in
    torch, for finite logits.

    Args:
        x_TH: Tokens of shape (T, H).
        gate: Kind and score of the gate.
        weights: Weights that hold the gate's keys.
        ids_TK: Chosen experts, int32 of shape (T, K).
        seed: Seed of a noisy gate's noise.

    Returns:
        Weights, float32 of shape (T, K), equal to those of `moesim_kernels.ops.layer.gate_tokens`.

    Raises:
        ValueError: A product-key gate comes without its projection and keys.
    """
    x_TH, ids_TK = x_TH.to(weights.fine_EH.dtype).float(), ids_TK.long()
    if gate.kind == "product_key":
        if weights.query_QH is None or weights.keys_2Sq is None:
            raise ValueError("weights.query_QH: a product-key gate needs its projection and keys")
        keys_2Sq, side = weights.keys_2Sq.float(), weights.keys_2Sq.shape[1]
        query_T2q = (x_TH @ weights.query_QH.float().T).view(
            len(x_TH), gate.query_heads, 1, 2, keys_2Sq.shape[2]
        )
        # Row and column of each expert; its logit is the sum of the two halves' products.
        ids_TRk = ids_TK.unflatten(1, (gate.query_heads, -1))
        logits_TRk = sum(
            (query_T2q[:, :, :, i] * keys_2Sq[i][at]).sum(-1)
            for i, at in enumerate((ids_TRk // side, ids_TRk % side))
        )
        return (logits_TRk.softmax(2) / gate.query_heads).flatten(1)
    # Only the chosen experts' keys are gathered; the others get no gradient.
    logits_TK = torch.einsum("th,tkh->tk", x_TH, weights.fine_EH.float()[ids_TK]) / gate.temperature
    if gate.noise_std:
        # The noise follows from the seed, so that it is the noise the choice was made with.
        noise_TE = noise(len(x_TH), len(weights.fine_EH), seed, x_TH.device)
        logits_TK = logits_TK + noise_TE.gather(1, ids_TK) * gate.noise_std
    if gate.score == "softmax":
        return logits_TK.softmax(1)
    scores_TK = logits_TK.sigmoid()
    return scores_TK / scores_TK.sum(1, keepdim=True)
