"""Train a real MoE layer in torch on the CPU: forward, both backward passes and AdamW, timed apart.

The phases are ``forward`` (as in `moesim_kernels.cpu.layer`), ``dgrad`` (the backward through
activations), ``wgrad`` (the backward through weights) and ``optimizer``. The backward passes are
written out with the operations that `moesim.costs.training` prices, so that each can be timed:

    dgrad: rows of the output's gradient to their experts; the weighted rows through the down
           projection, the activation and the up projection; sums per token; the gate's scores
    wgrad: for every expert the products of gradients and inputs of both projections; the gate's
    optimizer: one fused AdamW over all weights

Shape suffixes are those of `moesim_kernels.cpu.layer`.
"""

import time
from collections.abc import Callable

import numpy as np
import torch
from moesim_kernels.cpu.layer import CpuLayer, LayerTiming, add_up, time_case
from moesim_kernels.cpu.protocol import Sentinel, measuring
from torch.nn.functional import grouped_mm, silu

from moesim.errors import require
from moesim.model import MoELayer

TRAIN_PHASES = ("forward", "dgrad", "wgrad", "optimizer")


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
        require(str(layer.gate.kind) == "flat", "layer.gate", "flat for training", str(layer.gate))
        require(layer.gate.score == "softmax", "layer.gate", "softmax scores", layer.gate.score)
        super().__init__(layer, expert_ids_TK, dtype, seed=seed)
        self.weights = [self.fine_EH, self.w_up_ENH, self.w_down_EHI]
        for weight in self.weights:
            weight.grad = torch.zeros_like(weight)
        self.optimizer = torch.optim.AdamW(self.weights, lr=1e-4, fused=True)
        self.out_grad_TH = torch.randn(self.x_TH.shape, generator=self.generator).to(dtype)
        self.x_grad_TH = torch.zeros_like(self.x_TH)

    def step(self, clock: Callable[[], float] = time.perf_counter) -> list[float]:
        """Train one step; return the clock before, between and after `TRAIN_PHASES`."""
        times = [clock()]
        kept = self.train_forward()
        times.append(clock())
        grads = self.backward_activations(*kept)
        times.append(clock())
        self.backward_weights(*grads)
        times.append(clock())
        self.optimizer.step()
        times.append(clock())
        return times

    def forward(
        self, clock: Callable[[], float] = time.perf_counter
    ) -> tuple[torch.Tensor, list[float]]:
        """Train one step, in the form that `time_case` asks for."""
        times = self.step(clock)
        return self.x_grad_TH, times

    def train_forward(self) -> tuple[torch.Tensor, ...]:
        """Run the forward pass, set ``out_TH``, and return what the backward needs."""
        scores_TE = torch.softmax((self.x_TH @ self.fine_EH.T).float(), dim=1)
        # the gate really selects, although the experts follow the choices that were priced
        scores_TE.topk(self.layer.top_k, dim=1)
        weights_TK = scores_TE.gather(1, self.ids_TK)
        weights_TK = weights_TK / weights_TK.sum(dim=1, keepdim=True)
        order_P, token_P, ends_E, rows_PH = self.permute()
        up_PN = grouped_mm(rows_PH, self.w_up_ENH.transpose(1, 2), offs=ends_E)
        act_PI = self._activated(up_PN)
        y_PH = grouped_mm(act_PI, self.w_down_EHI.transpose(1, 2), offs=ends_E)
        weights_P = weights_TK.flatten()[order_P]
        self.out_TH = add_up(y_PH.clone(), weights_P, token_P, len(self.x_TH))
        return weights_TK, order_P, token_P, ends_E, rows_PH, up_PN, act_PI, y_PH

    def _activated(self, up_PN: torch.Tensor) -> torch.Tensor:
        width = self.w_down_EHI.shape[2]
        act_PI = silu(up_PN[:, :width].contiguous(), inplace=True)
        return act_PI.mul_(up_PN[:, width:]) if self.layer.gated else act_PI

    def backward_activations(
        self,
        weights_TK: torch.Tensor,
        order_P: torch.Tensor,
        token_P: torch.Tensor,
        ends_E: torch.Tensor,
        rows_PH: torch.Tensor,
        up_PN: torch.Tensor,
        act_PI: torch.Tensor,
        y_PH: torch.Tensor,
    ) -> tuple[torch.Tensor, ...]:
        """Set ``x_grad_TH`` from ``out_grad_TH``, and return what the weights' gradients need."""
        y_grad_PH = self.out_grad_TH.index_select(0, token_P)
        weight_grad_P = y_PH.mul_(y_grad_PH).sum(dim=1, dtype=torch.float32)
        y_grad_PH.mul_(weights_TK.flatten()[order_P].to(self.dtype)[:, None])
        act_grad_PI = grouped_mm(y_grad_PH, self.w_down_EHI, offs=ends_E)
        up_grad_PN = self._activation_grad(up_PN, act_grad_PI)
        rows_grad_PH = grouped_mm(up_grad_PN, self.w_up_ENH, offs=ends_E)
        self.x_grad_TH.zero_().index_add_(0, token_P, rows_grad_PH)
        # softmax over the token's own experts: s (g - sum s g)
        grad_TK = torch.empty_like(weights_TK)
        grad_TK.view(-1)[order_P] = weight_grad_P
        grad_TK = weights_TK * (grad_TK - (weights_TK * grad_TK).sum(dim=1, keepdim=True))
        logit_grad_TE = torch.zeros(len(weights_TK), self.layer.num_experts, dtype=self.dtype)
        logit_grad_TE.scatter_(1, self.ids_TK, grad_TK.to(self.dtype))
        self.x_grad_TH.addmm_(logit_grad_TE, self.fine_EH)
        return ends_E, rows_PH, act_PI, y_grad_PH, up_grad_PN, logit_grad_TE

    def _activation_grad(self, up_PN: torch.Tensor, act_grad_PI: torch.Tensor) -> torch.Tensor:
        if not self.layer.gated:
            return torch.ops.aten.silu_backward(act_grad_PI, up_PN)
        width = self.w_down_EHI.shape[2]
        gate_PI, plain_PI = up_PN[:, :width].contiguous(), up_PN[:, width:]
        grad_PN = torch.empty_like(up_PN)
        torch.mul(act_grad_PI, silu(gate_PI), out=grad_PN[:, width:])
        grad_PN[:, :width] = torch.ops.aten.silu_backward(act_grad_PI.mul_(plain_PI), gate_PI)
        return grad_PN

    def backward_weights(
        self,
        ends_E: torch.Tensor,
        rows_PH: torch.Tensor,
        act_PI: torch.Tensor,
        y_grad_PH: torch.Tensor,
        up_grad_PN: torch.Tensor,
        logit_grad_TE: torch.Tensor,
    ) -> None:
        """Write the gradients of all weights."""
        gate, up, down = self.weights
        gate.grad = logit_grad_TE.T @ self.x_TH
        up.grad = grouped_mm(up_grad_PN.T, rows_PH, offs=ends_E)
        down.grad = grouped_mm(y_grad_PH.T, act_PI, offs=ends_E)


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
