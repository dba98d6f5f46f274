"""Speed of routing: counts and choices of a million tokens, capacities, and a long trace. Nothing
is asserted here.
"""

import numpy as np
import pytest

from moesim.model.gate import Gate
from moesim.routing import RoutingSpec, open_trace, route, sample_counts
from moesim.routing.capacity import serve

TOKENS = 1_000_000
SIZES = {"num_experts": 256, "top_k": 8}


@pytest.mark.parametrize("spec", ["power_law:1.2", "olmoe-mix", "dirichlet:1"])
def test_counts(benchmark, spec):
    seeds = iter(range(10**9))
    benchmark(
        lambda: sample_counts(
            RoutingSpec.parse(spec), Gate(), num_tokens=TOKENS, seed=next(seeds), **SIZES
        )
    )


@pytest.mark.parametrize("gate", ["flat", "group_limited:8:4"])
def test_choices(benchmark, gate):
    benchmark.pedantic(
        lambda: route(
            RoutingSpec.parse("power_law:1.2"),
            Gate.parse(gate),
            seed=0,
            num_tokens_S=np.full(8, TOKENS // 8),
            **SIZES,
        ),
        rounds=5,
        warmup_rounds=1,
    )


@pytest.mark.parametrize("reroute", [False, True])
def test_capacities(benchmark, reroute):
    routing = route(
        RoutingSpec.parse("zipf:0.8"), Gate(), num_tokens_S=np.array([TOKENS]), seed=0, **SIZES
    )
    capacity = int(1.25 * TOKENS * 8 / 256)
    benchmark.pedantic(
        lambda: serve(routing.expert_ids_TK, 256, capacity, reroute=reroute),
        rounds=3,
        warmup_rounds=1,
    )


def test_a_trace_of_eight_million_choices(benchmark, tmp_path):
    ids = np.random.default_rng(0).integers(0, 32, (TOKENS, 8)) + 32 * np.arange(8)
    np.save(tmp_path / "t.npy", ids.astype(np.int16))

    def described():
        open_trace.__globals__["_open"].cache_clear()
        return open_trace(str(tmp_path / "t.npy")).counts()

    benchmark.pedantic(described, rounds=3)
