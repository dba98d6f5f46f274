"""Jumping over steps adds up what running them would, within the stated error."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moesim.serving.loop.stretch import Stretch

positive = st.floats(1e-3, 1e3)


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 911, 1025])
def test_a_line_takes_three_steps(steps):
    asked = []

    def step_s(index):
        asked.append(index)
        return 2.0 + 0.25 * index

    stretch = Stretch(step_s, steps, 1e-6)
    assert len(asked) == len(set(asked)) <= 3 + (steps == 4)
    for count in {0, 1, steps // 2, steps - 1, steps}:
        exact = 2.0 * count + 0.25 * count * (count - 1) / 2
        assert stretch.seconds(count) == pytest.approx(exact, rel=1e-12)


@given(
    steps=st.integers(1, 3000),
    tolerance=st.sampled_from([1e-2, 1e-3, 1e-5]),
    start=positive,
    slope=positive,
    power=st.floats(0.1, 3.0),
    bend=st.booleans(),
)
@settings(max_examples=200, deadline=None)
def test_the_error_is_bounded_for_convex_and_concave_steps(
    steps, tolerance, start, slope, power, bend
):
    def step_s(index):
        grown = start + slope * index**power
        return max(grown, 1e-3 * index**3) if bend and power > 1 else grown

    stretch = Stretch(step_s, steps, tolerance)
    exact = math.fsum(map(step_s, range(steps)))
    assert stretch.seconds(steps) == pytest.approx(exact, rel=tolerance)


@given(steps=st.integers(1, 400), first=st.integers(0, 400), last=st.integers(0, 400))
@settings(max_examples=200, deadline=None)
def test_pieces_and_seconds_agree(steps, first, last):
    first, last = sorted((min(first, steps), min(last, steps)))
    stretch = Stretch(lambda i: 1.0 + i**1.7, steps, 1e-2)
    pieces = stretch.pieces(first, last)
    assert sum(count for _, _, count in pieces) == last - first
    inside = sum((low + high) / 2 * count for low, high, count in pieces)
    assert inside == pytest.approx(stretch.seconds(last) - stretch.seconds(first), abs=1e-6)


def test_a_time_within_a_step_belongs_to_the_step():
    stretch = Stretch(lambda i: 1.0 + i, 10, 1e-3)
    for steps in range(11):
        end_s = stretch.seconds(steps)
        assert stretch.steps_by(end_s) == steps
        if steps < 10:
            assert stretch.steps_by(end_s + 0.5) == steps + 1
    assert stretch.steps_by(1e9) == 10
