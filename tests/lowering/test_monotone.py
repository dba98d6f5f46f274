"""More hardware never costs time: over clusters, exchanges, resources and rates.

The bound is exact. In the other engines ops share a resource, and a faster one can change who goes
first: within 0.1 %.
"""

import itertools

import pytest

from moesim import Candidate, MoELayer, Parallelism, Workload, load_cluster, simulate
from moesim.design.schedule import Schedule
from moesim.errors import ConfigError
from moesim.files import toml
from moesim.hardware.exchanges import EXCHANGES
from moesim.simulation.prepare import prepare
from moesim.simulation.run import lower

LINKS = ("nvlink_gb_per_s", "nic_gb_per_s", "uplink_gb_per_s", "host_link_gb_per_s")
RATES = (*LINKS, "hbm_gb_per_s", "bf16_tflops", "num_sms", "l2_mib")
COARSE, FINE = (0.5, 1, 1.3, 4), (0.5, 0.8, 1, 1.1, 1.2, 1.3, 1.4, 1.5, 1.8, 2, 2.5, 3, 4, 6, 8)
LAYER = MoELayer(hidden_size=4096, expert_intermediate_size=1536, num_experts=128, top_k=8)
TOLERANCE = {"bound": 1e-9, "flow": 1e-3, "event_compiled": 1e-3}
#: devices from which every rate takes tenths of a second
MANY = 128


def exchanges_of(cluster):
    """Return what runs there, and on many devices its own alone."""
    if cluster.num_devices >= MANY:
        return [cluster.exchange().name]
    return [
        name
        for name, exchange in EXCHANGES.items()
        # ``host`` is for profiles that `moesim measure` wrote
        if exchange.runs_on(cluster) and (name != "host" or cluster.profile.host_fabric)
    ]


def layer_on(cluster, exchange):
    replicas = -LAYER.num_experts % cluster.num_devices
    return Candidate(
        layer=LAYER,
        parallelism=Parallelism(ep=cluster.num_devices),
        placement="eplb" if replicas else "contiguous",
        num_replicas=replicas,
        schedule=Schedule(exchange=exchange),
    )


def slower(cluster, engine, rates, factors, *, exchanges=None, num_tokens=1024):
    """Return how many steps of more hardware were taken, and those that cost time."""
    work = Workload(num_tokens_per_device=num_tokens, routing="power_law:1.2")
    exchanges = exchanges_of(cluster) if exchanges is None else exchanges

    def times(machine):
        return [
            simulate(layer_on(cluster, name), machine, work, engine=engine).layer_time_s
            for name in exchanges
        ]

    as_it_is, steps, found = times(cluster), 0, []
    for rate in rates:
        try:
            machines = [cluster.with_(**{rate: f"{factor}x"}) for factor in factors]
        except ConfigError:  # it has no such link
            continue
        rows = [
            as_it_is if factor == 1 else times(machine)
            for factor, machine in zip(factors, machines, strict=True)
        ]
        for factor, (before, after) in zip(factors[1:], itertools.pairwise(rows), strict=True):
            steps += len(exchanges)
            found += [
                (rate, factor, name, late / early - 1.0)
                for name, early, late in zip(exchanges, before, after, strict=True)
                if late > early * (1.0 + TOLERANCE[engine])
            ]
    return steps, found


@pytest.mark.parametrize("engine", TOLERANCE)
def test_faster_links_of_two_hops_never_cost_time(engine):
    """Cold devices would return their results before the busiest has its tokens, if they could."""
    rail = load_cluster("h100-rail-8x8")
    steps, found = slower(rail, engine, LINKS[:2], FINE, exchanges=["deepep_normal"])
    assert (steps, found) == (2 * (len(FINE) - 1), [])


@pytest.mark.parametrize("engine", ["bound", "flow"])
def test_more_hardware_of_two_kinds_never_costs_time(engine):
    mixed = load_cluster("mixed-h100-b200")
    steps, found = slower(mixed, engine, RATES, COARSE, exchanges=["deepep_normal"])
    assert (steps, found) == (7 * (len(COARSE) - 1), [])


def test_senders_form_a_class_of_each_kind_at_any_rate():
    """Otherwise more memory bandwidth could merge classes, and early senders would wait."""
    mixed = load_cluster("mixed-h100-b200")
    work = Workload(num_tokens_per_device=1024, routing="power_law:1.2")
    names = set()
    for factor in ("0.1x", "1x", "10x"):
        machine = mixed.with_(hbm_gb_per_s=factor)
        program = lower(prepare(layer_on(machine, "nccl"), machine, work))
        names |= {name for name in program.labels_N if name.startswith("dispatch_")}
    assert names == {f"dispatch_{kind}[{d}]" for kind in range(2) for d in range(64)}


@pytest.mark.full
@pytest.mark.parametrize("engine", ["bound", "flow"])
@pytest.mark.parametrize("name", toml.names("clusters"))
def test_more_hardware_never_costs_time(name, engine):
    cluster = load_cluster(name)
    many = cluster.num_devices >= MANY
    steps, found = slower(cluster, engine, RATES, (1, 2) if many else COARSE)
    assert steps >= 4
    assert found == []


@pytest.mark.full
@pytest.mark.parametrize("name", ["h100-rail-8x8", "mixed-h100-b200"])
def test_more_hardware_never_costs_time_chunk_by_chunk(name):
    steps, found = slower(load_cluster(name), "event_compiled", RATES, COARSE)
    assert steps >= 100
    assert found == []


@pytest.mark.full
@pytest.mark.parametrize(
    ("name", "num_tokens"),
    [
        ("hgx-h100-8", 1024),
        ("hgx-h100-8", 32),
        ("l40s-pcie-8", 1024),
        ("mi300x-8", 32),
        ("mixed-h100-b200", 32),
    ],
)
def test_more_hardware_never_costs_time_in_small_steps(name, num_tokens):
    steps, found = slower(load_cluster(name), "bound", RATES, FINE, num_tokens=num_tokens)
    assert steps >= 100
    assert found == []
