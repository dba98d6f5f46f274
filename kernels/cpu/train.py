"""Train a real MoE layer in torch on the CPU: forward, both backward passes and AdamW, timed apart.

The phases are ``forward`` (as in `moesim_kernels.cpu.layer`), ``dgrad`` (the backward through
activations), ``wgrad`` (the backward through weights) and ``optimizer``:

    dgrad: rows of the output's gradient to their experts; the weighted rows through the down
           projection, the activation and the up projection; sums per token; the gate's scores
    wgrad: for every expert the products of gradients and inputs of both projections; the gate's
    optimizer: one fused AdamW over all weights

Shape suffixes are those of `moesim_kernels.cpu.layer`.
"""

import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from moesim_kernels.cpu.expert_grad import ExpertPass, activations_pass, forward_pass, weights_pass
from moesim_kernels.cpu.layer import CpuLayer, LayerTiming, add_up, time_case
from moesim_kernels.cpu.protocol import Sentinel, measuring

from moesim.errors import require
from moesim.model import MoELayer

TRAIN_PHASES = ("forward", "dgrad", "wgrad", "optimizer")
LEARNING_RATE = 1e-4


class _Kept(NamedTuple):
    """What the forward pass leaves for the backward."""

    weights_TK: torch.Tensor
    order_P: torch.Tensor
    token_P: torch.Tensor
    y_PH: torch.Tensor
    experts: ExpertPass


class _Grads(NamedTuple):
    """What the backward through activations leaves for that through weights."""

    y_PH: torch.Tensor
    up_PN: torch.Tensor
    logits_TE: torch.Tensor
    experts: ExpertPass


class CpuTraining(CpuLayer):
    """A routed MoE layer that is trained; arguments are those of `CpuLayer`.

    Experts follow the choices that they are given. A choice is weighted by its expert's share of
    the softmax over the experts that the token was given.

    Raises:
        ConfigError: The gate is not a flat top-k gate with softmax scores, or `CpuLayer` refuses
            the layer.
    """

    def __init__(
        self, layer: MoELayer, expert_ids_TK: np.ndarray, dtype: torch.dtype, *, seed: int = 0
    ) -> None:
        check_trainable(layer)
        super().__init__(layer, expert_ids_TK, dtype, seed=seed)
        self.weights = [self.fine_EH, self.w_up_ENH, self.w_down_EHI]
        for weight in self.weights:
            weight.grad = torch.zeros_like(weight)
        self.optimizer = torch.optim.AdamW(self.weights, lr=LEARNING_RATE, fused=True)
        self.out_grad_TH = torch.randn(self.x_TH.shape, generator=self.generator).to(dtype)
        self.x_grad_TH = torch.zeros_like(self.x_TH)
        self.out_TH = torch.zeros_like(self.x_TH)

    def forward(
        self, clock: Callable[[], float] = time.perf_counter
    ) -> tuple[torch.Tensor, list[float]]:
        """Train one step; return the output and the clock before, between and after
        `TRAIN_PHASES`.
        """
        times = [clock()]
        kept = self.train_forward()
        times.append(clock())
        grads = self.backward_activations(kept)
        times.append(clock())
        self.backward_weights(grads)
        times.append(clock())
        self.optimizer.step()
        times.append(clock())
        return self.out_TH, times

    def train_forward(self) -> _Kept:
        """Run the forward pass, set ``out_TH``, and return what the backward needs."""
        scores_TE = torch.softmax((self.x_TH @ self.fine_EH.T).float(), dim=1)
        # the gate really selects, although the experts follow the choices that were priced
        scores_TE.topk(self.layer.top_k, dim=1)
        weights_TK = scores_TE.gather(1, self.ids_TK)
        weights_TK = weights_TK / weights_TK.sum(dim=1, keepdim=True)
        order_P, token_P, ends_E, rows_PH = self.permute()
        y_PH, experts = forward_pass(rows_PH, self.w_up_ENH, self.w_down_EHI, ends_E)
        weights_P = weights_TK.flatten()[order_P]
        # the sum overwrites its rows, and the gate's gradient needs them
        self.out_TH = add_up(y_PH.clone(), weights_P, token_P, len(self.x_TH))
        return _Kept(weights_TK, order_P, token_P, y_PH, experts)

    def backward_activations(self, kept: _Kept) -> _Grads:
        """Set ``x_grad_TH`` from ``out_grad_TH``, and return what the weights' gradients need."""
        weights_TK, order_P, token_P, y_PH, experts = kept
        y_grad_PH = self.out_grad_TH.index_select(0, token_P)
        weight_grad_P = y_PH.mul_(y_grad_PH).sum(dim=1, dtype=torch.float32)
        y_grad_PH.mul_(weights_TK.flatten()[order_P].to(self.dtype)[:, None])
        rows_grad_PH, up_grad_PN = activations_pass(
            y_grad_PH, self.w_up_ENH, self.w_down_EHI, experts
        )
        self.x_grad_TH.zero_().index_add_(0, token_P, rows_grad_PH)
        # softmax over the token's own experts: s (g - sum s g)
        grad_TK = torch.empty_like(weights_TK)
        grad_TK.view(-1)[order_P] = weight_grad_P
        grad_TK = weights_TK * (grad_TK - (weights_TK * grad_TK).sum(dim=1, keepdim=True))
        logit_grad_TE = torch.zeros(len(weights_TK), self.layer.num_experts, dtype=self.dtype)
        logit_grad_TE.scatter_(1, self.ids_TK, grad_TK.to(self.dtype))
        self.x_grad_TH.addmm_(logit_grad_TE, self.fine_EH)
        return _Grads(y_grad_PH, up_grad_PN, logit_grad_TE, experts)

    def backward_weights(self, grads: _Grads) -> None:
        """Set the gradients of all weights."""
        self.fine_EH.grad = grads.logits_TE.T @ self.x_TH
        self.w_up_ENH.grad, self.w_down_EHI.grad = weights_pass(
            grads.y_PH, grads.up_PN, grads.experts
        )


def check_trainable(layer: MoELayer) -> None:
    """Refuse a gate whose gradient is not written.

    Raises:
        ConfigError: The gate is not a flat top-k gate with softmax scores.
    """
    gate = layer.gate
    require(
        gate.kind == "flat" and gate.score == "softmax",
        "layer.gate",
        "flat with softmax scores for training on a CPU",
        str(gate),
    )


def time_training(
    layer: MoELayer,
    expert_ids_TK: np.ndarray,
    dtype: torch.dtype,
    *,
    seconds: float = 0.25,
    min_repeats: int = 7,
    sentinel: Sentinel | None = None,
    seed: int = 0,
) -> LayerTiming:
    """Time training steps by the protocol of `moesim_kernels.cpu.protocol`; arguments are those of
    `moesim_kernels.cpu.layer.time_layer`.

    Raises:
        ConfigError: `CpuTraining` refuses the layer or the ids.
    """
    with measuring():
        case = CpuTraining(layer, expert_ids_TK, dtype, seed=seed)
        return time_case(case, TRAIN_PHASES, seconds, min_repeats, sentinel or Sentinel())
