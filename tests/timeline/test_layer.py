"""Timelines of simulated layers: what they show is what the result says."""

from dataclasses import replace

import pytest

from moesim import Candidate, Parallelism, Workload, load_cluster, load_preset
from moesim.design.offload import Offload
from moesim.design.schedule import Schedule
from moesim.errors import ConfigError
from moesim.hardware.exchanges import EXCHANGES
from moesim.hardware.libraries import kernel_libraries
from moesim.report.chrome_trace import write_trace
from moesim.simulation.prepare import prepare
from moesim.simulation.run import simulate_prepared
from moesim.testing.traces import CheckedTrace
from moesim.timeline.kernel_names import kernel_names
from moesim.timeline.layer import layer_sheet

CASES = {
    "node": ("hgx-h100-8", Schedule()),
    "two hops, two batches": (
        "rail-2x4",
        Schedule(exchange="deepep_normal", num_micro_batches=2),
    ),
    "pairs": ("hgx-h100-8", Schedule(granularity="pair", num_micro_batches=2)),
    "staged": ("rail-2x4", Schedule(exchange="hierarchical")),
    "mesh": ("mi300x-8", Schedule()),
    "torus": ("torus-2x2x2", Schedule(exchange="ici")),
}


def simulated(case, engine="flow", **changes):
    name, schedule = CASES[case]
    cluster = load_cluster(name)
    layer = load_preset("qwen3-30b-a3b").layer
    candidate = Candidate(layer=layer, parallelism=Parallelism(ep=8), schedule=schedule)
    prepared = prepare(
        replace(candidate, **changes),
        cluster,
        Workload(num_tokens_per_device=512, routing="zipf:0.8", seed=3),
    )
    return prepared, simulate_prepared(prepared, engine=engine)


@pytest.mark.parametrize("case", CASES)
def test_the_trace_says_what_the_result_says(case, tmp_path):
    prepared, result = simulated(case)
    sheet = layer_sheet(prepared, result)
    found = CheckedTrace(write_trace(tmp_path / "t.json", sheet))
    path = ("critical path", "phases")
    assert found.span_s(*path) == pytest.approx(result.layer_time_s, rel=1e-3)
    phases = {name: s for name, s in result.phase_time_s.items() if s > 0}
    assert found.seconds(*path) == pytest.approx(phases, rel=1e-3, abs=2e-9)
    exposed = sum(one["dur"] for one in found.slices[path] if one["args"]["exposed_communication"])
    said = result.phase_time_s["dispatch"] + result.phase_time_s["combine"]
    assert exposed * 1e-6 == pytest.approx(said, rel=1e-3)
    ends = [track[-1]["ts"] + track[-1]["dur"] for track in found.slices.values()]
    assert max(ends) * 1e-6 == pytest.approx(result.layer_time_s, rel=1e-3)
    assert found.facts["design"] == prepared.candidate.key
    assert found.facts["engine"] == "flow"
    # arrows lead through the experts of every rank and micro-batch
    batches = prepared.candidate.schedule.num_micro_batches
    assert len(found.flows) == 8 * batches
    assert all(len(chain) >= 3 for chain in found.flows.values())


@pytest.mark.parametrize("case", ["node", "two hops, two batches", "torus"])
def test_counters_integrate_to_the_use_of_resources(case, tmp_path):
    prepared, result = simulated(case)
    found = CheckedTrace(write_trace(tmp_path / "t.json", layer_sheet(prepared, result)))
    for counter, kind in (("HBM busy", "hbm"), ("compute busy", "sm"), ("NIC out busy", "nic_out")):
        if kind not in result.utilisation:
            continue
        means = [found.mean_of(f"rank {d}", counter, result.layer_time_s) for d in range(8)]
        assert max(means) / 100 == pytest.approx(result.utilisation[kind], rel=1e-2)


def test_experts_carry_their_work_and_the_name_of_their_kernel(tmp_path):
    prepared, result = simulated("two hops, two batches")
    found = CheckedTrace(write_trace(tmp_path / "t.json", layer_sheet(prepared, result)))
    slices = [
        one
        for rank in range(8)
        for one in found.slices[f"rank {rank}", "compute"]
        if one["cat"] == "experts"
    ]
    layer = prepared.candidate.layer
    rows = 8 * 512 * layer.top_k
    assert sum(one["args"]["rows"] for one in slices) == rows
    flops = sum(one["args"]["flops"] for one in slices)
    assert flops == pytest.approx(2.0 * rows * layer.params_per_expert)
    assert {one["name"] for one in slices} == {"fused_moe_kernel"}
    assert {one["args"]["bound_by"] for one in slices} <= {"sm", "hbm", "latency"}
    sent = found.slices["rank 0", "send rdma"]
    assert {one["name"] for one in sent} == {
        "deep_ep::internode::dispatch",
        "deep_ep::internode::combine",
    }
    received = sum(
        one["args"]["bytes"]
        for rank in range(8)
        for one in found.slices[f"rank {rank}", "receive nvlink"]
        if one["cat"] == "dispatch"
    )
    assert received > 0


def test_copies_from_the_host_have_a_track(tmp_path):
    prepared, result = simulated("node", offload=Offload(resident_fraction=0.5))
    found = CheckedTrace(write_trace(tmp_path / "t.json", layer_sheet(prepared, result)))
    assert {one["cat"] for one in found.slices["rank 0", "host copies"]} <= {"fetch", "prefetch"}


def test_the_event_engine_and_one_device(tmp_path):
    prepared, result = simulated("node", engine="event_compiled")
    found = CheckedTrace(write_trace(tmp_path / "t.json", layer_sheet(prepared, result)))
    assert found.span_s("critical path", "phases") == pytest.approx(result.layer_time_s, rel=1e-3)
    layer = load_preset("qwen3-30b-a3b").layer
    alone = prepare(
        Candidate(layer=layer), load_cluster("h100-sxm"), Workload(num_tokens_per_device=64)
    )
    found = CheckedTrace(
        write_trace(tmp_path / "one.json", layer_sheet(alone, simulate_prepared(alone)))
    )
    assert ("rank 0", "send") not in found.slices


def test_a_bound_is_no_schedule():
    with pytest.raises(ConfigError, match="expected an engine that makes a schedule"):
        layer_sheet(*simulated("node", engine="bound"))


def test_every_library_and_exchange_of_gpus_has_names():
    cluster = load_cluster("hgx-h100-8")
    for library in kernel_libraries():
        assert kernel_names(cluster, library.name, None, "float8_e4m3")["experts"]
    # torus, host and ideal run no kernel that a profiler would name
    for exchange in EXCHANGES.keys() - {"ici", "host", "ideal"}:
        assert {"dispatch", "combine"} <= kernel_names(cluster, "", exchange, "bfloat16").keys()
