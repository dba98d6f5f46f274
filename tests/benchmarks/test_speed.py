"""Performance figures of the README: `make bench`. Nothing is asserted about time here."""

import subprocess
import sys

import pytest

from moesim import (
    Candidate,
    Parallelism,
    Workload,
    load_cluster,
    load_preset,
    load_profile,
    simulate,
)
from moesim.costs.devices.primitives import kernels_for
from moesim.engines.run import run
from moesim.measured.kernels import table as silicon
from moesim.measured.kernels.draws import draw_rows
from moesim.search import Space
from moesim.search.evaluate import Problem
from moesim.simulation.prepare import prepare
from moesim.simulation.run import lower


@pytest.fixture
def case():
    layer = load_preset("qwen3-235b-a22b").layer
    candidate = Candidate(
        layer=layer, parallelism=Parallelism(ep=8), placement="eplb", num_replicas=8
    )
    return (
        candidate,
        load_cluster("hgx-h100-8"),
        Workload(num_tokens_per_device=1024, routing="power_law:1.2"),
    )


def test_import_moesim(benchmark):
    benchmark.pedantic(
        lambda: subprocess.run([sys.executable, "-c", "import moesim"], check=True), rounds=10
    )


@pytest.mark.parametrize("engine", ["bound", "flow", "event"])
def test_simulate_one_candidate_on_8_devices(benchmark, case, engine):
    simulate(*case, engine=engine)
    benchmark(lambda: simulate(*case, engine=engine))


@pytest.mark.parametrize("engine", ["bound", "flow", "event"])
def test_engine_alone_on_8_devices(benchmark, case, engine):
    program = lower(prepare(*case))
    run(program, engine)
    benchmark(lambda: run(program, engine))


def test_evaluate_a_fresh_point(benchmark, case):
    """Routing, placement and traffic included: every round another seed."""
    space = Space(
        dense_part="qwen3-235b-a22b",
        num_layers=32,
        train_tokens=2e12,
        hidden_size=4096,
        num_experts=[256],
        top_k=[8],
        expert_intermediate_size=[2048],
        placement=["eplb"],
        num_replicas=[8],
    )
    point = {name: choices[0] for name, choices in space.choices().items()}
    seeds = iter(range(10**9))

    def evaluate_next():
        workload = Workload(num_tokens_per_device=1024, routing="power_law:1.2", seed=next(seeds))
        problem = Problem(space=space, cluster=case[1], workload=workload, objectives=["loss"])
        return problem.evaluate(point)

    benchmark(evaluate_next)


def test_price_10000_measured_rows(benchmark):
    profile = load_profile("h100-sxm")
    rows = silicon.load_rows("h100_sxm", "sglang/0.5.14")
    rows = rows[rows["moe_dtype"] == "bfloat16"].sample(10_000, random_state=0).to_dict("records")
    draws = draw_rows(rows, profile)
    benchmark(lambda: draws.price(kernels_for(profile)))
