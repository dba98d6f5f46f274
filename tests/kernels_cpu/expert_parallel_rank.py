"""One rank of the expert-parallel tests: every case on its own tokens, against the whole layer in
this one process.
"""

import json
import sys
from dataclasses import replace

import numpy as np
import torch
import torch.distributed as dist
from moesim_kernels.ops.expert_grad import experts_reference, gate_weights
from moesim_kernels.ops.fp8 import quantise_blocks_reference
from moesim_kernels.ops.layer import (
    LayerWeights,
    gate_tokens_reference,
    moe_layer,
    shared_experts_reference,
)
from moesim_kernels.ops.plan import make_plan_reference
from moesim_kernels.ranks.expert_parallel import (
    PHASES,
    contiguous_placement,
    expert_parallel_layer,
    local_weights,
)
from moesim_kernels.ranks.group import rank_group

from moesim.model import Gate, MoELayer
from moesim.placement import Placement

KEYS = ("fine_EH", "coarse_GH", "query_QH", "keys_2Sq")
SHARED = ("shared_gate_up", "shared_down")


def largest(found, wanted):
    """Largest difference, over the largest wanted number."""
    if not wanted.numel():
        return float(found.shape != wanted.shape)
    return float(
        (found.float() - wanted.float()).abs().max() / wanted.float().abs().max().clamp(min=1e-9)
    )


def run(case, rank, ranks):
    layer = MoELayer(
        hidden_size=case.get("hidden", 32),
        expert_intermediate_size=16,
        num_experts=case["experts"],
        top_k=case["top_k"],
        num_shared_experts=case.get("shared", 0),
        gate=Gate.parse(case.get("gate", "flat")),
    )
    dtype = getattr(torch, case.get("dtype", "float32"))
    whole = LayerWeights.random(layer, seed=3, dtype=dtype)
    if case.get("dtype") != "bfloat16":
        whole = LayerWeights(
            **{
                name: None if (t := getattr(whole, name)) is None else t.to(dtype)
                for name in (*KEYS, *SHARED, "w_gate_up", "w_down")
            }
        )
    slots = case.get("slots")
    placement = slots and Placement(
        rank_of_slot_P=np.repeat(np.arange(ranks), [len(s) for s in slots]),
        expert_of_slot_P=np.concatenate(slots),
        num_ranks=ranks,
        num_experts=layer.num_experts,
    )
    generator = torch.Generator().manual_seed(5)
    x = [
        torch.randn(tokens, layer.hidden_size, generator=generator).to(dtype)
        for tokens in case["tokens"]
    ]
    if "hot" in case:  # every token to the same experts
        whole.fine_EH[:] = 0.0
        whole.fine_EH[case["hot"]] = x[0][0].abs()
        x = [tokens.abs() for tokens in x]
    mine = local_weights(whole, placement or contiguous_placement(layer.num_experts, ranks), rank)
    told = []
    if not case.get("train"):
        found = expert_parallel_layer(
            x[rank],
            mine,
            layer,
            placement=placement,
            backend=case.get("backend"),
            on_phase=told.append,
        )
        wanted = moe_layer(torch.cat(x), whole, layer, "torch").split(case["tokens"])[rank]
        return {
            "error": largest(found, wanted),
            "shape": list(found.shape),
            "dtype": str(found.dtype),
            "phases": told == list(PHASES),
        }
    trained = [
        name for name in (*KEYS, *SHARED, "w_gate_up", "w_down") if getattr(mine, name) is not None
    ]
    pull = torch.randn(sum(case["tokens"]), layer.hidden_size, generator=generator)

    def gradients(tokens, weights, pull_TH, call):
        leaves = [tokens, *(getattr(weights, name) for name in trained)]
        leaves = [leaf.clone().requires_grad_() for leaf in leaves]
        out = call(
            leaves[0],
            LayerWeights(
                **dict.fromkeys(KEYS + SHARED) | dict(zip(trained, leaves[1:], strict=True))
            ),
        )
        (out * pull_TH).sum().backward()
        return [torch.zeros_like(leaf) if leaf.grad is None else leaf.grad for leaf in leaves]

    found = gradients(
        x[rank],
        mine,
        pull.split(case["tokens"])[rank],
        lambda t, w: expert_parallel_layer(
            t, w, layer, placement=placement, backend=case.get("backend")
        ),
    )

    def single(tokens, weights):
        _, ids = gate_tokens_reference(tokens.detach(), layer.gate, weights, layer.top_k)
        out = experts_reference(
            tokens,
            gate_weights(tokens, layer.gate, weights, ids),
            weights.w_gate_up,
            weights.w_down,
            make_plan_reference(ids, layer.num_experts, 16),
        )
        return out + shared_experts_reference(tokens, weights) if layer.num_shared_experts else out

    wanted = gradients(torch.cat(x), whole, pull, single)
    # what every rank holds gets a part of its gradient on each
    for i, name in enumerate(trained, 1):
        if name in KEYS + SHARED:
            dist.all_reduce(found[i])
    wanted[0] = wanted[0].split(case["tokens"])[rank]
    mine_only = local_weights(
        LayerWeights(**dict.fromkeys(KEYS + SHARED) | dict(zip(trained, wanted[1:], strict=True))),
        placement or contiguous_placement(layer.num_experts, ranks),
        rank,
    )
    wanted[1:] = [getattr(mine_only, name) for name in trained]
    return {
        "errors": {
            name: largest(f, w) for name, f, w in zip(["x", *trained], found, wanted, strict=True)
        }
    }


