"""Fronts against their definition."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from moesim.search.pareto import crowding, front, hypervolume, ranks, spread, survivors


@given(costs=st.lists(st.tuples(*[st.integers(0, 5)] * 3), min_size=1, max_size=40))
def test_front_is_what_nothing_dominates(costs):
    def dominates(a, b):
        return all(x <= y for x, y in zip(a, b, strict=True)) and a != b

    expected = [
        i for i, row in enumerate(costs) if not any(dominates(other, row) for other in costs)
    ]
    assert front(np.array(costs, dtype=float)) == expected


def test_equal_rows_are_all_kept():
    assert front(np.array([[1.0, 2.0], [1.0, 2.0], [2.0, 1.0], [2.0, 2.0]])) == [0, 1, 2]


def test_no_rows():
    assert front(np.zeros((0, 2))) == []


@given(count=st.integers(0, 50), limit=st.integers(1, 60))
def test_spread_keeps_order_both_ends_and_the_limit(count, limit):
    kept = spread(list(range(count)), limit)
    assert len(kept) == min(count, limit)
    assert kept == sorted(set(kept))
    if count and limit > 1:
        assert (kept[0], kept[-1]) == (0, count - 1)


@given(costs=st.lists(st.tuples(*[st.integers(0, 4)] * 2), min_size=1, max_size=40))
def test_ranks_are_fronts_peeled_off_one_by_one(costs):
    costs = np.array(costs, dtype=float)
    expected, left = np.zeros(len(costs), dtype=int), list(range(len(costs)))
    number = 0
    while left:
        on = [left[i] for i in front(costs[left])]
        expected[on] = number
        left = [i for i in left if i not in on]
        number += 1
    assert ranks(costs).tolist() == expected.tolist()
    assert ranks(costs, 2).tolist() == np.minimum(expected, 2).tolist()


@given(costs=st.lists(st.tuples(*[st.integers(0, 5)] * 3), min_size=1, max_size=12))
def test_hypervolume_counts_cells(costs):
    """Of unit cells below the reference, those that some row dominates."""
    cells = sum(
        any(c[0] <= x and c[1] <= y and c[2] <= z for c in costs)
        for x in range(5)
        for y in range(5)
        for z in range(5)
    )
    assert hypervolume(np.array(costs, dtype=float), np.full(3, 5.0)) == cells


def test_hypervolume_of_one_and_two_costs():
    assert hypervolume(np.array([[2.0], [3.0]]), np.array([5.0])) == 3.0
    assert hypervolume(np.array([[1.0, 3.0], [3.0, 1.0], [9.0, 0.0]]), np.array([4.0, 4.0])) == 5.0
    assert hypervolume(np.zeros((0, 2)), np.ones(2)) == 0.0


def test_crowding_keeps_the_ends():
    distance = crowding(np.array([[0.0, 4.0], [1.0, 1.0], [1.5, 0.9], [4.0, 0.0]]))
    assert np.isinf(distance[[0, 3]]).all()
    assert distance[1] > distance[2] > 0


def test_survivors_are_feasible_first_then_those_that_break_least():
    costs = np.array([[0.0, 0.0], [1.0, 3.0], [3.0, 1.0], [4.0, 4.0], [5.0, 5.0]])
    broken = np.array([2.0, 0.0, 0.0, 0.0, 1.0])
    assert survivors(costs, broken, 2) == [1, 2]
    assert survivors(costs, broken, 4) == [1, 2, 3, 4]
    assert survivors(costs, broken, 5) == [1, 2, 3, 4, 0]
    assert survivors(costs, broken, 9) == [1, 2, 3, 4, 0]
