"""Speed and memory of a whole layer on thousands of devices, each in a process of its own: traffic
is expected and stays factored. Nothing is asserted about time here.

DeepSeek-V3's layer, zipf:0.8, EPLB with one slot per device. The first line of each is with nothing
cached but compiled code; 4,096 and 16,384 devices took 10 and 63 s, 2.2 and 11.9 GB with a matrix
of pairs.
"""

import json
import subprocess
import sys

import numpy as np
import pytest

from moesim import Candidate, Parallelism, Workload, load_cluster, load_preset, simulate
from moesim.design.schedule import Schedule
from moesim.engines.flow import run_flow
from moesim.lowering.alltoall import exchange_program, shares

LAYER = """
import json, resource, sys, time
from moesim import Candidate, Parallelism, Workload, load_cluster, load_preset, simulate
name, tokens, engine = sys.argv[1], int(sys.argv[2]), sys.argv[3]
cluster = load_cluster(name)
devices = cluster.num_devices
layer = load_preset("deepseek-v3").layer
candidate = Candidate(
    layer=layer, parallelism=Parallelism(ep=devices), placement="eplb", num_replicas=devices - 256)
took = []
for seed in range(4):
    work = Workload(num_tokens_per_device=tokens, routing="zipf:0.8", seed=seed)
    begun = time.perf_counter()
    simulate(candidate, cluster, work, engine=engine)
    took.append(time.perf_counter() - begun)
print(json.dumps(dict(
    first_s=took[0], next_s=sorted(took[1:])[1],
    peak_gib=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20)))
"""


@pytest.mark.parametrize("engine", ["bound", "flow"])
@pytest.mark.parametrize(
    ("cluster", "tokens"), [("rail-512x8", 1024), ("star-4096", 1024), ("rail-2048x8", 256)]
)
def test_a_layer(benchmark, cluster, tokens, engine):
    command = [sys.executable, "-c", LAYER, cluster, str(tokens), engine]

    def run():
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        return json.loads(done.stdout)

    benchmark.extra_info.update(benchmark.pedantic(run, rounds=1, warmup_rounds=1))


def test_a_million_devices(benchmark):
    """The bound of rank-1 traffic, whole process."""
    words = ["bench", "alltoall", "--cluster", "rail-131072x8", "--engine", "bound"]
    words += ["--bytes-per-pair", "1e6", "--routing", "zipf:0.8", "--json"]
    command = [sys.executable, "-m", "moesim.cli", *words]

    def run():
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        return json.loads(done.stdout)

    found = benchmark.pedantic(run, rounds=1)
    benchmark.extra_info["peak_gib"] = found["peak_memory_bytes"] / 2**30


EXPECTED = [
    ("rail-128x8", None, "zipf:0.8", 1024, 1),
    ("star-1024", None, "power_law:1.2", 1024, 1),
    ("rail-128x8", "deepep_normal", "zipf:0.8", 1024, 2),
    ("rail-128x8", "hierarchical", "lognormal:0.5", 1024, 1),
    ("rail-128x8", "nccl", "uniform", 128, 1),
]


@pytest.mark.parametrize(("name", "exchange", "routing", "tokens", "parts"), EXPECTED)
def test_expected_against_drawn(benchmark, monkeypatch, name, exchange, routing, tokens, parts):
    """How far layers of 1,024 devices are off if their traffic is expected: the README's figure."""
    layer = load_preset("deepseek-v3").layer
    candidate = Candidate(
        layer=layer,
        parallelism=Parallelism(ep=1024),
        placement="eplb",
        num_replicas=768,
        schedule=Schedule(exchange=exchange, num_micro_batches=parts),
    )
    work = Workload(num_tokens_per_device=tokens, routing=routing)
    drawn = simulate(candidate, load_cluster(name), work)
    monkeypatch.setattr("moesim.simulation.drawing.MOST_DRAWN", 1)
    found = benchmark.pedantic(
        simulate, args=(candidate, load_cluster(name), work), rounds=1, iterations=1
    )
    assert found.granularity.endswith("_expected")
    benchmark.extra_info["off_percent"] = 100 * (found.layer_time_s / drawn.layer_time_s - 1)


@pytest.mark.parametrize("name", ["torus-8x8x16", "rail-128x8"])
def test_what_a_tolerance_costs(benchmark, name):
    """How late an exchange of 1,024 devices ends at the default tolerance."""
    program = exchange_program(
        load_cluster(name), np.outer(np.full(1024, 1e6), shares("zipf:0.8", 1024))
    )
    exact = run_flow(program, tolerance_s=0.0)
    found = benchmark.pedantic(run_flow, args=(program,), rounds=3)
    benchmark.extra_info["late_percent"] = 100 * (found.makespan_s / exact.makespan_s - 1)
