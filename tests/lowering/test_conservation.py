"""Every exchange on every fabric in every engine: bytes are conserved end to end, and engines agree."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moesim import Candidate, Gate, MoELayer, Parallelism, load_cluster
from moesim.costs.comm.choose import exchange_kernel
from moesim.design.schedule import Schedule
from moesim.engines import ENGINES
from moesim.engines.run import run
from moesim.errors import ConfigError
from moesim.hardware.exchanges import EXCHANGES
from moesim.hardware.fabric import fabric_of
from moesim.hardware.routes import Factors, device_rows, link_bytes, pair_rows
from moesim.lowering.exchange import Priced
from moesim.lowering.layer import lower_layer
from moesim.lowering.traffic import spread_tokens
from moesim.placement import place
from moesim.routing import RoutingSpec, route

#: small ones of every kind of fabric
CLUSTERS = {
    "star": lambda: load_cluster("star-4"),
    "rail": lambda: load_cluster("rail-3x4"),
    "oversubscribed rail": lambda: load_cluster("rail-3x4").with_(oversubscription=3.0),
    "fat tree": lambda: _fat_tree(),
    "mesh": lambda: load_cluster("mi300x-8").with_(devices_per_node=4),
    "meshes": lambda: load_cluster("mi300x-rail-4x8").with_(num_nodes=2, devices_per_node=4),
    "pcie": lambda: load_cluster("l40s-pcie-8"),
    "ring": lambda: load_cluster("torus-5"),
    "torus": lambda: load_cluster("torus-2x3x2"),
    "grid": lambda: load_cluster("torus-3x4").with_(wrap_multiple_of=0),
    "multi-path torus": lambda: load_cluster("torus-3x4").with_(routing="multi_path"),
    "twisted torus": lambda: load_cluster("tpu-v4-4x4x8-twisted").with_(axes=[2, 2, 4], wrap_multiple_of=1),
    "mixed": lambda: load_cluster("mixed-h100-b200"),
}
#: `host` wants a measured profile
NAMES = sorted(set(EXCHANGES) - {"host"})


def _fat_tree():
    rails = load_cluster("rail-4x4").with_(oversubscription=2.0, nodes_per_leaf=2)
    file = rails.file.model_copy(update={"scale_out": rails.file.scale_out.model_copy(update={"kind": "fat_tree"})})
    return type(rails)(name="fat tree", file=file, groups=rails.groups, digest=rails.digest, provenance={})


def lowered(cluster, schedule, *, seed=0, tokens=40, gate=None, spec="power_law:1.1"):
    """(program, priced exchanges)."""
    devices = cluster.num_devices
    layer = MoELayer(hidden_size=512, expert_intermediate_size=256, num_experts=4 * devices, top_k=4)
    candidate = Candidate(layer=layer, parallelism=Parallelism(ep=devices), schedule=schedule)
    routing = route(RoutingSpec.parse(spec), gate or Gate(), num_experts=4 * devices, top_k=4,
                    num_tokens_S=np.full(devices, tokens), seed=seed)
    placement = place("contiguous", routing.num_tokens_E(), devices, 0)
    parts = schedule.num_micro_batches
    batches = [spread_tokens(routing.part(m, parts), placement, candidate.parallelism,
                             devices_per_domain=cluster.devices_per_domain) for m in range(parts)]
    kernel = exchange_kernel(cluster, cluster.exchange(schedule))
    priced = [Priced.of(candidate.layer, traffic, kernel, cluster, num_experts=4 * devices,
                        exchange=cluster.exchange(schedule)) for traffic in batches]
    return lower_layer(candidate, cluster, batches, kernel), priced


@pytest.mark.parametrize("dispatch", NAMES)
@pytest.mark.parametrize("cluster", CLUSTERS)
def test_bytes_land_whatever_way_they_take_and_every_engine_serves_them(cluster, dispatch):
    """What lands in memories is what the movement says, whole, by either granularity, in one or two micro-batches."""
    machine = CLUSTERS[cluster]()
    if dispatch == "all_gather" and machine.file.scale_up.kind == "torus":
        with pytest.raises(ConfigError, match=r"^exchange all_gather: .* is a torus, which gathers ring by ring"):
            lowered(machine, Schedule(exchange=dispatch))
        return
    for granularity in ("device", "pair"):
        if granularity == "pair" and machine.num_devices > 16:
            continue
        for parts in (1, 2):
            program, priced = lowered(machine, Schedule(exchange=dispatch, granularity=granularity,
                                                        num_micro_batches=parts))
            wanted = sum(
                (leg.copies_SD.sum() - np.trace(leg.copies_SD)) * size
                for exchange in priced for leg in exchange.movement.legs for size in exchange.copy_bytes.values())
            first = dict(zip([n for n, _ in program.resources.kinds()], np.cumsum(
                [0, *(count for _, count in program.resources.kinds())]), strict=False))["hbm"]
            moving = np.isin(program.phase_N, [program.phase_names.index(p) for p in ("dispatch", "combine")])
            entries = moving[program.op_of_entry()] & (program.demand_resource >= first)
            assert program.demand_amount[entries].sum() == pytest.approx(wanted, rel=1e-12)
            demand = program.busy_s_R()
            times = {}
            for engine in ENGINES:
                timeline = run(program, engine)
                assert timeline.busy_s_R == pytest.approx(demand, rel=1e-9, abs=1e-18)
                times[engine] = timeline.makespan_s
                if engine != "bound":
                    for i in range(program.num_ops):
                        waited = program.dep_index[program.dep_ptr[i] : program.dep_ptr[i + 1]]
                        before = timeline.end_s_N[waited].max() if len(waited) else 0.0
                        assert timeline.start_s_N[i] >= before * (1 - 1e-12)
            assert times["bound"] <= min(times.values()) * (1 + 1e-9)
            assert times["event"] == pytest.approx(times["flow"], rel=0.01 if granularity == "device" else 0.02)
            assert times["event_compiled"] == pytest.approx(times["event"], rel=1e-9)


@pytest.mark.parametrize("cluster", CLUSTERS)
def test_the_compiled_twin_gives_simpy_s_timeline_on_every_fabric(cluster):
    machine = CLUSTERS[cluster]()
    for granularity in ("device", "pair"):
        if granularity == "pair" and machine.num_devices > 16:
            continue
        for parts, window in ((1, 0), (2, 0), (1, 2)):
            program, _ = lowered(machine, Schedule(granularity=granularity, num_micro_batches=parts,
                                                   send_window=window), seed=parts)
            expected, got = run(program, "event"), run(program, "event_compiled")
            for name in ("start_s_N", "end_s_N", "busy_s_R"):
                assert getattr(got, name) == pytest.approx(getattr(expected, name), rel=1e-9, abs=1e-18)
            assert got.events == expected.events


@settings(max_examples=25)
@given(cluster=st.sampled_from(sorted(set(CLUSTERS) - {"mixed"})), seed=st.integers(0, 10**6),
       zeros=st.floats(0.0, 0.95), factor=st.floats(1.0, 2.0))
def test_rows_of_receivers_senders_and_pairs_carry_the_same_bytes(cluster, seed, zeros, factor):
    """Resource by resource; and what enters the fabric leaves it."""
    machine = CLUSTERS[cluster]()
    fabric, count = fabric_of(machine), machine.num_devices
    rng = np.random.default_rng(seed)
    bytes_SD = rng.lognormal(10.0, 1.5, (count, count)) * (rng.random((count, count)) > zeros)
    land = np.arange(count) + fabric.num_resources
    factors = Factors(*(np.full(count, factor) for _ in Factors._fields))
    total = fabric.num_resources + count
    senders, receivers = np.nonzero(bytes_SD * (1 - np.eye(count)))
    rows = {by: device_rows(fabric, bytes_SD, by=by, factors=factors, land_D=land) for by in ("receiver", "sender")}
    rows["pair"] = pair_rows(fabric, bytes_SD, senders, receivers, factors=factors, land_D=land)
    away = bytes_SD * (1 - np.eye(count))
    loads = {by: np.bincount(found.resource, found.amount, total) for by, found in rows.items()}
    for by, load in loads.items():
        assert load == pytest.approx(loads["pair"], rel=1e-9), by
        assert load[fabric.num_resources :] == pytest.approx(away.sum(axis=0), rel=1e-9)
        assert rows[by].bytes_N.sum() == pytest.approx(away.sum(), rel=1e-9)
        assert rows[by].flows_N.sum() == len(senders)
        for i in range(len(rows[by].ptr) - 1):
            assert (np.diff(rows[by].resource[rows[by].ptr[i] : rows[by].ptr[i + 1]]) > 0).all()
    assert link_bytes(fabric, bytes_SD) * factor == pytest.approx(loads["pair"][: fabric.num_resources], rel=1e-9)
    runs, first = {}, 0
    for name, rates in fabric.runs:
        runs[name] = loads["pair"][first : first + len(rates)].sum() / factor
        first += len(rates)
    for out, into in (("egress", "ingress"), ("nic_out", "nic_in"), ("leaf_up", "leaf_down"),
                      ("switch_up", "switch_down")):
        assert runs.get(out, 0.0) == pytest.approx(runs.get(into, 0.0), rel=1e-9)
    if "link" not in runs:
        assert runs.get("egress", 0.0) + runs.get("nic_out", 0.0) == pytest.approx(away.sum(), rel=1e-9)


@pytest.mark.parametrize("cluster", ["rail", "oversubscribed rail", "meshes"])
def test_two_hops_side_by_side_and_one_after_the_other(cluster):
    """DeepEP's hops overlap; hierarchical ones do not: between the longer hop and the sum of both."""
    machine = CLUSTERS[cluster]()
    for dispatch in ("deepep_normal", "hierarchical"):
        program, (priced,) = lowered(machine, Schedule(exchange=dispatch), tokens=400)
        timeline = run(program, "flow")
        labels = program.labels_N
        leg = {name: [i for i, label in enumerate(labels) if label.startswith(f"dispatch{name}[")]
               for name in ("_rdma", "_nvlink", "_near", "_far")}
        first, second = ("_rdma", "_nvlink") if dispatch == "deepep_normal" else ("_near", "_far")
        begin = timeline.start_s_N[leg[second]].min()
        if priced.movement.serial:
            assert begin >= timeline.end_s_N[leg[first]].min()
        else:
            assert begin == pytest.approx(timeline.start_s_N[leg[first]].min())
        experts = [i for i, label in enumerate(labels) if label.startswith("experts[")]
        for d, i in enumerate(experts):
            assert timeline.start_s_N[i] >= timeline.end_s_N[leg[second][d]] * (1 - 1e-12)
            domain = d // machine.devices_per_domain
            relays = [r for r in range(machine.num_devices) if r // machine.devices_per_domain == domain]
            if dispatch == "deepep_normal":  # what a relay has still to receive, it has still to forward
                assert timeline.start_s_N[i] >= timeline.end_s_N[[leg[first][r] for r in relays]].max() * (1 - 1e-12)


def test_one_copy_per_domain_and_limited_groups_save_bytes_between_nodes():
    """NCCL sends a copy for each device, DeepEP one a node; group-limited routing touches fewer nodes."""
    machine = load_cluster("rail-4x4")

    def crossing(dispatch, gate=None):
        program, _ = lowered(machine, Schedule(exchange=dispatch), gate=gate, spec="uniform", tokens=200)
        names = program.resource_names
        return sum(d for name, d in zip(names, program.demand_R(), strict=True) if name.startswith("nic_out"))

    limited = Gate(kind="group_limited", num_expert_groups=4, num_limited_groups=2)
    assert crossing("deepep_normal") < 0.95 * crossing("nccl")
    assert crossing("deepep_normal", limited) < 0.9 * crossing("deepep_normal")
    assert crossing("all_gather") > crossing("nccl")


@pytest.mark.parametrize("granularity", ["device", "pair"])
def test_nobody_computes_or_sums_before_its_own_tokens_are_ready(granularity):
    """Also a device that receives nothing, or whose peers are long ready: its own tokens are there, too."""
    program, _ = lowered(load_cluster("star-16"), Schedule(granularity=granularity), tokens=1, spec="zipf:2")
    timeline, labels = run(program, "flow"), program.labels_N
    for d in range(16):
        at = {name: labels.index(f"{name}[{d}]") for name in ("permute", "experts", "reduce")}
        assert timeline.start_s_N[at["experts"]] >= timeline.end_s_N[at["permute"]] > 0
        assert timeline.start_s_N[at["reduce"]] >= timeline.end_s_N[at["experts"]]
