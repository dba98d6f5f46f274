"""Preparation: once for each simulation, and never the traffic of another design."""

from dataclasses import replace

import pytest

from moesim import Workload, simulate
from moesim.design.schedule import Schedule
from moesim.model import Precision
from moesim.model.gate import Gate
from moesim.placement import Placement
from moesim.simulation import memory, prepare, run

WORK = Workload(num_tokens_per_device=256, routing="power_law:1.2")


@pytest.fixture
def counted(monkeypatch):
    """Calls of `prepare`, wherever they come from."""
    calls = []

    def spy(*args, **options):
        calls.append(args)
        return prepare.prepare(*args, **options)

    for module in (run, memory):
        monkeypatch.setattr(module, "prepare", spy)
    return calls


@pytest.mark.parametrize("schedule", [Schedule(), Schedule(num_micro_batches=4)])
def test_one_simulation_prepares_once(hgx, make_candidate, counted, schedule):
    simulate(replace(make_candidate(num_experts=32, top_k=4), schedule=schedule), hgx, WORK)
    assert len(counted) == 1


LIKE = [
    {"hidden_size": 128},
    {"precision": Precision.named("fp8")},
    {"num_shared_experts": 2},
    {"gated": False},
]


@pytest.mark.parametrize("change", LIKE)
def test_what_moves_no_token_shares_the_plan(hgx, make_candidate, change):
    """The same objects, not equal ones: a search asks for them thousands of times."""
    one, other = (
        make_candidate(**{"num_experts": 32, "top_k": 4, "expert_intermediate_size": width} | more)
        for width, more in ((64, {}), (128, change))
    )
    found = [prepare.prepare(candidate, hgx, WORK) for candidate in (one, other)]
    assert found[0].placement is found[1].placement
    assert found[0].traffic is found[1].traffic
    assert found[0].choices is found[1].choices


MOVES = [
    {"top_k": 2},
    {"num_experts": 64},
    {"gate": Gate.parse("group_limited:8:2")},
    {"capacity_factor": 1.0},
    {"capacity_factor": 1.0, "overflow": "reroute"},
    {"capacity_factor": 1.0, "padded": True},
    {"expert_intermediate_size": (64,) * 24 + (0,) * 8},
    {"placement": "balanced"},
    {"placement": "eplb", "num_replicas": 8},
    {"tp": 2, "ep": 4},
]


@pytest.mark.parametrize("change", MOVES)
def test_what_moves_tokens_has_traffic_of_its_own(hgx, make_candidate, change):
    one, other = (
        prepare.prepare(make_candidate(**{"num_experts": 32, "top_k": 4} | more), hgx, WORK)
        for more in ({}, change)
    )
    assert (
        one.traffic.counts_DL.shape != other.traffic.counts_DL.shape
        or (one.traffic.counts_DL != other.traffic.counts_DL).any()
        or (one.traffic.copies_SD != other.traffic.copies_SD).any()
    )


def test_batches_are_parts_of_the_whole(hgx, make_candidate):
    candidate = make_candidate(num_experts=32, top_k=4)
    whole = prepare.prepare(candidate, hgx, WORK)
    split = prepare.prepare(replace(candidate, schedule=Schedule(num_micro_batches=4)), hgx, WORK)
    assert whole.batches == (whole.traffic,)
    assert split.traffic is whole.traffic
    assert len(split.batches) == 4
    assert (sum(part.counts_DL for part in split.batches) == whole.traffic.counts_DL).all()


def test_a_given_placement_is_used_as_it_is(hgx, make_candidate):
    candidate = make_candidate(num_experts=32, top_k=4)
    planned = prepare.prepare(candidate, hgx, WORK).placement
    turned = replace(planned, expert_of_slot_P=planned.expert_of_slot_P[::-1].copy())
    assert isinstance(turned, Placement)
    assert prepare.prepare(candidate, hgx, WORK, placement=turned).placement is turned
