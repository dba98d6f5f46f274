"""Legs of an exchange: every copy gets where it is going, and limits save what they should."""

import numpy as np
import pytest

from moesim.design.candidate import Parallelism
from moesim.hardware.exchanges import EXCHANGES, exchange_named
from moesim.lowering.movement import movement_of
from moesim.lowering.traffic import spread_tokens
from moesim.model import Gate
from moesim.placement import place
from moesim.routing import RoutingSpec, route

DEVICES, PER_DOMAIN = 16, 4


def traffic(gate=None, top_k=4, spec="power_law:1.1", tokens=300, seed=0):
    routing = route(
        RoutingSpec.parse(spec),
        gate or Gate(),
        num_experts=64,
        top_k=top_k,
        num_tokens_S=np.full(DEVICES, tokens),
        seed=seed,
    )
    placement = place("contiguous", routing.num_tokens_E(), DEVICES, 0)
    return (
        spread_tokens(routing, placement, Parallelism(ep=DEVICES), devices_per_domain=PER_DOMAIN),
        routing,
        placement,
    )


def test_counts_of_copies_by_hand():
    """Against sets, token by token."""
    found, routing, placement = traffic()
    rank = placement.rank_of_slot_P[placement.slot_of_choice(routing.expert_ids_TK)]
    for s in range(DEVICES):
        mine = rank[s * 300 : (s + 1) * 300]
        for d in range(DEVICES):
            assert found.copies_SD[s, d] == sum(d in row for row in mine.tolist())
            assert found.choices_SD[s, d] == (mine == d).sum()
        for g in range(4):
            assert found.domains_SG[s, g] == sum(
                any(r // PER_DOMAIN == g for r in row) for row in mine.tolist()
            )


@pytest.mark.parametrize("dispatch", EXCHANGES)
def test_every_copy_arrives(dispatch):
    """What ends on a device (direct or forwarded) is what it has to compute."""
    made, _, _ = traffic()
    movement = movement_of(exchange_named(dispatch), made, PER_DOMAIN)
    domain = np.arange(DEVICES) // PER_DOMAIN
    near = domain[:, None] == domain
    wanted = made.choices_SD if dispatch == "deepep_ll" else made.copies_SD
    if dispatch == "all_gather":
        assert (movement.legs[0].copies_SD == made.num_tokens_S[:, None]).all()
        return
    if dispatch == "deepep_normal":
        over, forward = (leg.copies_SD for leg in movement.legs)
        assert (over[near] == 0).all()
        assert (forward[~near] == 0).all()
        # forwarded by relays of its domain; what a relay keeps for itself stands on the diagonal
        assert (forward.sum(axis=0) == wanted.sum(axis=0)).all()
        # one copy a token and domain
        assert over.sum() == sum(
            made.domains_SG[s, g] for s in range(DEVICES) for g in range(4) if g != domain[s]
        )
        return
    if dispatch == "hierarchical":
        first, second = (leg.copies_SD for leg in movement.legs)
        assert (first[~near] == 0).all()
        assert (second[near] == 0).all()
        local = np.where(near, wanted, 0)
        assert (second.sum(axis=0) + local.sum(axis=0) == wanted.sum(axis=0)).all()
        assert first.sum() == wanted.sum()
        return
    assert (movement.legs[0].copies_SD == wanted).all()


def test_group_limited_routing_sends_less_across_domains():
    """4 groups of 16 experts are the 4 domains: tokens limited to 1 or 2 of them cross
    less often.
    """
    crossing = []
    for gate in (
        Gate(kind="group_limited", num_expert_groups=4, num_limited_groups=1),
        Gate(kind="group_limited", num_expert_groups=4, num_limited_groups=2),
        Gate(),
    ):
        made, _, _ = traffic(gate, spec="uniform")
        crossing.append(
            movement_of(exchange_named("deepep_normal"), made, PER_DOMAIN).legs[0].copies_SD.sum()
        )
    assert crossing[0] == pytest.approx(DEVICES * 300 * 0.75, rel=0.05)  # 3 of 4 domains are others
    assert crossing[1] == pytest.approx(2 * crossing[0], rel=0.05)
    assert crossing[2] > 1.3 * crossing[1]


def test_bytes_by_port_add_up():
    made, _, _ = traffic()
    for dispatch in EXCHANGES:
        movement = movement_of(exchange_named(dispatch), made, PER_DOMAIN)
        near_out, near_in, far_out, far_in = movement.near_far_D
        moved = sum(leg.copies_SD.sum() - np.trace(leg.copies_SD) for leg in movement.legs)
        assert near_out.sum() + far_out.sum() == pytest.approx(moved)
        assert near_in.sum() == pytest.approx(near_out.sum())
        assert far_in.sum() == pytest.approx(far_out.sum())
