"""The simulator's tile count and the plan on the device are the same number."""

import numpy as np
import pytest
import torch
from moesim_kernels.plan import make_plan
from moesim_kernels.tiles import tiles_per_expert

from moesim.costs.load import Load
from moesim.model import Gate
from moesim.routing import RoutingSpec, route


@pytest.mark.parametrize("block_m", [16, 64])
@pytest.mark.parametrize(("num_experts", "top_k", "num_tokens"), [(8, 2, 1), (61, 4, 129), (128, 8, 40)])
@pytest.mark.parametrize("routing", ["uniform", "zipf:1.2", "power_law:1.2"])
def test_tiles_of_the_simulator_are_those_of_the_plan(routing, num_experts, top_k, num_tokens, block_m):
    drawn = route(RoutingSpec.parse(routing), Gate(), num_experts=num_experts, top_k=top_k,
                  num_tokens_S=np.array([num_tokens]), seed=1)
    counts_E = drawn.num_tokens_E()
    load = Load.of(counts_E[None], np.array([num_tokens * top_k]), block_m)
    plan = make_plan(torch.from_numpy(drawn.expert_ids_TK), num_experts, block_m)
    assert load.blocks_D.tolist() == [int(plan.num_tiles)] == [tiles_per_expert(counts_E, block_m).sum()]
