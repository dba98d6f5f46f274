"""Full experts: every choice is served, re-routed or dropped, sums agree, and no limit
is broken.
"""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from moesim_kernels.ops.selection import serve as serve_reference

from moesim.errors import ConfigError
from moesim.model import Gate
from moesim.routing import RoutingSpec, route
from moesim.routing.capacity import places, rerouted, serve
from moesim.routing.places import fill


@st.composite
def overflows(draw):
    """Choices, a gate with or without groups among them, and a capacity that may be far
    too small.
    """
    groups, per_group = draw(st.sampled_from([1, 2, 4, 8])), draw(st.integers(1, 8))
    kept = draw(st.integers(1, groups))
    top_k = draw(st.integers(1, min(kept * per_group, 6)))
    gate = (
        Gate()
        if groups == 1
        else Gate(kind="group_limited", num_expert_groups=groups, num_limited_groups=kept)
    )
    spec = RoutingSpec.parse(
        draw(st.sampled_from(["uniform", "zipf:1.5", "w2", "dirichlet:0.1", "olmoe-github"]))
    )
    routing = route(
        spec,
        gate,
        num_experts=groups * per_group,
        top_k=top_k,
        seed=draw(st.integers(0, 99)),
        num_tokens_S=np.array(draw(st.lists(st.integers(1, 60), min_size=1, max_size=4))),
    )
    return routing, gate, draw(st.floats(0.05, 2.5)), draw(st.booleans())


@given(case=overflows())
def test_every_choice_is_served_rerouted_or_dropped(case):
    routing, gate, factor, reroute = case
    ids, experts = routing.expert_ids_TK, routing.num_experts
    capacity = places(factor, ids.size, experts)
    found = serve(ids, experts, capacity, reroute=reroute, gate=gate)
    assert found.num_served + found.num_dropped == ids.size
    assert not (found.rerouted_TK & ~found.served_TK).any()
    assert (found.expert_ids_TK[~found.rerouted_TK] == ids[~found.rerouted_TK]).all()
    counts = np.bincount(found.expert_ids_TK[found.served_TK], minlength=experts)
    assert counts.max() <= capacity
    assert found.num_served + found.num_padded == capacity * experts
    # of each token: k choices, of k different experts, in no more groups than before
    assert (np.diff(np.sort(found.expert_ids_TK, axis=1), axis=1) > 0).all()
    groups = found.expert_ids_TK // (experts // gate.num_expert_groups)
    assert max(len(set(row)) for row in groups.tolist()) <= gate.num_limited_groups
    if not reroute:
        assert found.num_rerouted == 0
        assert found.num_dropped == np.maximum(routing.num_tokens_E() - capacity, 0).sum()


@given(case=overflows())
def test_rerouting_drops_no_more_and_only_where_nobody_has_room(case):
    routing, gate, factor, _ = case
    capacity = places(factor, routing.expert_ids_TK.size, routing.num_experts)
    without = serve(routing.expert_ids_TK, routing.num_experts, capacity)
    found = serve(routing.expert_ids_TK, routing.num_experts, capacity, reroute=True, gate=gate)
    assert found.num_dropped <= without.num_dropped
    assert found.num_dropped == without.num_dropped - found.num_rerouted
    room = capacity - np.bincount(
        found.expert_ids_TK[found.served_TK], minlength=routing.num_experts
    )
    per_group = routing.num_experts // gate.num_expert_groups
    limited = gate.num_limited_groups < gate.num_expert_groups
    for t, k in np.argwhere(~found.served_TK):
        mine = found.expert_ids_TK[t]
        others = [
            e
            for e in np.flatnonzero(room > 0)
            if e not in mine and (not limited or e // per_group in mine // per_group)
        ]
        assert others == [], (t, k)


@given(case=overflows())
def test_a_rerouted_routing_drops_as_many_in_token_order(case):
    """What the lowering counts again, by capacity and token order, is what was left over here."""
    routing, gate, factor, _ = case
    capacity = places(factor, routing.expert_ids_TK.size, routing.num_experts)
    found = serve(routing.expert_ids_TK, routing.num_experts, capacity, reroute=True, gate=gate)
    again = rerouted(routing, factor, gate)
    assert again.num_rerouted == found.num_rerouted
    assert np.maximum(again.num_tokens_E() - capacity, 0).sum() == found.num_dropped


@given(case=overflows())
def test_torch_serves_the_same_choices(case):
    routing, _, factor, _ = case
    capacity = places(factor, routing.expert_ids_TK.size, routing.num_experts)
    found = serve(routing.expert_ids_TK, routing.num_experts, capacity)
    ids = torch.from_numpy(routing.expert_ids_TK).long()
    assert found.served_TK.tolist() == serve_reference(ids, routing.num_experts, capacity).tolist()


@pytest.mark.parametrize("grouped", [False, True])
def test_compiled_as_written(grouped):
    rng = np.random.default_rng(0)
    ids = np.argsort(rng.random((50, 16)) * np.linspace(1, 3, 16), axis=1)[:, :4].astype(np.int32)
    results = []
    for function in (fill.compiled, fill.py_func):
        out = ids.copy()
        results.append([*function(out, np.full(16, 13), True, 4, grouped), out])
    for one, two in zip(*results, strict=True):
        assert (one == two).all()


def test_pruned_experts_serve_nobody():
    ids = np.zeros((8, 1), dtype=np.int32)
    left = np.array([True, False, True])
    found = serve(ids, 3, 3, reroute=True, left_E=left)
    assert np.bincount(found.expert_ids_TK[found.served_TK], minlength=3).tolist() == [3, 0, 3]
    assert (found.num_dropped, found.num_left) == (2, 2)


@pytest.mark.parametrize("factor", [0.0, -1.0, float("nan"), float("inf")])
def test_impossible_capacities(factor):
    with pytest.raises(
        ConfigError, match=rf"^layer.capacity_factor: expected a number > 0, got {factor}$"
    ):
        places(factor, 100, 10)
    with pytest.raises(
        ConfigError, match=r"^capacity: expected at least one place an expert, got 0$"
    ):
        serve(np.zeros((1, 1), dtype=np.int32), 1, 0)
