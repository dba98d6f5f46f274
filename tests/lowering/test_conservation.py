"""Every exchange on every fabric in every engine: bytes are conserved end to end, and engines
agree.
"""

import re
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moesim import Gate, load_cluster
from moesim.design.schedule import Schedule
from moesim.engines import ENGINES
from moesim.engines.run import run
from moesim.errors import UnknownNameError
from moesim.hardware.exchanges import EXCHANGES
from moesim.hardware.fabric import fabric_of
from moesim.hardware.routes import Factors, device_rows, link_bytes, pair_rows
from moesim.testing import check_exchange
from moesim.testing.engines import expect_dependencies
from moesim.testing.exchanges import (
    CHECKS,
    FABRICS,
    is_deterministic,
    lowered_exchange,
    lowerings,
    refusal,
)

#: `host` wants a measured profile
NAMES = sorted(set(EXCHANGES) - {"host"})


def lowered(cluster, schedule, **options):
    """(program, priced exchanges)."""
    found = lowered_exchange(cluster, schedule, **options)
    return found.program, found.priced


@pytest.mark.parametrize("dispatch", NAMES)
@pytest.mark.parametrize("cluster", FABRICS)
def test_contract_on_every_fabric_and_every_engine_agrees(cluster, dispatch):
    """What lands in memories is what the movement says, whole, by either granularity, in one or two
    micro-batches.
    """
    machine = FABRICS[cluster]()
    if dispatch == "all_gather" and machine.file.scale_up.kind == "torus":
        assert re.match(
            "exchange all_gather: .* is a torus, which gathers ring by ring",
            refusal(dispatch, machine),
        )
        return
    is_deterministic(dispatch, machine)
    for found in lowerings(dispatch, machine):
        for check in CHECKS:
            check(found)
        program = found.program
        timelines = {engine: run(program, engine) for engine in ENGINES}
        for engine, timeline in timelines.items():
            assert timeline.busy_s_R == pytest.approx(program.busy_s_R(), rel=1e-9, abs=1e-18)
            if engine != "bound":
                expect_dependencies(program, timeline, engine)
        times = {engine: timeline.makespan_s for engine, timeline in timelines.items()}
        assert times["bound"] <= min(times.values()) * (1 + 1e-9)
        loose = 0.01 if "device granularity" in found.name else 0.025
        assert times["event"] == pytest.approx(times["flow"], rel=loose)
        assert times["event_compiled"] == pytest.approx(times["event"], rel=1e-9)


def test_the_suite_as_a_whole_and_what_it_catches(monkeypatch):
    small = {name: FABRICS[name] for name in ("star", "torus")}
    check_exchange("nccl", small)
    with pytest.raises(
        AssertionError, match=r"^expected all_gather to run on at least one of torus$"
    ):
        check_exchange("all_gather", {"torus": FABRICS["torus"]})
    with pytest.raises(UnknownNameError, match=r"^unknown exchange 'pigeon'"):
        check_exchange("pigeon", small)
    found = next(lowerings("nccl", FABRICS["star"]()))
    with pytest.raises(
        AssertionError, match=r"^expected nccl on star-4, device .* the bytes that land to be "
    ):
        CHECKS[0](replace(found, priced=found.priced * 2))


@pytest.mark.parametrize("cluster", FABRICS)
def test_the_compiled_twin_gives_simpy_s_timeline_on_every_fabric(cluster):
    machine = FABRICS[cluster]()
    for granularity in ("device", "pair"):
        if granularity == "pair" and machine.num_devices > 16:
            continue
        for parts, window in ((1, 0), (2, 0), (1, 2)):
            program, _ = lowered(
                machine,
                Schedule(granularity=granularity, num_micro_batches=parts, send_window=window),
                seed=parts,
            )
            expected, got = run(program, "event"), run(program, "event_compiled")
            for name in ("start_s_N", "end_s_N", "busy_s_R"):
                assert getattr(got, name) == pytest.approx(
                    getattr(expected, name), rel=1e-9, abs=1e-18
                )
            assert got.events == expected.events


