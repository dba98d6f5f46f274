"""What a gate and its capacity do to one layer, in one result row: traffic, cost, drops, staleness
and loss.
"""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moesim import Gate, Workload, load_cluster, simulate
from moesim.model import MoELayer
from moesim.placement import place
from moesim.quality.gates import WORST_NATS, gate_delta, gate_deltas
from moesim.routing import RoutingSpec, route
from moesim.simulation.prepare import prepare

WORK = Workload(num_tokens_per_device=512, routing="zipf:0.6")
CLUSTER = load_cluster("hgx-h100-8")


def row(make_candidate, gate="flat", **changes):
    candidate = make_candidate(
        num_experts=64,
        top_k=8,
        hidden_size=1024,
        expert_intermediate_size=256,
        gate=Gate.parse(gate),
        **changes,
    )
    return simulate(candidate, CLUSTER, WORK).row()


def test_groups_are_visible_in_one_row(make_candidate):
    flat, limited = row(make_candidate), row(make_candidate, "group_limited:8:2")
    assert (
        limited["devices_per_token"] == limited["groups_per_token"] == 2 < flat["devices_per_token"]
    )
    assert limited["dispatch_us"] < flat["dispatch_us"]
    assert limited["gate_us"] > flat["gate_us"]
    assert (flat["gate_loss_delta"], limited["gate_loss_delta"]) == (0, 0.008)
    assert (flat["gate_loss_unknown"], limited["gate_loss_unknown"]) == (
        "",
        "fewer than 3 groups a token",
    )


def test_sharing_costs_less_and_says_how_stale_it_is(make_candidate):
    alone, tokens, layers = (
        row(make_candidate, g) for g in ("flat", "flat+share_tokens:4", "flat+share_layers:4")
    )
    assert layers["gate_us"] == pytest.approx(alone["gate_us"] / 4)
    assert [r["gate_staleness"] for r in (alone, tokens, layers)] == [0, 0.75, 0.75]
    assert tokens["gate_loss_unknown"] == "shared gate decisions"
    assert tokens["gate_loss_delta_high"] == WORST_NATS
    wide = make_candidate(num_experts=256, top_k=8, hidden_size=7168)
    one, eight = (
        simulate(
            replace(wide, layer=replace(wide.layer, gate=Gate(share_tokens=share))),
            CLUSTER,
            Workload(num_tokens_per_device=16384),
        ).row()["gate_us"]
        for share in (1, 8)
    )
    assert eight < 0.6 * one


@pytest.mark.parametrize("gate", ["flat", "group_limited:8:4"])
def test_capacities_drop_reroute_or_pad(make_candidate, gate):
    drop = row(make_candidate, gate, capacity_factor=1.0)
    reroute = row(make_candidate, gate, capacity_factor=1.0, overflow="reroute")
    padded = row(make_candidate, gate, capacity_factor=1.25, padded=True)
    assert drop["dropped_token_fraction"] > 0.1 > 0.05 > reroute["dropped_token_fraction"]
    assert reroute["rerouted_token_fraction"] == pytest.approx(
        drop["dropped_token_fraction"] - reroute["dropped_token_fraction"]
    )
    assert (drop["padded_row_fraction"], reroute["padded_row_fraction"]) == (
        pytest.approx(0, abs=1e-12),
    ) * 2
    served = 1 - padded["dropped_token_fraction"]
    assert padded["padded_row_fraction"] == pytest.approx(1 - served / 1.25, abs=0.01)
    assert padded["load_imbalance"] == 1.0
    assert padded["experts_us"] > drop["experts_us"]


def test_padding_fills_every_slot_once(make_candidate):
    candidate = make_candidate(num_experts=16, top_k=2, capacity_factor=1.5, padded=True)
    prepared = prepare(candidate, CLUSTER, WORK)
    placement, traffic = prepared.placement, prepared.traffic
    capacity = int(np.ceil(1.5 * 8 * 512 * 2 / 16))
    assert (traffic.counts_DL == capacity).all()
    assert traffic.copies_SD.sum() == capacity * 16
    assert placement.num_slots == 16


@given(
    replicas=st.sampled_from([0, 8, 16, 24]),
    seed=st.integers(0, 50),
    top_k=st.integers(1, 6),
    spec=st.sampled_from(["uniform", "zipf:1", "olmoe-github", "domains:3:0.3", "w5"]),
)
def test_replicas_never_change_the_total(replicas, seed, top_k, spec):
    routing = route(
        RoutingSpec.parse(spec),
        Gate(),
        num_experts=16,
        top_k=top_k,
        num_tokens_S=np.full(8, 30),
        seed=seed,
    )
    placement = place("eplb", routing.num_tokens_E(), 8, replicas)
    slots = placement.slot_of_choice(routing.expert_ids_TK)
    counts_P = np.bincount(slots.ravel(), minlength=placement.num_slots)
    of_expert = np.bincount(placement.expert_of_slot_P, weights=counts_P, minlength=16)
    assert of_expert.tolist() == routing.num_tokens_E().tolist()


@pytest.mark.parametrize(
    "text",
    [
        "flat",
        "flat+bias",
        "group_limited:8:4",
        "two_level:8:4",
        "two_level:8:4+local",
        "product_key",
        "flat+hash",
        "flat+expert_choice",
        "flat+sinkhorn",
        "flat+noisy_top_k:1",
        "flat+temperature:2",
        "flat+share_tokens:2",
    ],
)
def test_deltas_lie_in_their_intervals_and_say_what_is_unknown(text):
    gate = Gate.parse(text)
    delta = gate_delta(gate)
    assert delta.low <= delta.nats <= delta.high
    assert bool(delta.unknown) == (
        text not in ("flat", "flat+bias", "group_limited:8:4", "two_level:8:4")
    )
    assert delta.nats == sum(d.nats for d in gate_deltas(gate))


def test_a_million_experts_behind_a_product_key_gate_simulate(make_candidate):
    """Without a score for every token and expert: 4,096 tokens' would be 16 GiB."""
    import tracemalloc

    layer = MoELayer(
        hidden_size=512,
        expert_intermediate_size=16,
        num_experts=1 << 20,
        top_k=8,
        gate=Gate.parse("product_key"),
    )
    candidate = replace(make_candidate(num_experts=16, top_k=8), layer=layer)
    tracemalloc.start()
    result = simulate(candidate, CLUSTER, Workload(num_tokens_per_device=512))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert 0 < result.phase_time_s["gate"] < result.layer_time_s
    assert peak < 2 << 30
