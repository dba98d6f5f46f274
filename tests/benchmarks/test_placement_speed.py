"""Speed of placement: 256 experts and 64 replicas on 64 ranks. Nothing is asserted about
time here.
"""

import numpy as np
import pytest

from moesim import Candidate, Parallelism, Workload, load_cluster, load_preset
from moesim.model import Gate
from moesim.placement import Setting, place
from moesim.placement.exact import exact_slots
from moesim.placement.migration import imbalance
from moesim.routing import RoutingSpec, route
from moesim.search.placements import refine

NODES = Setting(ranks_per_node=8, num_expert_groups=8)


def fresh_loads(count=10**9):
    rng = np.random.default_rng(0)
    return (rng.lognormal(0, 1, 256) for _ in range(count))


@pytest.mark.parametrize(
    "strategy", ["eplb", "eplb_hierarchical", "hierarchical", "local_search:20", "local_search"]
)
def test_place_256_and_64_on_64(benchmark, strategy):
    """Never the same loads: nothing comes from the cache."""
    loads = fresh_loads()
    benchmark(lambda: place(strategy, next(loads), 64, 64, setting=NODES))


@pytest.mark.parametrize("strategy", ["affinity", "domain"])
def test_place_by_routing(benchmark, strategy):
    routing = route(
        RoutingSpec.parse("zipf:0.8"),
        Gate(),
        num_experts=256,
        top_k=8,
        num_tokens_S=np.full(64, 128),
        seed=0,
    )
    loads = fresh_loads()
    benchmark(lambda: place(strategy, next(loads), 64, 64, setting=NODES, routing=routing))


def test_place_from_the_cache(benchmark):
    load = next(fresh_loads())
    place("eplb", load, 64, 64, setting=NODES)
    benchmark(lambda: place("eplb", load, 64, 64, setting=NODES))


@pytest.mark.parametrize(
    "case",
    [(16, 4, 0), (16, 4, 4), (24, 4, 0), (24, 6, 6), (32, 8, 0), (16, 8, 8)],
    ids=lambda c: "x".join(map(str, c)),
)
def test_local_search_against_the_integer_program(benchmark, case):
    """Extra information: how far the search is from what 60 s of HiGHS find, and from its bound,
    worst of three.
    """
    experts, ranks, replicas = case
    loads = [np.random.default_rng(seed).lognormal(0, 1, experts) for seed in range(3)]
    over, gap = [], []
    for load in loads:
        best = exact_slots(load, ranks, replicas, Setting(), seconds=60)
        mine = imbalance(place("local_search", load, ranks, replicas), load) * load.sum() / ranks
        over.append(mine / best.makespan - 1)
        gap.append(mine / best.bound - 1)
    benchmark.extra_info["over_found_percent"] = 100 * max(over)
    benchmark.extra_info["over_bound_percent"] = 100 * max(gap)
    fresh = (np.random.default_rng(seed).lognormal(0, 1, experts) for seed in range(10**9))
    benchmark(lambda: place("local_search", next(fresh), ranks, replicas))


def test_refine_on_64_devices(benchmark):
    candidate = Candidate(
        layer=load_preset("deepseek-v3").layer,
        parallelism=Parallelism(ep=64),
        placement="eplb",
        num_replicas=64,
    )
    cluster, work = (
        load_cluster("h100-rail-8x8"),
        Workload(num_tokens_per_device=64, routing="zipf:0.8"),
    )
    benchmark.pedantic(
        lambda: refine(candidate, cluster, work, steps=20), rounds=3, warmup_rounds=1
    )
