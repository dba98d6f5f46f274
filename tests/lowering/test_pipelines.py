"""Pipelines reproduce the bubbles that their authors publish, and compute every pass once."""

from collections import Counter

import pytest

from moesim.engines.run import run
from moesim.lowering.training.orders import Pass, Shape, kept_at_once, orders_of
from moesim.lowering.training.pipeline import kept_of, wired

SIZES = [(2, 8), (4, 8), (8, 16), (8, 64), (16, 64)]


def idle(pipeline, shape, *, forward=1.0, dgrad=1.0, wgrad=1.0, beside=None, hop=0.0):
    """Makespan, and how long each stage waits."""
    taken = {"F": forward, "B": dgrad, "W": wgrad}
    orders = orders_of(pipeline, shape)

    def seconds(unit):
        if beside is not None and len(unit) == 3:
            return beside
        return sum(taken[one.kind] for one in unit)

    timeline = run(wired(pipeline, shape).timed(seconds, hop), "bound")
    span = float(timeline.end_s_N.max())
    return span, [span - sum(map(seconds, units)) for units in orders]


@pytest.mark.parametrize(("pp", "count"), SIZES)
def test_1f1b_waits_for_all_other_stages_once(pp, count):
    """(p - 1) / (m + p - 1) of the time (Megatron-LM, arXiv 2104.04473)."""
    span, waits = idle("1f1b", Shape(pp, 1, count, False), dgrad=1.2, wgrad=0.8)
    assert [wait / span for wait in waits] == pytest.approx(
        [(pp - 1) / (count + pp - 1)] * pp, 0.01
    )


@pytest.mark.parametrize("vp", [2, 3, 8])
@pytest.mark.parametrize(("pp", "count"), SIZES)
def test_virtual_stages_divide_the_bubble(pp, count, vp):
    """(p - 1) / (v m + p - 1) of the time (Megatron-LM, arXiv 2104.04473)."""
    span, waits = idle("interleaved", Shape(pp, vp, count, False), dgrad=1.2, wgrad=0.8)
    want = (pp - 1) / (vp * count + pp - 1)
    assert [wait / span for wait in waits] == pytest.approx([want] * pp, 0.01)


@pytest.mark.parametrize("times", [(1.0, 1.0, 1.0), (1.0, 1.2, 0.9), (1.0, 1.0, 0.7)])
@pytest.mark.parametrize(("pp", "count"), SIZES)
def test_zero_bubble_waits_for_forward_and_dgrad_less_wgrad(pp, count, times):
    """ZB-H1: (p - 1)(F + B - W), B through activations (Qi et al., arXiv 2401.10241); it keeps as
    much as the first stage of 1F1B does.
    """
    forward, dgrad, wgrad = times
    _, waits = idle(
        "zero_bubble", Shape(pp, 1, count, False), forward=forward, dgrad=dgrad, wgrad=wgrad
    )
    assert waits == pytest.approx([(pp - 1) * (forward + dgrad - wgrad)] * pp, 0.01)
    for kept in kept_of("zero_bubble", Shape(pp, 1, count, False)):
        assert kept_at_once(kept, lambda part: 1.0) == pp


@pytest.mark.parametrize(("pp", "count"), [(4, 8), (8, 20), (16, 64)])
@pytest.mark.parametrize("beside", [2.2, 2.6, 3.0])
def test_dualpipe(pp, count, beside):
    """(PP / 2 - 1)(F&B + B - 3 W), and PP + 1 activations (DeepSeek-V3, arXiv 2412.19437, table
    2), where forward, dgrad and wgrad take equally long.
    """
    shape = Shape(pp, 1, 2 * count, False)
    _, waits = idle("dualpipe", shape, beside=beside)
    want = (pp / 2 - 1) * (beside + 2.0 - 3.0)
    assert max(waits) == pytest.approx(want, rel=0.01, abs=1e-9)
    for kept in kept_of("dualpipe", shape):
        assert kept_at_once(kept, lambda part: 1.0) == pp + 1


@pytest.mark.parametrize("overlaps", [False, True])
@pytest.mark.parametrize(
    ("pipeline", "vp"), [("1f1b", 1), ("interleaved", 3), ("zero_bubble", 1), ("dualpipe", 1)]
)
def test_every_pass_is_computed_once(pipeline, vp, overlaps):
    pp, count = 4, 16
    orders = orders_of(pipeline, Shape(pp, vp, count, overlaps))
    passes = Counter(one for units in orders for unit in units for one in unit)
    assert passes == Counter(
        Pass(kind, part, batch)
        for kind in ("F", "B", "W")
        for part in range(pp * vp)
        for batch in range(count)
    )


@pytest.mark.parametrize(("pipeline", "vp"), [("1f1b", 1), ("interleaved", 2)])
def test_passes_side_by_side_are_no_slower(pipeline, vp):
    """Overlap warms up longer, and then no stage waits for another in turn."""
    plain, _ = idle(pipeline, Shape(4, vp, 16, False))
    same, _ = idle(pipeline, Shape(4, vp, 16, True), beside=3.0)
    assert same == pytest.approx(plain, 0.01)
    faster, _ = idle(pipeline, Shape(4, vp, 16, True), beside=2.5)
    assert faster < plain


def test_hops_delay_receivers_only():
    plain, _ = idle("1f1b", Shape(4, 1, 32, False))
    delayed, _ = idle("1f1b", Shape(4, 1, 32, False), hop=0.01)
    assert plain < delayed < plain + 32 * 0.08
