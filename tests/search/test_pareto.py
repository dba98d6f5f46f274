"""Fronts against their definition."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from moesim.search.pareto import front, spread


@given(costs=st.lists(st.tuples(*[st.integers(0, 5)] * 3), min_size=1, max_size=40))
def test_front_is_what_nothing_dominates(costs):
    def dominates(a, b):
        return all(x <= y for x, y in zip(a, b, strict=True)) and a != b

    expected = [i for i, row in enumerate(costs) if not any(dominates(other, row) for other in costs)]
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
