"""Train a real MoE layer over ranks joined by gloo: a step is timed as a whole on every rank.

Each rank holds its experts and all of the gate. The gradient of the gate is averaged over the
ranks; those of the experts stay, since every token that an expert got has come to its rank. Loss is
the product of the layer's output with a fixed random tensor.

Shape suffixes are those of `moesim_kernels.ranks.expert_parallel`.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from moesim_kernels.cpu.primitives import DTYPES
from moesim_kernels.cpu.protocol import CONTENDED, Sentinel
from moesim_kernels.cpu.train import LEARNING_RATE, check_trainable
from moesim_kernels.ops.weights import LayerWeights
from moesim_kernels.ranks.expert_parallel import (
    contiguous_placement,
    expert_parallel_layer,
    random_local,
)
from moesim_kernels.ranks.repeats import both_clocks, repeated

from moesim.model import MoELayer
from moesim.placement import Placement

#: what a step does, in the order it ends
PHASES = ("forward", "backward", "reduction", "optimizer")
# Inputs in turn, so that branch predictors cannot memorize one.
_INPUTS = 8


class RankTraining:
    """The part of a trained layer that one rank holds.

    Args:
        layer: The whole layer.
        ids_TK: Experts of this rank's tokens, int32 of shape (T, K).
        rank: Number of this rank.
        dtype: Number format of tokens, weights, gradients and states.
        seed: Seed of weights and inputs.

    Raises:
        ConfigError: The gate is not a flat top-k gate with softmax scores.
    """

    def __init__(
        self, layer: MoELayer, ids_TK: torch.Tensor, rank: int, dtype: torch.dtype, seed: int
    ) -> None:
        check_trainable(layer)
        self.layer, self.dtype = layer, dtype
        self.placement: Placement = contiguous_placement(layer.num_experts, dist.get_world_size())
        made = random_local(layer, self.placement, rank, seed, dtype)
        trained = ("fine_EH", "w_gate_up", "w_down")
        self.weights: LayerWeights = replace(
            made, **{name: getattr(made, name).requires_grad_() for name in trained}
        )
        params = [getattr(self.weights, name) for name in trained]
        self.optimizer = torch.optim.AdamW(params, lr=LEARNING_RATE, fused=True)
        generator = torch.Generator().manual_seed(seed + rank)
        shape = (_INPUTS + 1, len(ids_TK), layer.hidden_size)
        *self.inputs, self.out_grad_TH = torch.randn(shape, generator=generator).to(dtype)
        self.orders = [
            ids_TK[torch.randperm(len(ids_TK), generator=generator)].contiguous()
            for _ in range(_INPUTS)
        ]
        self.x_TH = torch.empty_like(self.inputs[0], requires_grad=True)

    def select(self, repeat: int) -> None:
        """Write the input of this repeat and use its order of tokens."""
        with torch.no_grad():
            self.x_TH.copy_(self.inputs[repeat % _INPUTS])
        self.ids_TK = self.orders[repeat % _INPUTS]

    def gradients(self, on_phase: Callable[[str], None] = lambda _: None) -> torch.Tensor:
        """Run forward and backward, average the gate's gradient, and return the output.

        Args:
            on_phase: Function that is told each of `PHASES` but the last as it ends.
        """
        self.optimizer.zero_grad(set_to_none=True)
        self.x_TH.grad = None
        with torch.enable_grad():
            scores_TE = torch.softmax((self.x_TH @ self.weights.fine_EH.T).float(), dim=1)
            # the gate really selects, although the experts follow the choices that were priced
            scores_TE.detach().topk(self.layer.top_k, dim=1)
            weights_TK = scores_TE.gather(1, self.ids_TK.long())
            out_TH = expert_parallel_layer(
                self.x_TH,
                self.weights,
                self.layer,
                placement=self.placement,
                backend="grouped_mm",
                checked=False,
                routing=(weights_TK / weights_TK.sum(dim=1, keepdim=True), self.ids_TK),
            )
            on_phase("forward")
            out_TH.backward(self.out_grad_TH)
        on_phase("backward")
        gate_grad = self.weights.fine_EH.grad
        dist.all_reduce(gate_grad)
        gate_grad.div_(dist.get_world_size())
        on_phase("reduction")
        return out_TH

    def step(self, on_phase: Callable[[str], None] = lambda _: None) -> None:
        """Train one step.

        Args:
            on_phase: Function that is told each of `PHASES` as it ends.
        """
        self.gradients(on_phase)
        self.optimizer.step()
        on_phase("optimizer")


def time_trained_ranks(
    run: Any, rank: int, ranks: int, sentinel: Sentinel, seconds: float
) -> dict[str, Any]:
    """Time training steps of one layer over all ranks.

    Args:
        run: The `moesim_kernels.ranks.timed_layers.LayerRun` to train.
        rank: Number of this rank.
        ranks: Number of ranks.
        sentinel: Sentinel to compare with.
        seconds: Time to spend on repeats.
    """
    dtype = DTYPES[run.layer.precision.activations]
    mine = run.ids_TK(ranks)[rank * run.num_tokens : (rank + 1) * run.num_tokens]
    case = RankTraining(run.layer, torch.from_numpy(mine.astype(np.int32)), rank, dtype, run.seed)

    def repeat(number: int) -> np.ndarray:
        sentinel.settle(dtype)
        case.select(number)
        # All ranks start a repeat together.
        dist.barrier()
        times = [both_clocks()]
        case.step(lambda _: times.append(both_clocks()))
        return np.diff(np.array(times), axis=0)

    before = sentinel.slowdown()
    rows = repeated(repeat, seconds)
    slowdown = max(before, sentinel.slowdown())
    phases = dict(zip(PHASES, rows[:, :, 0].T.tolist(), strict=True))
    return {
        "seconds": phases | {"total": rows[:, :, 0].sum(axis=1).tolist()},
        "slowdown": slowdown,
        "contended": slowdown > CONTENDED,
    }
