"""Compute the expert phase forward and backward, for training: gradients of tokens, router weights,
and expert weights.

    z = W_down^T g                                    # g: gradient of the token's output
    d_weight = z . act;  d_act = weight x z           # for each (token, expert) pair
    d_gate, d_up = SwiGLU'(gate, up) d_act            # pre-activations are recomputed
    dx = W_gate_up^T [d_gate, d_up]
    dW_gate_up = outer([d_gate, d_up], x);  dW_down = outer(g, weight x act)

Only the inputs and the plan are saved; pre-activations are computed again. With g the gradient of a
token's output, z = W_down^T g of each of its pairs gives both other factors of the down projection:
the gradient of a router weight is z . act, and the gradient of the activation is the weight times
z. Backward is therefore three grouped GEMMs of rows (pre-activations again, z, dx) and two of outer
products (`grouped_outer`), and no gradient is summed by atomics. Transposed weights are copied for
the GEMMs of rows. Intermediates are rounded to the experts' format where they enter a matrix
product.

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
from moesim_kernels.ops.grouped_swiglu import grouped_swiglu, grouped_swiglu_reference
from moesim_kernels.ops.plan import Plan
from moesim_kernels.ops.router import noise
from moesim_kernels.ops.weights import LayerWeights
from torch.autograd.function import once_differentiable

from moesim.model import Gate

# The same formulas run through the kernels or through their torch references.
_TRITON = SimpleNamespace(
    linear=grouped_linear,
    swiglu=grouped_swiglu,
    down=grouped_down,
    outer=grouped_outer,
    combine=combine,
)
_TORCH = SimpleNamespace(
    linear=grouped_linear_reference,
    swiglu=grouped_swiglu_reference,
    down=grouped_down_reference,
    outer=grouped_outer_reference,
    combine=combine_reference,
)


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
    ) -> torch.Tensor:
        ctx.save_for_backward(x_TH, weights_TK, w_gate_up, w_down)
        ctx.plan, ctx.run = plan, run
        return run.combine(run.down(run.swiglu(x_TH, w_gate_up, plan), w_down, plan), weights_TK)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x_TH, weights_TK, w_gate_up, w_down = ctx.saved_tensors
        plan, run, dtype = ctx.plan, ctx.run, x_TH.dtype
        grad_TH = grads[0].to(dtype).contiguous()
        # Rows that are pairs, not tokens, follow the same plan with one expert each.
        pairs_plan, weight_P1 = replace(plan, top_k=1), weights_TK.reshape(-1, 1)
        gate_up_P2I = run.linear(x_TH, w_gate_up, plan, gather=True, out_dtype=torch.float32)
        gate_PI, up_PI = gate_up_P2I.chunk(2, dim=1)
        sigmoid_PI = gate_PI.sigmoid()
        silu_PI = gate_PI * sigmoid_PI
        # Rounded as the forward pass rounded it, so that both see the same activation.
        act_PI = (silu_PI * up_PI).to(dtype).float()
        z_PI = run.linear(
            grad_TH, w_down.mT.contiguous(), plan, gather=True, out_dtype=torch.float32
        )
        d_act_PI = weight_P1 * z_PI
        # Derivative of SiLU: sigmoid x (1 + gate x (1 - sigmoid)).
        d_gate_PI = d_act_PI * up_PI * sigmoid_PI * (1.0 + gate_PI * (1.0 - sigmoid_PI))
        d_gate_up_P2I = torch.cat([d_gate_PI, d_act_PI * silu_PI], dim=1).to(dtype)
        needs = ctx.needs_input_grad
        d_x_TH = d_w_gate_up = d_w_down = None
        # Frozen inputs skip their GEMM.
        if needs[0]:
            d_x_PH = run.linear(
                d_gate_up_P2I,
                w_gate_up.mT.contiguous(),
                pairs_plan,
                gather=True,
                out_dtype=torch.float32,
            )
            # Combine with weights of 1 sums the gradients of a token's pairs without atomics.
            d_x_TH = run.combine(d_x_PH, torch.ones_like(weights_TK)).to(dtype)
        if needs[2]:
            d_w_gate_up = run.outer(d_gate_up_P2I, x_TH, plan)
        if needs[3]:
            d_w_down = run.outer(grad_TH, (weight_P1 * act_PI).to(dtype), plan)
        d_weights_TK = (z_PI * act_PI).sum(1).view_as(weights_TK)
        return d_x_TH, d_weights_TK, d_w_gate_up, d_w_down, None, None


def experts(
    x_TH: torch.Tensor,
    weights_TK: torch.Tensor,
    w_gate_up: torch.Tensor,
    w_down: torch.Tensor,
    plan: Plan,
) -> torch.Tensor:
    """Compute routed experts and combine, with gradients of all four tensors.

    Args:
        x_TH: Tokens, bfloat16, float16, or float32 of shape (T, H), contiguous.
        weights_TK: Router weights, float32 of shape (T, K), contiguous.
        w_gate_up: Weights in the format of ``x_TH``, shape (E, 2I, H), contiguous.
        w_down: Weights in the same format, shape (E, H, I), contiguous.
        plan: Plan for this routing.

    Returns:
        A tensor of shape (T, H) in the format of ``x_TH``.

    Raises:
        ValueError: Shapes or formats do not fit each other.
        RuntimeError: Triton cannot launch kernels here.
    """
    return _Experts.apply(x_TH, weights_TK, w_gate_up, w_down, plan, _TRITON)


def experts_reference(
    x_TH: torch.Tensor,
    weights_TK: torch.Tensor,
    w_gate_up: torch.Tensor,
    w_down: torch.Tensor,
    plan: Plan,
) -> torch.Tensor:
    """Compute `experts` in torch: the same steps in both directions, roundings included."""
    return _Experts.apply(x_TH, weights_TK, w_gate_up, w_down, plan, _TORCH)


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
