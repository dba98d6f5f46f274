"""EPLB's policies: its README's example, its choice between hierarchical and global, and what it
refuses.
"""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moesim.errors import ConfigError
from moesim.placement import Setting, place, replica_loads
from moesim.placement.eplb import eplb_slots

#: deepseek-ai/EPLB, README: 2 layers, 12 experts, 16 slots, 4 groups, 2 nodes, 8 GPUs, and what it
#: prints
LOADS = (
    [90, 132, 40, 61, 104, 165, 39, 4, 73, 56, 183, 86],
    [20, 107, 104, 64, 19, 197, 187, 157, 172, 86, 16, 27],
)
PHYSICAL_TO_LOGICAL = (
    [5, 6, 5, 7, 8, 4, 3, 4, 10, 9, 10, 2, 0, 1, 11, 1],
    [7, 10, 6, 8, 6, 11, 8, 9, 2, 4, 5, 1, 5, 0, 3, 1],
)
NODES_OF_4 = Setting(ranks_per_node=4)


@pytest.mark.parametrize("layer", [0, 1])
def test_readme_example(layer):
    placement = place("eplb_hierarchical:4", np.array(LOADS[layer]), 8, 4, setting=NODES_OF_4)
    assert placement.expert_of_slot_P.tolist() == PHYSICAL_TO_LOGICAL[layer]
    assert placement.rank_of_slot_P.tolist() == [r for r in range(8) for _ in range(2)]


def test_groups_are_the_gates_unless_written():
    setting = Setting(ranks_per_node=4, num_expert_groups=4)
    placement = place("eplb_hierarchical", np.array(LOADS[0]), 8, 4, setting=setting)
    assert placement.expert_of_slot_P.tolist() == PHYSICAL_TO_LOGICAL[0]


def test_global_where_nodes_do_not_divide_the_groups():
    load = np.array(LOADS[0])
    plain = place("eplb", load, 8, 4)
    for groups in (1, 3):
        found = place(f"eplb_hierarchical:{groups}", load, 8, 4, setting=NODES_OF_4)
        assert found.expert_of_slot_P.tolist() == plain.expert_of_slot_P.tolist()


@given(
    seed=st.integers(0, 2**32 - 1),
    nodes=st.sampled_from([1, 2, 4]),
    per_node=st.integers(1, 4),
    groups_per_node=st.integers(1, 3),
    extra=st.integers(0, 3),
)
def test_hierarchical_keeps_groups_in_a_node(seed, nodes, per_node, groups_per_node, extra):
    ranks, groups = nodes * per_node, nodes * groups_per_node
    load = np.random.default_rng(seed).integers(0, 100, groups * per_node).astype(float)
    setting = Setting(ranks_per_node=per_node)
    placement = place(f"eplb_hierarchical:{groups}", load, ranks, ranks * extra, setting=setting)
    node_P = placement.rank_of_slot_P // per_node
    for group in range(groups):
        own = placement.expert_of_slot_P // per_node == group
        assert len(set(node_P[own].tolist())) == 1
    assert placement.slots_of_rank().tolist() == [groups * per_node // ranks + extra] * ranks
    assert replica_loads(placement, load).sum() == pytest.approx(load.sum())


def test_one_slot_per_rank_stays_in_order():
    """EPLB does not sort where every pack takes one item."""
    assert eplb_slots(np.array([1.0, 5.0, 3.0]), 3, 0, Setting(), 1)[0].tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("groups", "replicas", "message"),
    [
        (5, 4, "placement: expected experts divisible into 5 groups, got 12"),
        (
            4,
            8 * 3 + 1,
            (
                "placement: expected experts + replicas divisible by the 8 expert-parallel "
                "ranks, got 12 + 25"
            ),
        ),
    ],
)
def test_wrong_groups(groups, replicas, message):
    with pytest.raises(ConfigError) as caught:
        place(f"eplb_hierarchical:{groups}", np.array(LOADS[0]), 8, replicas, setting=NODES_OF_4)
    assert str(caught.value) == message


def test_replicas_that_do_not_divide_over_nodes():
    with pytest.raises(ConfigError) as caught:
        eplb_slots(np.ones(6), 2, 3, Setting(ranks_per_node=1), 2)
    assert str(caught.value) == "placement: expected replicas divisible by the 2 nodes, got 3"
