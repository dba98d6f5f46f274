"""Local search on the simulated time: never slower than where it began, and what it found is what
it says.
"""

from dataclasses import replace

import pytest

from moesim import Workload, load_cluster, simulate
from moesim.engines.run import run
from moesim.search.placements import refine
from moesim.simulation.prepare import prepare
from moesim.simulation.run import lower

WORK = Workload(num_tokens_per_device=128, routing="zipf:0.9")


@pytest.mark.parametrize("replicas", [0, 8])
def test_refined_is_at_least_as_fast_as_every_strategy(hgx, make_candidate, replicas):
    candidate = make_candidate(num_experts=32, top_k=4, placement="eplb", num_replicas=replicas)
    found = refine(candidate, hgx, WORK, steps=15)
    assert found.layer_time_s <= found.start_s
    again = lower(prepare(candidate, hgx, WORK, placement=found.placement))
    assert found.layer_time_s == run(again, "bound").makespan_s
    for strategy in ("eplb", "local_search"):
        planned = simulate(
            replace(candidate, placement=strategy), hgx, WORK, engine="bound"
        ).layer_time_s
        assert found.layer_time_s <= planned * (1 + 1e-12)


def test_what_it_found_is_no_worse_by_flow(make_candidate):
    rail = load_cluster("h100-rail-8x8").with_(num_nodes=2, devices_per_node=4)
    candidate = make_candidate(num_experts=32, top_k=4, placement="contiguous")
    found = refine(candidate, rail, WORK, steps=15)
    assert found.simulated == 15 + 8
    assert (
        simulate(candidate, rail, WORK, placement=found.placement).layer_time_s
        < simulate(candidate, rail, WORK).layer_time_s
    )
