"""Run layers on this CPU in separate processes: each in one process, or over ranks joined by gloo.

One process times a layer as `moesim_kernels.cpu.layer` does. Ranks run
`moesim_kernels.ranks.expert_parallel`, each on its own core, by the wall clock, since a rank that
waits gets no thread time: caches are flushed and the clock is settled on each rank, a barrier
starts all of them, and a repeat takes as long as the slowest rank. Experts follow the choices that
the simulator prices, in another order of tokens each time; the gate really scores. If others used a
core meanwhile, the computing phases took longer than the time the thread got: such a run is marked
contended, and so is one whose sentinel became slower.

Run ``python -m moesim_kernels.ranks.timed_layers`` as a rank of `moesim_kernels.ranks.group`.
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from moesim_kernels.cpu.gate import gate_by_torch
from moesim_kernels.cpu.layer import time_layer
from moesim_kernels.cpu.primitives import DTYPES
from moesim_kernels.cpu.protocol import CONTENDED, LayerTiming, Sentinel, measuring
from moesim_kernels.cpu.train import time_training
from moesim_kernels.ranks.expert_parallel import (
    PHASES,
    contiguous_placement,
    expert_parallel_layer,
    random_local,
)
from moesim_kernels.ranks.group import rank_group, run_ranks
from moesim_kernels.ranks.repeats import both_clocks, repeated
from moesim_kernels.ranks.train import time_trained_ranks

from moesim.model import MoELayer, Precision
from moesim.model.gate import Gate
from moesim.routing import RoutingSpec, route

Array = np.ndarray
# Inputs in turn, so that branch predictors cannot memorize one.
_INPUTS = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerRun:
    """A layer to run, and its load.

    Attributes:
        layer: Layer with sizes, gate, and one format for all numbers, ``float32`` or ``bfloat16``.
        num_tokens: Number of tokens on each rank.
        routing: Routing in the text form of `moesim.routing.RoutingSpec`.
        seed: Seed of routing, weights, and inputs.
        trained: Whether it is trained: a step with both backward passes and AdamW.
    """

    layer: MoELayer
    num_tokens: int
    routing: str = "uniform"
    seed: int = 0
    trained: bool = False

    def ids_TK(self, ranks: int) -> Array:
        """Return the experts of every rank's tokens in turn, as the simulator draws them: ndarray
        of shape (ranks x T, K).
        """
        layer = self.layer
        return route(
            RoutingSpec.parse(self.routing),
            layer.gate,
            num_experts=layer.num_experts,
            top_k=layer.top_k,
            num_tokens_S=np.full(ranks, self.num_tokens),
            seed=self.seed,
        ).expert_ids_TK

    def as_json(self) -> dict[str, Any]:
        """Return a dictionary that `from_json` reads."""
        layer = self.layer
        return {
            "hidden_size": layer.hidden_size,
            "expert_intermediate_size": layer.expert_intermediate_size,
            "num_experts": layer.num_experts,
            "top_k": layer.top_k,
            "gated": layer.gated,
            "gate": str(layer.gate),
            "format": layer.precision.activations,
            "num_tokens": self.num_tokens,
            "routing": self.routing,
            "seed": self.seed,
            "trained": self.trained,
        }

    @classmethod
    def from_json(cls, told: dict[str, Any]) -> "LayerRun":
        """Return the run that `as_json` described."""
        fmt = told["format"]
        # One format for everything, which is what the torch path computes.
        layer = MoELayer(
            precision=Precision(weights=fmt, activations=fmt, dispatch=fmt, combine=fmt),
            gate=replace(Gate.parse(told["gate"]), precision=fmt),
            **{
                name: told[name]
                for name in (
                    "hidden_size",
                    "expert_intermediate_size",
                    "num_experts",
                    "top_k",
                    "gated",
                )
            },
        )
        about = {name: told[name] for name in ("num_tokens", "routing", "seed", "trained")}
        return cls(layer=layer, **about)


def time_layers(
    runs: Sequence[LayerRun], ranks: int = 1, *, seconds: float = 0.25, timeout_s: float = 120.0
) -> list[LayerTiming]:
    """Run layers one after the other, in one process or over several.

    Args:
        runs: Layers to run, at least one.
        ranks: Number of processes.
        seconds: Time to spend on repeats of each.
        timeout_s: Seconds after which the processes are ended.

    Returns:
        Times of each layer by phase; over several ranks those of the slowest.

    Raises:
        MeasurementError: A process failed (the message is its last line), or they did not finish in
            time.
    """
    task = {"runs": [run.as_json() for run in runs], "seconds": seconds}
    answers = run_ranks(
        [sys.executable, "-m", "moesim_kernels.ranks.timed_layers"],
        ranks,
        task,
        backend="gloo",
        timeout_s=timeout_s,
    )
    found = []
    # One layer's answers from all ranks.
    for of_ranks in zip(*answers, strict=True):
        slowdown = max(answer["slowdown"] for answer in of_ranks)
        found.append(
            LayerTiming(
                slowdown=slowdown,
                contended=any(answer["contended"] for answer in of_ranks),
                seconds={
                    # A repeat takes as long as its slowest rank.
                    phase: np.max([answer["seconds"][phase] for answer in of_ranks], axis=0)
                    for phase in of_ranks[0]["seconds"]
                },
            )
        )
    return found


def run_rank(task: dict[str, Any]) -> list[dict[str, Any]]:
    """Do the work of one rank: time every run.

    Args:
        task: Task from `moesim_kernels.ranks.group.run_ranks`, with runs and seconds.
    """
    with rank_group(task), measuring():
        sentinel, found = Sentinel(), []
        for run in map(LayerRun.from_json, task["runs"]):
            if task["ranks"] > 1:
                timed = time_trained_ranks if run.trained else _time_ranks
                found.append(
                    # A single process has nobody to wait for and is timed by the thread's clock.
                    timed(run, task["rank"], task["ranks"], sentinel, task["seconds"])
                )
                continue
            timing = (time_training if run.trained else time_layer)(
                run.layer,
                run.ids_TK(1),
                DTYPES[run.layer.precision.activations],
                seconds=task["seconds"],
                sentinel=sentinel,
                seed=run.seed,
            )
            found.append(
                {
                    "seconds": {name: times.tolist() for name, times in timing.seconds.items()},
                    "slowdown": timing.slowdown,
                    "contended": timing.contended,
                }
            )
    return found


def _time_ranks(
    run: LayerRun, rank: int, ranks: int, sentinel: Sentinel, seconds: float
) -> dict[str, Any]:
    """Time one layer over all ranks."""
    layer, dtype = run.layer, DTYPES[run.layer.precision.activations]
    placement = contiguous_placement(layer.num_experts, ranks)
    weights = random_local(layer, placement, rank, run.seed, dtype)
    generator = torch.Generator().manual_seed(run.seed + rank)
    # The simulator draws the tokens of all ranks in turn; this rank takes its part.
    mine = torch.from_numpy(
        run.ids_TK(ranks)[rank * run.num_tokens : (rank + 1) * run.num_tokens].astype(np.int32)
    )
    inputs = [
        torch.randn(run.num_tokens, layer.hidden_size, generator=generator).to(dtype)
        for _ in range(_INPUTS)
    ]
    orders = [
        mine[torch.randperm(len(mine), generator=generator)].contiguous() for _ in range(_INPUTS)
    ]
    x_TH = torch.empty_like(inputs[0])

    def repeat(number: int) -> np.ndarray:
        sentinel.settle(dtype)
        x_TH.copy_(inputs[number % _INPUTS])
        # All ranks start a repeat together.
        dist.barrier()
        times = [both_clocks()]
        # The gate really scores, but the experts follow the choices that were priced.
        weights_TK, _ = gate_by_torch(x_TH, layer, weights)
        expert_parallel_layer(
            x_TH,
            weights,
            layer,
            placement=placement,
            backend="grouped_mm",
            checked=False,
            routing=(weights_TK, orders[number % _INPUTS]),
            on_phase=lambda _: times.append(both_clocks()),
        )
        return np.diff(np.array(times), axis=0)

    before = sentinel.slowdown()
    rows = repeated(repeat, seconds)
    # Waits for other ranks are part of the exchanges, so those are left out of the comparison.
    computing = [PHASES.index(phase) for phase in ("gate", "permute", "experts", "reduce")]
    wall_R, thread_R = rows[:, computing].sum(axis=1).T
    slowdown = max(before, sentinel.slowdown(), float(np.median(wall_R / thread_R)) - 1.0)
    phases = dict(zip(PHASES, rows[:, :, 0].T.tolist(), strict=True))
    return {
        "seconds": phases | {"total": rows[:, :, 0].sum(axis=1).tolist()},
        "slowdown": slowdown,
        "contended": slowdown > CONTENDED,
    }


if __name__ == "__main__":
    json.dump(run_rank(json.load(sys.stdin)), sys.stdout)
