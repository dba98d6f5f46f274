"""Traffic expected from a sample of tokens against traffic that is drawn token by token."""

from dataclasses import replace

import numpy as np
import pytest

from moesim import Candidate, Parallelism, Workload, limits, load_cluster, load_preset, simulate
from moesim.design.schedule import Schedule
from moesim.errors import CapacityError
from moesim.hardware.sizing import sized
from moesim.lowering import expected
from moesim.lowering.expected import ExpectedTraffic, loads_of_parts
from moesim.lowering.products import Product
from moesim.program.factored import Factored
from moesim.simulation import drawing
from moesim.simulation.prepare import prepare
from moesim.simulation.run import lower

LAYER = load_preset("deepseek-v3").layer


def case(
    exchange, routing, batches, cluster="h100-rail-8x8", devices=64, replicas=64, tp=1, tokens=2048
):
    candidate = Candidate(
        layer=LAYER,
        parallelism=Parallelism(ep=devices // tp, tp=tp),
        placement="eplb",
        num_replicas=replicas,
        schedule=Schedule(exchange=exchange, num_micro_batches=batches),
    )
    return (
        candidate,
        sized(load_cluster(cluster), devices),
        Workload(num_tokens_per_device=tokens, routing=routing),
    )


@pytest.fixture
def few_drawn(monkeypatch):
    monkeypatch.setattr(drawing, "MOST_DRAWN", 1)
    for module in (drawing, expected):
        monkeypatch.setattr(module, "SAMPLE", 1 << 15)


CASES = [
    ("deepep_normal", "zipf:0.8", 2, {}),
    ("deepep_ll", "uniform", 2, {"tokens": 512}),
    ("nccl", "power_law:1.2", 1, {"tp": 2}),
    ("hierarchical", "lognormal:0.5", 1, {}),
    ("all_gather", "w4", 1, {"tokens": 256}),
    ("deepep_normal", "w4", 1, {}),
    ("nvl72", "zipf:0.8", 1, {"cluster": "gb200-nvl72"}),
    ("deepep_normal", "zipf:0.8", 1, {"devices": 256, "replicas": 256, "tokens": 512}),
]


@pytest.mark.parametrize(("exchange", "routing", "batches", "options"), CASES)
def test_it_says_what_drawn_traffic_says(
    exchange, routing, batches, options, few_drawn, monkeypatch
):
    of = case(exchange, routing, batches, **options)
    found = simulate(*of, must_fit=False)
    prepared = prepare(*of)
    program = lower(prepared)
    assert isinstance(prepared.traffic, ExpectedTraffic)
    assert program.factored
    assert found.granularity.endswith("_expected")
    assert (
        prepared.traffic.counts_DL.sum()
        == found.workload.num_tokens_per_device
        * 8
        * len(prepared.traffic.num_tokens_S)
        * of[0].parallelism.tp
    )
    monkeypatch.undo()
    drawn = simulate(*of, must_fit=False)
    assert not drawn.granularity.endswith("_expected")
    assert found.layer_time_s == pytest.approx(drawn.layer_time_s, rel=0.015)
    # micro-batches overlap: which of their phases is on the critical path is a close call
    for phase, seconds in drawn.phase_time_s.items() if batches == 1 else ():
        assert found.phase_time_s[phase] == pytest.approx(seconds, abs=0.03 * drawn.layer_time_s)
    assert found.load_imbalance == pytest.approx(drawn.load_imbalance, rel=0.03)
    assert found.effects.devices_per_token == pytest.approx(
        drawn.effects.devices_per_token, rel=0.01
    )
    assert found.effects.domains_per_token == pytest.approx(
        drawn.effects.domains_per_token, rel=0.01
    )
    # the bound of the factors is one of the expanded entries
    expanded = lower(prepared).expanded()
    assert expanded.busy_s_R() == pytest.approx(program.busy_s_R(), rel=1e-9)
    assert expanded.solo_s_N() == pytest.approx(program.solo_s_N(), rel=1e-9)


def test_what_depends_on_single_tokens_is_drawn(few_drawn):
    candidate, cluster, work = case("deepep_normal", "zipf:0.8", 1, tokens=64)
    for other in (
        replace(candidate, layer=replace(candidate.layer, capacity_factor=1.25)),
        replace(candidate, placement="eplb/nearest"),
        replace(candidate, schedule=Schedule(exchange="deepep_normal", granularity="pair")),
    ):
        assert not prepare(other, cluster, work).is_expected
    assert not prepare(candidate, cluster, replace(work, routing="domains:4:0.5")).is_expected


def test_many_tokens_on_few_devices_are_not_drawn():
    candidate, cluster, work = case("deepep_normal", "zipf:0.8", 1, tokens=100_000)
    prepared = prepare(candidate, cluster, work)
    assert prepared.is_expected
    assert prepared.traffic.counts_DL.sum() == 64 * 100_000 * 8
    assert len(prepared.choices.expert_ids_TK) == expected.SAMPLE


def test_parts_sum_to_the_whole():
    load_E = np.array([5, 0, 100, 64, 31])
    parts = list(loads_of_parts(load_E, [50, 25, 25], np.random.default_rng(0)))
    assert sum(parts).tolist() == load_E.tolist()
    assert all((part <= size).all() for part, size in zip(parts, (50, 25, 25), strict=True))


@pytest.mark.parametrize("reach", ["all", "domain", "rail"])
def test_sums_of_a_product_are_those_of_its_matrix(reach):
    rng = np.random.default_rng(0)
    product = Product(
        sent_S=rng.random(12), share_D=rng.random(12), reach=reach, devices_per_domain=4
    )
    matrix, domain = product.dense(), product.domain_D
    np.fill_diagonal(matrix, 0.0)
    near = np.where(domain[:, None] == domain, matrix, 0.0)
    near_out, near_in, far_out, far_in = product.near_far_D()
    assert near_out == pytest.approx(near.sum(axis=1))
    assert near_in == pytest.approx(near.sum(axis=0))
    assert far_out == pytest.approx((matrix - near).sum(axis=1))
    assert far_in == pytest.approx((matrix - near).sum(axis=0))
    assert product.transposed.dense() == pytest.approx(product.dense().T)


def test_zeros_are_no_entries():
    block = Factored(
        ops_I=np.arange(3),
        resources_J=np.arange(3),
        row_I=np.array([1.0, 0.0, 2.0]),
        column_J=np.array([0.0, 1.0, 1.0]),
        outer_I=np.zeros(3, dtype=int),
        outer_J=np.zeros(3, dtype=int),
        inner_I=np.arange(3),
        inner_J=np.arange(3),
    )
    op, resource, amount = block.entries()
    assert list(zip(op, resource, amount, strict=True)) == [(0, 1, 1.0), (0, 2, 1.0), (2, 1, 2.0)]


def test_refused_before_anything_is_drawn(monkeypatch):
    monkeypatch.setattr(limits, "memory_of_machine", lambda: 2.0**20)
    with pytest.raises(CapacityError, match="a layer on 64 devices at device granularity "):
        prepare(*case("nccl", "zipf:0.8", 1, tokens=333))
