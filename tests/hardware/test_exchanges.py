"""Exchanges: one record each, and a new one in one place."""

from dataclasses import dataclass, replace
from itertools import product

import numpy as np
import pytest

from moesim import Workload, load_cluster, simulate
from moesim.costs.comm.choose import exchange_kernel
from moesim.costs.comm.wire import Wire
from moesim.design.candidate import Candidate, Parallelism
from moesim.design.schedule import Schedule
from moesim.errors import ConfigError, UnknownNameError
from moesim.hardware import Cluster
from moesim.hardware.exchanges import EXCHANGES, Exchange, add_exchange, exchange_named
from moesim.lowering.movement import Leg, Movement
from moesim.model.hf_config import load_model
from moesim.search import Space
from moesim.simulation.prepare import prepare
from moesim.simulation.run import exchange_of, simulate_prepared
from moesim.units import MB

WORK = Workload(num_tokens_per_device=256, routing="zipf:0.8")


@pytest.fixture
def toy():
    """A kernel and a pattern of its own: half the wire, and every token to everyone."""

    def kernel(cluster, num_sms):
        return Wire(ports=exchange_ports(cluster), efficiency=0.5)

    def pattern(traffic, devices_per_domain):
        copies_SD = np.repeat(
            np.asarray(traffic.num_tokens_S, dtype=float)[:, None],
            len(traffic.num_tokens_S),
            axis=1,
        )
        return Movement(
            legs=(Leg(name="", copies_SD=copies_SD),),
            serial=False,
            copies_S=copies_SD.sum(axis=1),
            devices_per_domain=devices_per_domain,
        )

    yield add_exchange(
        Exchange(name="toy", about="everything to everyone, slowly", kernel=kernel, pattern=pattern)
    )
    del EXCHANGES["toy"]


def exchange_ports(cluster: Cluster):
    from moesim.costs.comm.choose import ports_of

    return ports_of(cluster)


def test_a_toy_exchange_is_simulated_searched_and_named(hgx, make_candidate, toy):
    candidate = replace(make_candidate(num_experts=32, top_k=2), schedule=Schedule(exchange="toy"))
    slow, usual = (
        simulate(c, hgx, WORK)
        for c in (candidate, replace(candidate, schedule=Schedule(exchange="ideal")))
    )
    assert slow.row()["exchange"] == "toy"
    assert "toy" in candidate.label
    assert slow.phase_time_s["dispatch"] > 2 * usual.phase_time_s["dispatch"] > 0
    space = Space(
        dense_part="qwen3-30b-a3b",
        train_tokens=1e11,
        hidden_size=2048,
        num_experts=[8],
        top_k=[2],
        expert_intermediate_size=[512],
        exchange=["cluster", "toy"],
    )
    assert space.decode({"exchange": "toy"}, hgx)[0].schedule.exchange == "toy"


def test_a_name_is_taken_once(toy):
    assert add_exchange(toy) is toy
    with pytest.raises(
        ConfigError,
        match="exchange 'toy': expected a new name, got that of 'everything to everyone",
    ):
        add_exchange(replace(toy, about="another"))


def test_unknown_names_and_kernels(hgx, make_candidate, toy):
    with pytest.raises(
        UnknownNameError, match="unknown exchange 'deepep_lo': did you mean deepep_ll"
    ):
        exchange_named("deepep_lo")
    add_exchange(replace(toy, name="broken", kernel="ncl"))
    candidate = replace(
        make_candidate(num_experts=32, top_k=2), schedule=Schedule(exchange="broken")
    )
    with pytest.raises(
        UnknownNameError, match="unknown kernel of exchange broken 'ncl': did you mean nccl"
    ):
        simulate(candidate, hgx, WORK)
    del EXCHANGES["broken"]


@dataclass
class Named:
    exchange: str | None


@pytest.mark.parametrize(
    ("cluster", "own"),
    [
        ("hgx-h100-8", "nccl"),
        ("gb200-nvl72", "nvl72"),
        ("tpu-v5p-4x4x4", "ici"),
        ("star-16", "ideal"),
    ],
)
def test_a_cluster_resolves_what_a_schedule_leaves_open(cluster, own):
    machine = load_cluster(cluster)
    assert machine.exchange().name == machine.exchange(Schedule()).name == own
    assert machine.exchange(Named("deepep_ll")).name == "deepep_ll"
    assert machine.exchange().runs_on(machine)


