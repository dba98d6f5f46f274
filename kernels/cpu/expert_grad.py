"""Gradients of routed experts by torch's grouped GEMMs on a CPU.

Each pass is written out with the operations that `moesim.costs.training` prices. `GroupedExperts`
is the same for autograd.

Shape suffixes: P rows in the order of their experts, E experts, H hidden size, I expert width, N
columns of the up projection (2 I if gated).
"""

from typing import Any, NamedTuple

import torch
from moesim_kernels.cpu.layer import activate
from torch.autograd.function import once_differentiable
from torch.nn.functional import grouped_mm, silu


class ExpertPass(NamedTuple):
    """What a forward pass leaves for the backward."""

    rows_PH: torch.Tensor
    up_PN: torch.Tensor
    act_PI: torch.Tensor
    ends_E: torch.Tensor


def forward_pass(
    rows_PH: torch.Tensor, up_ENH: torch.Tensor, down_EHI: torch.Tensor, ends_E: torch.Tensor
) -> tuple[torch.Tensor, ExpertPass]:
    """Return the experts' outputs of shape (P, H), and what the backward needs."""
    up_PN = grouped_mm(rows_PH, up_ENH.transpose(1, 2), offs=ends_E)
    width = down_EHI.shape[2]
    # without a second half `activate` works in place, and the backward needs what was there
    act_PI = activate(up_PN, width) if up_PN.shape[1] > width else silu(up_PN)
    y_PH = grouped_mm(act_PI, down_EHI.transpose(1, 2), offs=ends_E)
    return y_PH, ExpertPass(rows_PH, up_PN, act_PI, ends_E)


def activations_pass(
    y_grad_PH: torch.Tensor, up_ENH: torch.Tensor, down_EHI: torch.Tensor, kept: ExpertPass
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the gradients of the rows, shape (P, H), and of the up projection, shape (P, N)."""
    act_grad_PI = grouped_mm(y_grad_PH, down_EHI, offs=kept.ends_E)
    up_grad_PN = _activation_grad(kept.up_PN, act_grad_PI)
    return grouped_mm(up_grad_PN, up_ENH, offs=kept.ends_E), up_grad_PN


def weights_pass(
    y_grad_PH: torch.Tensor, up_grad_PN: torch.Tensor, kept: ExpertPass
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the gradients of both projections' weights, shapes (E, N, H) and (E, H, I)."""
    return (
        grouped_mm(up_grad_PN.T, kept.rows_PH, offs=kept.ends_E),
        grouped_mm(y_grad_PH.T, kept.act_PI, offs=kept.ends_E),
    )


def _activation_grad(up_PN: torch.Tensor, act_grad_PI: torch.Tensor) -> torch.Tensor:
    width = act_grad_PI.shape[1]
    if up_PN.shape[1] == width:
        return torch.ops.aten.silu_backward(act_grad_PI, up_PN)
    gate_PI, plain_PI = up_PN[:, :width].contiguous(), up_PN[:, width:]
    grad_PN = torch.empty_like(up_PN)
    torch.mul(act_grad_PI, silu(gate_PI), out=grad_PN[:, width:])
    grad_PN[:, :width] = torch.ops.aten.silu_backward(act_grad_PI.mul_(plain_PI), gate_PI)
    return grad_PN


class GroupedExperts(torch.autograd.Function):
    """Experts with gradients: rows, weights of both projections, and ends of the experts' rows."""

    @staticmethod
    def forward(
        ctx: Any,
        rows_PH: torch.Tensor,
        up_ENH: torch.Tensor,
        down_EHI: torch.Tensor,
        ends_E: torch.Tensor,
    ) -> torch.Tensor:
        """Return the experts' outputs, shape (P, H)."""
        y_PH, kept = forward_pass(rows_PH, up_ENH, down_EHI, ends_E)
        ctx.save_for_backward(up_ENH, down_EHI, *kept)
        return y_PH

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, y_grad_PH: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Return the gradients of rows and weights."""
        up_ENH, down_EHI, *saved = ctx.saved_tensors
        kept, y_grad_PH = ExpertPass(*saved), y_grad_PH.contiguous()
        rows_grad_PH, up_grad_PN = activations_pass(y_grad_PH, up_ENH, down_EHI, kept)
        return rows_grad_PH, *weights_pass(y_grad_PH, up_grad_PN, kept), None