def refused(rank, ranks):
    """What ranks that disagree, and bad input, are told; nothing is sent but the counts."""
    layer = MoELayer(hidden_size=32, expert_intermediate_size=16, num_experts=6, top_k=2)
    other = MoELayer(hidden_size=32, expert_intermediate_size=16, num_experts=6, top_k=1 + rank % 2)
    weights = local_weights(LayerWeights.random(layer, 0), contiguous_placement(6, ranks), rank)
    x = torch.ones(3, 32, dtype=torch.bfloat16)
    near = Placement(
        rank_of_slot_P=np.repeat(np.arange(ranks), 6),
        expert_of_slot_P=np.tile(np.arange(6), ranks),
        num_ranks=ranks,
        num_experts=6,
        nearest_within=1,
    )
    calls = {
        "layer": lambda: expert_parallel_layer(x, weights, other),
        "width": lambda: expert_parallel_layer(x[:, :16].contiguous(), weights, layer),
        "nan": lambda: expert_parallel_layer(x * torch.nan, weights, layer),
        "whole": lambda: expert_parallel_layer(x, LayerWeights.random(layer, 0), layer),
        "backend": lambda: expert_parallel_layer(x, weights, layer, backend="cuda"),
        "scaled": lambda: expert_parallel_layer(
            x,
            replace(
                weights,
                w_gate_up=quantise_blocks_reference(weights.w_gate_up),
                w_down=quantise_blocks_reference(weights.w_down),
            ),
            layer,
        ),
        "near": lambda: expert_parallel_layer(x, weights, layer, placement=near),
        "ranks": lambda: expert_parallel_layer(
            x, weights, layer, placement=contiguous_placement(6, ranks + 1)
        ),
        "empty": lambda: expert_parallel_layer(
            x,
            weights,
            layer,
            placement=Placement(
                rank_of_slot_P=np.zeros(6, dtype=int),
                expert_of_slot_P=np.arange(6),
                num_ranks=ranks,
                num_experts=6,
            ),
        ),
    }
    told = {}
    for name, call in calls.items():
        try:
            call()
        except ValueError as error:
            told[name] = f"{type(error).__name__}: {error}"
    return told


def main(task):
    with rank_group(task):
        found = [run(case, task["rank"], task["ranks"]) for case in task["cases"]]
        return {
            "cases": found,
            "refused": refused(task["rank"], task["ranks"]) if task["refuse"] else {},
        }


if __name__ == "__main__":
    json.dump(main(json.load(sys.stdin)), sys.stdout)
