"""Settings from clusters, given placements, and nearest replicas in a simulation."""

from dataclasses import replace

import numpy as np
import pytest

from moesim import Workload, load_cluster, load_preset, simulate
from moesim.design.schedule import Schedule
from moesim.errors import ConfigError
from moesim.placement import place
from moesim.search import Space
from moesim.simulation.prepare import prepare
from moesim.simulation.setting import setting_of

WORK = Workload(num_tokens_per_device=64, routing="zipf:0.8")


def test_plain_setting_of_one_node(hgx, make_candidate):
    setting = setting_of(make_candidate(), hgx, WORK)
    assert (setting.ranks_per_node, setting.speed, setting.room_bytes, setting.copy_work) == (
        None,
        None,
        None,
        0.0,
    )


def test_nodes_and_costs_of_copies(make_candidate):
    rail = load_cluster("h100-rail-8x8")
    plain = setting_of(make_candidate(ep=32, tp=2, placement="eplb_hierarchical"), rail, WORK)
    assert (plain.ranks_per_node, plain.tp, plain.copy_work) == (4, 2, 0.0)
    searched = make_candidate(ep=64, placement="local_search")
    two_hop, direct, each = (
        setting_of(replace(searched, schedule=Schedule(exchange=d)), rail, WORK)
        for d in ("deepep_normal", "nccl", "deepep_ll")
    )
    # eight NICs of 50 GB/s a node against 450 GB/s into one device; straight, seven copies of eight
    # by its own NIC
    assert two_hop.node_copy_work / two_hop.copy_work == pytest.approx(450 / (8 * 50))
    assert direct.copy_work / two_hop.copy_work == pytest.approx(7 / 8 * 450 / 50)
    assert (direct.node_copy_work, each.copy_work, each.node_copy_work) == (0.0, 0.0, 0.0)


def test_mixed_cluster_gives_fast_devices_more(make_candidate):
    mixed = load_cluster("mixed-h100-b200")
    work = replace(WORK, num_tokens_per_device=2048, routing="uniform")
    candidate = make_candidate(ep=64, num_experts=256, top_k=8, placement="balanced")
    setting = setting_of(candidate, mixed, work)
    assert setting.speed[0] < setting.speed[-1] == 1.0
    held = prepare(candidate, mixed, work).placement.slots_of_rank()
    assert held[32:].sum() > 1.5 * held[:32].sum()
    even = simulate(replace(candidate, placement="contiguous"), mixed, work)
    assert simulate(candidate, mixed, work).experts_time_s < 0.9 * even.experts_time_s


def test_given_placement_is_used(hgx, make_candidate):
    candidate = make_candidate(num_experts=64, top_k=4)
    planned = prepare(replace(candidate, placement="balanced"), hgx, WORK).placement
    given = simulate(candidate, hgx, WORK, placement=planned)
    assert (
        given.layer_time_s
        == simulate(replace(candidate, placement="balanced"), hgx, WORK).layer_time_s
    )
    with pytest.raises(ConfigError) as caught:
        simulate(candidate, hgx, WORK, placement=place("contiguous", np.ones(32), 8))
    assert str(caught.value) == "placement: expected 64 experts on 8 ranks, got 32 on 8"


def test_nearest_replicas_send_less_between_nodes(make_candidate):
    rail = load_cluster("h100-rail-8x8")
    turns, near = (
        make_candidate(ep=64, num_experts=64, top_k=4, placement=p, num_replicas=64)
        for p in ("eplb", "eplb/nearest")
    )
    far = []
    for candidate in (turns, near):
        traffic = prepare(candidate, rail, WORK).traffic
        assert traffic.counts_DL.sum() == 64 * 64 * 4
        own = np.arange(64) // 8
        far.append(traffic.domains_SG.sum() - traffic.domains_SG[np.arange(64), own].sum())
    assert far[1] < 0.95 * far[0]


def test_nearest_takes_no_capacity(make_candidate, hgx):
    candidate = make_candidate(placement="eplb/nearest", num_replicas=8)
    dropping = replace(candidate, layer=replace(candidate.layer, capacity_factor=1.0))
    with pytest.raises(
        ConfigError, match="placement: nearest replicas take no capacity_factor, got 1"
    ):
        simulate(dropping, hgx, WORK)


def test_every_strategy_is_a_choice_of_a_search():
    names = [
        "contiguous",
        "random:3",
        "hierarchical",
        "affinity",
        "domain",
        "local_search:20",
        "eplb/nearest",
    ]
    space = Space(
        dense_part="qwen3-235b-a22b",
        train_tokens=2e12,
        hidden_size=4096,
        num_experts=[64],
        top_k=[4],
        expert_intermediate_size=[1024],
        placement=names,
        num_replicas=[8],
    )
    replicas = []
    for name in names:
        point = {key: choices[0] for key, choices in space.choices().items()} | {"placement": name}
        candidate, cluster = space.decode(point, load_cluster("hgx-h100-8"))
        assert simulate(candidate, cluster, WORK, must_fit=False).layer_time_s > 0
        replicas.append(candidate.num_replicas)
    assert replicas == [0, 0, 8, 8, 8, 8, 8]
    with pytest.raises(ConfigError, match="placement: eplb takes no number"):
        Space(
            dense_part="qwen3-235b-a22b",
            train_tokens=2e12,
            hidden_size=4096,
            num_experts=[64],
            top_k=[4],
            expert_intermediate_size=[1024],
            placement=["eplb:1"],
        )


def test_memory_is_shared_out_where_experts_differ(hgx, make_candidate):
    """Wide experts without load would pile up on the rank of the hot narrow ones."""
    dense = load_preset("qwen3-30b-a3b").dense_part
    candidate = make_candidate(
        hidden_size=2048,
        num_experts=32,
        top_k=4,
        placement="balanced",
        dense_part=dense,
        expert_intermediate_size=(4096, 256) * 16,
    )
    setting = setting_of(candidate, hgx, WORK)
    assert len(setting.room_bytes) == 8
    assert setting.expert_bytes[0] == 16 * setting.expert_bytes[1]
    placement = prepare(candidate, hgx, WORK).placement
    held = np.bincount(
        placement.rank_of_slot_P, weights=np.array(setting.expert_bytes)[placement.expert_of_slot_P]
    )
    assert (held <= setting.room_bytes).all()
