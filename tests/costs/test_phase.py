"""Phases in sequence: demands add up, and so do the times they take alone."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moesim.costs import PhaseCost, sequence
from moesim.costs.phase import beside

SECONDS = st.floats(0.0, 10.0)


@st.composite
def phases(draw, devices=3):
    def column():
        return np.array(draw(st.lists(SECONDS, min_size=devices, max_size=devices)))

    return [
        PhaseCost(compute_s_D=column(), memory_s_D=column(), latency_s_D=column())
        for _ in range(draw(st.integers(1, 5)))
    ]


@given(kernels=phases())
def test_a_sequence_takes_as_long_as_its_kernels_in_turn(kernels):
    whole = sequence(*kernels)
    assert whole.solo_s_D() == pytest.approx(
        sum(k.solo_s_D() for k in kernels), rel=1e-12, abs=1e-12
    )
    assert whole.compute_s_D == pytest.approx(sum(k.compute_s_D for k in kernels))
    assert whole.memory_s_D == pytest.approx(sum(k.memory_s_D for k in kernels))
    assert (whole.latency_s_D >= 0).all()


@given(kernels=phases())
def test_how_kernels_are_grouped_does_not_matter(kernels):
    nested = (
        sequence(kernels[0], sequence(*kernels[1:]))
        if len(kernels) > 1
        else sequence(sequence(*kernels))
    )
    assert nested.solo_s_D() == pytest.approx(sequence(*kernels).solo_s_D(), rel=1e-12, abs=1e-12)


def test_solo_is_latency_and_the_larger_demand():
    cost = PhaseCost(
        compute_s_D=np.array([3.0, 1.0]),
        memory_s_D=np.array([2.0, 4.0]),
        latency_s_D=np.array([0.5, 0.0]),
    )
    assert cost.solo_s_D().tolist() == [3.5, 4.0]


def test_a_compute_bound_and_a_memory_bound_kernel_do_not_overlap():
    """Two kernels of one second each, one per resource: two seconds in turn, though each resource
    works one.
    """
    compute = PhaseCost(compute_s_D=np.ones(1), memory_s_D=np.zeros(1), latency_s_D=np.zeros(1))
    memory = PhaseCost(compute_s_D=np.zeros(1), memory_s_D=np.ones(1), latency_s_D=np.zeros(1))
    whole = sequence(compute, memory)
    assert whole.compute_s_D == whole.memory_s_D == whole.latency_s_D == [1.0]
    assert whole.solo_s_D() == [2.0]


def test_kernels_side_by_side_take_as_long_as_the_slowest_or_as_the_pool_they_share():
    def cost(compute, memory, latency):
        return PhaseCost(
            compute_s_D=np.array([compute]),
            memory_s_D=np.array([memory]),
            latency_s_D=np.array([latency]),
        )

    small, large = cost(1.0, 0.5, 2.0), cost(2.0, 4.0, 3.0)
    assert beside(small, large).solo_s_D() == 7.0
    busy = beside(cost(0.0, 5.0, 0.5), cost(0.0, 4.0, 0.0))
    assert busy.solo_s_D() == 9.0
    assert (busy.memory_s_D, busy.latency_s_D) == (9.0, 0.0)
