"""A check on this CPU is a well-formed row that says what was run; never how close it came."""

from dataclasses import replace

import numpy as np
import pytest
from moesim_kernels.sources import cpu
from moesim_kernels.sources.cpu import TorchCpu, runs_as_it_is, small_layer

from moesim.design.candidate import Candidate, Parallelism, Workload
from moesim.hardware import load_cluster, load_profile, single_device
from moesim.model import Gate, MoELayer, Precision
from moesim.routing import RoutingSpec, route
from moesim.simulation.prepare import prepare
from moesim.simulation.run import simulate
from moesim.units import US

CLUSTER = load_cluster("hgx-h100-8")


def candidate(gate="flat", **sizes):
    sizes = {
        "hidden_size": 2048,
        "expert_intermediate_size": 768,
        "num_experts": 128,
        "top_k": 4,
    } | sizes
    return Candidate(layer=MoELayer(gate=Gate.parse(gate), **sizes), parallelism=Parallelism(ep=8))


@pytest.fixture(scope="module")
def source():
    return TorchCpu(budget_s=1.0)


def test_available(source):
    assert source.name == "torch-cpu"
    assert source.unavailable_because() is None


def test_row_is_well_formed(source):
    asked = candidate(gate="group_limited:8:4", num_shared_experts=1)
    rows = source.check(
        asked, CLUSTER, Workload(num_tokens_per_device=8, routing="zipf:0.8", seed=5)
    )
    assert [row.quantity for row in rows] == ["layer_time_us", "gate_time_us", "experts_time_us"]
    for row in rows:
        assert (row.candidate, row.source) == (asked.label, "torch-cpu")
        assert (row.status, row.evidence, row.engine) == ("checked", "measured", "flow")
        assert (row.seed, row.in_fit_set) == (5, False)
        for word in (
            "E128",
            "E64 k4 H512 I128 group_limited:8:4",
            "64 tokens",
            "one thread",
            "P10",
            "no shared",
        ):
            assert word in row.detail
    layer, gate, experts = rows
    assert gate.simulated + experts.simulated == pytest.approx(layer.simulated)
    assert max(gate.measured, experts.measured) < layer.measured


def test_a_layer_simulated_on_a_measured_cpu_runs_as_it_is(source, cpu_profile_path):
    cluster = single_device(load_profile(str(cpu_profile_path)))
    fmt = "float32"
    layer = MoELayer(
        hidden_size=64,
        expert_intermediate_size=32,
        num_experts=8,
        top_k=2,
        gate=Gate(precision=fmt),
        precision=Precision(weights=fmt, activations=fmt, dispatch=fmt, combine=fmt),
    )
    asked, work = Candidate(layer=layer), Workload(num_tokens_per_device=48, seed=2)
    row = source.check(asked, cluster, work)[0]
    assert row.simulated == pytest.approx(simulate(asked, cluster, work).layer_time_s / US)
    assert "scaled down" not in row.detail
    assert runs_as_it_is(layer, 48)
    for change in (
        {"num_shared_experts": 1},
        {"capacity_factor": 1.0},
        {"expert_intermediate_size": 30},
        {"expert_intermediate_size": (32,) * 8},
        {"gate": Gate(precision=fmt, share_tokens=2)},
        {"precision": Precision.named("bf16")},
        {"expert_intermediate_size": 1 << 22},
    ):
        assert not runs_as_it_is(replace(layer, **change), 48)


def test_profile_is_measured_once(source, monkeypatch):
    cpu.local_profile(1.0)
    monkeypatch.setattr(
        "moesim_kernels.profile.cpu_profile.measure_profile",
        lambda *_, **__: pytest.fail("measured again"),
    )
    first = source.check(
        candidate(num_experts=8, top_k=1), CLUSTER, Workload(num_tokens_per_device=4)
    )
    second = source.check(
        candidate(num_experts=8, top_k=2), CLUSTER, Workload(num_tokens_per_device=4)
    )
    assert first[0].profile_hash == second[0].profile_hash


def test_small_layer_keeps_gate_and_top_k():
    whole = candidate(gate="two_level:16:2", num_experts=256, top_k=8, capacity_factor=1.5).layer
    layer = small_layer(whole, "float32")
    assert (layer.num_experts, layer.top_k, layer.hidden_size, layer.expert_intermediate_size) == (
        64,
        8,
        512,
        128,
    )
    assert (str(layer.gate), layer.gate.precision, layer.capacity_factor) == (
        "two_level:16:2+precision:float32",
        "float32",
        None,
    )
    assert layer.precision == Precision(
        weights="float32", activations="float32", dispatch="float32", combine="float32"
    )


def test_small_layer_shrinks_top_k_where_it_must():
    layer = small_layer(
        candidate(gate="group_limited:32:2", num_experts=256, top_k=8).layer, "bfloat16"
    )
    assert (layer.num_experts, layer.top_k) == (64, 4)


def test_tiny_layers_stay_valid():
    layer = small_layer(
        candidate(hidden_size=40, expert_intermediate_size=9, num_experts=3, top_k=3).layer,
        "bfloat16",
    )
    assert (layer.hidden_size, layer.expert_intermediate_size, layer.num_experts, layer.top_k) == (
        64,
        64,
        3,
        3,
    )


def test_timed_and_simulated_histograms_are_the_same():
    layer = small_layer(candidate(gate="group_limited:8:4").layer, "bfloat16")
    load = Workload(num_tokens_per_device=100, routing="power_law:1.2", seed=9)
    traffic = prepare(Candidate(layer=layer), single_device(CLUSTER.profile), load).traffic
    routing = route(
        RoutingSpec.parse(load.routing),
        layer.gate,
        num_experts=layer.num_experts,
        top_k=layer.top_k,
        num_tokens_S=np.array([100]),
        seed=9,
    )
    assert traffic.counts_DL[0].tolist() == routing.num_tokens_E().tolist()


def test_what_the_kernels_do_not_know_goes():
    whole = candidate(
        num_experts=64,
        capacity_factor=1.0,
        overflow="reroute",
        padded=True,
        gate="two_level:8:4+sigmoid+noisy_top_k:1+bias+local+share_tokens:4",
    ).layer
    small = small_layer(whole, "float32")
    assert str(small.gate) == "two_level:8:4+sigmoid+precision:float32"
    assert (small.capacity_factor, small.overflow, small.padded) == (None, "drop", False)