@settings(max_examples=25)
@given(
    cluster=st.sampled_from(sorted(set(FABRICS) - {"mixed"})),
    seed=st.integers(0, 10**6),
    zeros=st.floats(0.0, 0.95),
    factor=st.floats(1.0, 2.0),
)
def test_rows_of_receivers_senders_and_pairs_carry_the_same_bytes(cluster, seed, zeros, factor):
    """Resource by resource; and what enters the fabric leaves it."""
    machine = FABRICS[cluster]()
    fabric, count = fabric_of(machine), machine.num_devices
    rng = np.random.default_rng(seed)
    bytes_SD = rng.lognormal(10.0, 1.5, (count, count)) * (rng.random((count, count)) > zeros)
    land = np.arange(count) + fabric.num_resources
    factors = Factors(*(np.full(count, factor) for _ in Factors._fields))
    total = fabric.num_resources + count
    senders, receivers = np.nonzero(bytes_SD * (1 - np.eye(count)))
    rows = {
        by: device_rows(fabric, bytes_SD, by=by, factors=factors, land_D=land)
        for by in ("receiver", "sender")
    }
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
    assert link_bytes(fabric, bytes_SD) * factor == pytest.approx(
        loads["pair"][: fabric.num_resources], rel=1e-9
    )
    runs, first = {}, 0
    for name, rates in fabric.runs:
        runs[name] = loads["pair"][first : first + len(rates)].sum() / factor
        first += len(rates)
    for out, into in (
        ("egress", "ingress"),
        ("nic_out", "nic_in"),
        ("leaf_up", "leaf_down"),
        ("switch_up", "switch_down"),
    ):
        assert runs.get(out, 0.0) == pytest.approx(runs.get(into, 0.0), rel=1e-9)
    if "link" not in runs:
        assert runs.get("egress", 0.0) + runs.get("nic_out", 0.0) == pytest.approx(
            away.sum(), rel=1e-9
        )


@pytest.mark.parametrize("cluster", ["rail", "oversubscribed rail", "meshes"])
def test_two_hops_side_by_side_and_one_after_the_other(cluster):
    """DeepEP's hops overlap; hierarchical ones do not: between the longer hop and the sum
    of both.
    """
    machine = FABRICS[cluster]()
    for dispatch in ("deepep_normal", "hierarchical"):
        program, (priced,) = lowered(machine, Schedule(exchange=dispatch), tokens=400)
        timeline = run(program, "flow")
        labels = program.labels_N
        leg = {
            name: [i for i, label in enumerate(labels) if label.startswith(f"dispatch{name}[")]
            for name in ("_rdma", "_nvlink", "_near", "_far")
        }
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
            relays = [
                r for r in range(machine.num_devices) if r // machine.devices_per_domain == domain
            ]
            # what a relay has still to receive, it has still to forward
            if dispatch == "deepep_normal":
                assert timeline.start_s_N[i] >= timeline.end_s_N[
                    [leg[first][r] for r in relays]
                ].max() * (1 - 1e-12)


def test_one_copy_per_domain_and_limited_groups_save_bytes_between_nodes():
    """NCCL sends a copy for each device, DeepEP one a node; group-limited routing touches fewer
    nodes.
    """
    machine = load_cluster("rail-4x4")

    def crossing(dispatch, gate=None):
        program, _ = lowered(
            machine, Schedule(exchange=dispatch), gate=gate, spec="uniform", tokens=200
        )
        names = program.resource_names
        return sum(
            d
            for name, d in zip(names, program.demand_R(), strict=True)
            if name.startswith("nic_out")
        )

    limited = Gate(kind="group_limited", num_expert_groups=4, num_limited_groups=2)
    assert crossing("deepep_normal") < 0.95 * crossing("nccl")
    assert crossing("deepep_normal", limited) < 0.9 * crossing("deepep_normal")
    assert crossing("all_gather") > crossing("nccl")


@pytest.mark.parametrize("granularity", ["device", "pair"])
def test_nobody_computes_or_sums_before_its_own_tokens_are_ready(granularity):
    """Also a device that receives nothing, or whose peers are long ready: its own tokens are there,
    too.
    """
    program, _ = lowered(
        load_cluster("star-16"), Schedule(granularity=granularity), tokens=1, spec="zipf:2"
    )
    timeline, labels = run(program, "flow"), program.labels_N
    for d in range(16):
        at = {name: labels.index(f"{name}[{d}]") for name in ("permute", "experts", "reduce")}
        assert timeline.start_s_N[at["experts"]] >= timeline.end_s_N[at["permute"]] > 0
        assert timeline.start_s_N[at["reduce"]] >= timeline.end_s_N[at["experts"]]
