"""Speed of the engines on networks, one core. Nothing is asserted about time here.

Programs are built beforehand, as ``moesim bench alltoall`` does, except where the lowering is part
of the figure.
"""

import math

import numpy as np
import pytest

from moesim import Candidate, MoELayer, Parallelism, Workload, load_cluster
from moesim.design.schedule import Schedule
from moesim.engines.bound import run_bound
from moesim.engines.event import run_event
from moesim.engines.event_compiled import run_event_compiled
from moesim.engines.flow import run_flow
from moesim.lowering.alltoall import exchange_program, rank_one_program, shares
from moesim.simulation.prepare import prepare
from moesim.simulation.run import lower

MB = 1e6
NAMES = {
    64: {"star": "star-64", "rail": "rail-8x8"},
    256: {"star": "star-256", "rail": "rail-32x8"},
    1024: {"star": "star-1024", "rail": "rail-128x8"},
}


def skewed(count):
    """Another amount for every pair, on top of hot and cold receivers."""
    rng = np.random.default_rng(0)
    return np.outer(np.full(count, MB), shares("zipf:0.8", count)) * rng.lognormal(
        0.0, 0.5, (count, count)
    )


@pytest.fixture(scope="module")
def layer_case():
    """A skewed layer on so many devices: candidate, cluster, workload; routing and placement
    cached.
    """

    def make(topology, count, micro_batches=1):
        layer = MoELayer(
            hidden_size=4096, expert_intermediate_size=1536, num_experts=max(128, count), top_k=8
        )
        candidate = Candidate(
            layer=layer,
            parallelism=Parallelism(ep=count),
            schedule=Schedule(num_micro_batches=micro_batches),
        )
        case = (
            candidate,
            load_cluster(NAMES[count][topology]),
            Workload(num_tokens_per_device=256, routing="power_law:1.2"),
        )
        prepare(*case)
        return case

    return make


@pytest.mark.parametrize("topology", ["star", "rail"])
@pytest.mark.parametrize("traffic", ["matrix", "rank_1"])
def test_bound_1024_devices_skewed(benchmark, topology, traffic):
    cluster = load_cluster(NAMES[1024][topology])
    program = (
        exchange_program(cluster, skewed(1024))
        if traffic == "matrix"
        else rank_one_program(cluster, np.full(1024, MB), shares("zipf:0.8", 1024))
    )
    run_bound(program)
    benchmark(lambda: run_bound(program))


@pytest.mark.parametrize("name", ["star-16384", "rail-2048x8", "torus-16x32x32"])
def test_bound_16384_devices_rank_1_building_included(benchmark, name):
    cluster, sent, share = load_cluster(name), np.full(16384, MB), shares("zipf:0.8", 16384)
    run_bound(rank_one_program(cluster, sent, share))
    benchmark(lambda: run_bound(rank_one_program(cluster, sent, share)))


@pytest.mark.parametrize("topology", ["star", "rail"])
@pytest.mark.parametrize("count", [256, 1024])
def test_event_compiled_of_pairs_one_chunk_each(benchmark, topology, count):
    program = exchange_program(
        load_cluster(NAMES[count][topology]), skewed(count), granularity="pair"
    )
    run = lambda: run_event_compiled(program, quantum_s=math.inf, min_chunks=1)  # noqa: E731
    benchmark.extra_info["chunks"] = run().events
    benchmark.pedantic(run, rounds=5)


@pytest.mark.parametrize("topology", ["star", "rail"])
@pytest.mark.parametrize("micro_batches", [1, 2])
def test_flow_one_layer_64_devices_exact_lowering_included(
    benchmark, layer_case, topology, micro_batches
):
    case = layer_case(topology, 64, micro_batches)
    run_flow(lower(prepare(*case)), tolerance_s=0.0)
    benchmark(lambda: run_flow(lower(prepare(*case)), tolerance_s=0.0))


@pytest.mark.parametrize("topology", ["star", "rail"])
def test_lowering_one_layer_64_devices(benchmark, layer_case, topology):
    case = layer_case(topology, 64)
    lower(prepare(*case))
    benchmark(lambda: lower(prepare(*case)))


@pytest.mark.parametrize("topology", ["star", "rail"])
@pytest.mark.parametrize("micro_batches", [1, 2])
def test_flow_one_layer_1024_devices_at_1e_3_lowering_included(
    benchmark, layer_case, topology, micro_batches
):
    case = layer_case(topology, 1024, micro_batches)

    def run():
        program = lower(prepare(*case))
        return run_flow(program, tolerance_s=1e-3 * run_bound(program).makespan_s)

    run()
    benchmark.pedantic(run, rounds=3)


@pytest.mark.parametrize("topology", ["star", "rail"])
def test_event_in_simpy_one_layer_64_devices(benchmark, layer_case, topology):
    program = lower(prepare(*layer_case(topology, 64)))
    benchmark.extra_info["chunks"] = run_event(program).events
    benchmark.pedantic(lambda: run_event(program), rounds=5)
