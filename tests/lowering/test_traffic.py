"""Who sends how many tokens to whom: against a recount in plain Python, token by token."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moesim.design.candidate import Parallelism
from moesim.lowering.traffic import spread_tokens
from moesim.model import Gate
from moesim.placement import Placement, place
from moesim.routing import RoutingSpec, route


def draw(
    ranks,
    tp,
    *,
    experts=16,
    top_k=2,
    tokens=None,
    seed=0,
    spec="zipf:0.8",
    strategy="contiguous",
    replicas=0,
):
    tokens_S = np.full(ranks * tp, 20) if tokens is None else np.array(tokens)
    routing = route(
        RoutingSpec.parse(spec),
        Gate(),
        num_experts=experts,
        top_k=top_k,
        num_tokens_S=tokens_S,
        seed=seed,
    )
    return routing, place(strategy, routing.num_tokens_E(), ranks, replicas)


def recount(routing, placement, tp, capacity_factor=None):
    """(copies_SD, rows of each (rank, slot), dropped) by looping over tokens and their choices."""
    ranks, sources = placement.num_ranks, len(routing.num_tokens_S)
    total = routing.expert_ids_TK.size
    capacity = (
        total
        if capacity_factor is None
        else int(np.ceil(capacity_factor * total / routing.num_experts))
    )
    copies = np.zeros((sources, ranks * tp), dtype=int)
    rows, seen, dropped = Counter(), Counter(), 0
    slot_TK = placement.slot_of_choice(routing.expert_ids_TK).tolist()
    token = 0
    for source, count in enumerate(routing.num_tokens_S.tolist()):
        for _ in range(count):
            reached = set()
            for expert, slot in zip(
                routing.expert_ids_TK[token].tolist(), slot_TK[token], strict=True
            ):
                seen[expert] += 1
                if seen[expert] > capacity:
                    dropped += 1
                    continue
                rank = int(placement.rank_of_slot_P[slot])
                rows[slot] += 1
                reached |= {rank * tp + i for i in range(tp)}
            for device in reached:
                copies[source, device] += 1
            token += 1
    return copies, rows, dropped / total


@given(
    ranks=st.sampled_from([1, 2, 4, 8]),
    tp=st.sampled_from([1, 2]),
    top_k=st.integers(1, 6),
    strategy=st.sampled_from(["contiguous", "balanced", "eplb"]),
    capacity=st.sampled_from([None, 0.5, 1.0, 1.25, 50.0]),
    spec=st.sampled_from(["uniform", "zipf:0.8", "power_law:1.2"]),
    data=st.data(),
)
def test_recount(ranks, tp, top_k, strategy, capacity, spec, data):
    tokens = data.draw(st.lists(st.integers(1, 25), min_size=ranks * tp, max_size=ranks * tp))
    replicas = ranks * data.draw(st.integers(0, 2)) if strategy == "eplb" else 0
    routing, placement = draw(
        ranks,
        tp,
        top_k=top_k,
        tokens=tokens,
        spec=spec,
        strategy=strategy,
        replicas=replicas,
        seed=data.draw(st.integers(0, 99)),
    )
    traffic = spread_tokens(routing, placement, Parallelism(ep=ranks, tp=tp), capacity)
    copies, rows, dropped = recount(routing, placement, tp, capacity)
    assert traffic.copies_SD.tolist() == copies.tolist()
    assert traffic.tokens_D.tolist() == copies.sum(axis=0).tolist()
    assert traffic.dropped_fraction == pytest.approx(dropped, abs=1e-12)
    per_rank = placement.num_slots // ranks
    for device in range(ranks * tp):
        first = device // tp * per_rank
        assert traffic.counts_DL[device].tolist() == [rows[first + i] for i in range(per_rank)]
    rows_D = traffic.counts_DL.sum(axis=1)
    assert traffic.load_imbalance == pytest.approx(rows_D.max() / rows_D.mean())


def test_a_token_is_sent_once_to_a_device_with_several_of_its_experts():
    """All 16 experts on one rank and two ranks of tensor parallelism: each token goes once to each
    of both.
    """
    routing, placement = draw(1, 2, top_k=4)
    traffic = spread_tokens(routing, placement, Parallelism(ep=1, tp=2))
    assert traffic.copies_SD.tolist() == [[20, 20], [20, 20]]
    assert traffic.counts_DL.sum(axis=1).tolist() == [160, 160]


@pytest.mark.parametrize("tokens", [[0, 5, 3, 1], [5, 0, 0, 3], [5, 3, 1, 0]])
def test_a_device_without_tokens_sends_none(tokens):
    routing, placement = draw(4, 1, tokens=tokens)
    traffic = spread_tokens(routing, placement, Parallelism(ep=4))
    assert traffic.copies_SD.tolist() == recount(routing, placement, 1)[0].tolist()
    assert traffic.counts_DL.sum() == 2 * sum(tokens)


def test_capacity_keeps_the_first_choices_of_each_expert():
    """Uniform loads of 10 at capacity factor 0.5 keep five each: half is dropped."""
    routing, placement = draw(4, 1, spec="uniform")
    traffic = spread_tokens(routing, placement, Parallelism(ep=4), 0.5)
    assert traffic.counts_DL.tolist() == [[5] * 4] * 4
    assert traffic.dropped_fraction == 0.5


def test_a_large_capacity_drops_nothing():
    routing, placement = draw(4, 1)
    dropless = spread_tokens(routing, placement, Parallelism(ep=4))
    ample = spread_tokens(routing, placement, Parallelism(ep=4), 16.0)
    assert ample.dropped_fraction == dropless.dropped_fraction == 0.0
    assert ample.copies_SD.tolist() == dropless.copies_SD.tolist()
    assert ample.counts_DL.tolist() == dropless.counts_DL.tolist()


def test_more_capacity_drops_less():
    routing, placement = draw(8, 1, spec="zipf:1")
    dropped = [
        spread_tokens(routing, placement, Parallelism(ep=8), c).dropped_fraction
        for c in (0.5, 1.0, 1.25, 2.0, 4.0)
    ]
    assert dropped == sorted(dropped, reverse=True)
    assert dropped[0] > 0.5 > dropped[-1]


def test_ranks_with_unequally_many_experts():
    """Rank 0 holds one expert, rank 1 three: rows go to the right slot and the others are zero."""
    routing, _ = draw(2, 1, experts=4)
    placement = Placement(
        rank_of_slot_P=np.array([0, 1, 1, 1]),
        expert_of_slot_P=np.array([2, 0, 1, 3]),
        num_ranks=2,
        num_experts=4,
    )
    traffic = spread_tokens(routing, placement, Parallelism(ep=2))
    loads = routing.num_tokens_E()
    assert traffic.counts_DL.tolist() == [[loads[2], 0, 0], [loads[0], loads[1], loads[3]]]
    assert traffic.copies_SD.tolist() == recount(routing, placement, 1)[0].tolist()