def test_where_kernels_belong():
    torus, node, rail = (
        load_cluster(name) for name in ("tpu-v5p-4x4x4", "hgx-h100-8", "h100-rail-8x8")
    )
    belongs = {name: [e.runs_on(c) for c in (torus, node, rail)] for name, e in EXCHANGES.items()}
    pcie, mesh = load_cluster("l40s-pcie-8"), load_cluster("mi300x-8")
    for name in ("nvl72", "deepep_normal", "deepep_ll"):
        assert not EXCHANGES[name].runs_on(pcie)
        assert not EXCHANGES[name].runs_on(mesh)
    assert EXCHANGES["nccl"].runs_on(pcie)
    assert EXCHANGES["nccl"].runs_on(mesh)
    assert belongs["nvl72"] == [False, True, False]
    assert belongs["ici"] == [True, False, False]
    assert belongs["host"] == belongs["ideal"] == [True, True, True]
    assert all(
        belongs[name] == [False, True, True]
        for name in ("nccl", "deepep_normal", "deepep_ll", "all_gather")
    )


def test_what_serving_engines_launch():
    """An empty mapping says that none launches it: such exchanges are models of a fabric."""
    engines = {name: sorted(e.launch) for name, e in EXCHANGES.items()}
    every = ["sglang", "trtllm", "vllm"]
    assert engines == {
        "nccl": [],
        "deepep_normal": every,
        "deepep_ll": every,
        "nvl72": every,
        "hierarchical": [],
        "all_gather": every,
        "ici": [],
        "host": [],
        "ideal": [],
    }
    selected = [text for e in EXCHANGES.values() for text in e.launch.values()]
    assert len(set(selected)) == len(selected)


@pytest.mark.parametrize("phase", ["prefill", "decode"])
def test_a_better_machine_is_no_slower(phase):
    """An H800 is an H100 whose NVLink has 200 GB/s, not 450; all else is equal."""
    layer = load_model("deepseek-v3").layer
    tokens = {"prefill": 4096, "decode": 128}[phase]
    for nodes, name in product((1, 8), (None, "nccl", "deepep_normal", "deepep_ll")):
        times = []
        for cluster in ("h800-rail-8x8", "h100-rail-8x8"):
            machine = load_cluster(cluster).with_(num_nodes=nodes)
            candidate = Candidate(
                layer=layer,
                parallelism=Parallelism(ep=machine.num_devices),
                schedule=Schedule(exchange=name),
            )
            work = Workload(num_tokens_per_device=tokens, phase=phase)
            found = simulate(candidate, machine, work, must_fit=False).phase_time_s
            times.append([found["dispatch"], found["combine"]])
        assert np.less_equal(times[1], np.multiply(times[0], 1.0 + 1e-9)).all(), (nodes, name)


def test_links_to_the_host_are_filled_once(make_candidate):
    """The fabric shares a PCIe switch's link; the price adds no second wait for it."""
    cluster = load_cluster("l40s-pcie-8")
    candidate = make_candidate(num_experts=64, top_k=8)
    candidate = replace(candidate, parallelism=Parallelism(ep=8))
    kernel = exchange_kernel(cluster, cluster.exchange())
    prepared = prepare(candidate, cluster, Workload(num_tokens_per_device=8192))
    found = simulate_prepared(prepared, must_fit=False)
    for row in exchange_of(prepared):
        seconds = found.phase_time_s[row["direction"]]
        assert seconds == pytest.approx(float(kernel.time_s(row["near_mb"] * MB)), rel=0.1)


def test_cluster_files_of_before_call_it_dispatch(tmp_path):
    text = (load_cluster("hgx-h100-8"), "hgx-h100-8")
    from moesim.files import toml

    path = tmp_path / "mine.toml"
    path.write_text(toml.find("clusters", text[1]).read_text().replace("exchange =", "dispatch ="))
    mine = load_cluster(str(path))
    assert (mine.exchange().name, mine.digest) == ("nccl", text[0].digest)
