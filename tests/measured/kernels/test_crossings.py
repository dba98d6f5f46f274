"""What crossings cost, from events by hand and from the shipped ones, and that intervals hold."""

import numpy as np
import pytest
from scipy.stats import norm, t

from moesim.costs.cells import crossings, crossings_path
from moesim.measured.kernels.crossing_costs import SHARES, Event, Key, cost_of, costs_of
from moesim.measured.kernels.crossing_files import read_events, write_crossings
from moesim.measured.kernels.crossing_nested import nested_coverage, nested_table
from moesim.measured.kernels.residuals import FEWEST, HeldOutRow, cells_of, few_shot_spread

EVENTS = read_events(crossings_path().with_suffix(".csv"))


def event(bias=0.1, spread=0.1, crossed=("format",), library="one", device="h100-sxm"):
    return Event(
        key=Key(library, device, "v", "bfloat16", "ep1"),
        source="s",
        crossed=crossed,
        rows=100,
        bias=bias,
        spread=spread,
        home_spread=0.1,
        home=0.1,
        within=tuple(0.01 * share for share in SHARES),
    )


def test_two_pairs_by_hand():
    found, pairs = cost_of([event(0.1), event(-0.1, device="a100-sxm")], "format")
    assert pairs == 2
    assert found == pytest.approx(t.ppf(0.9, 1) * np.sqrt(1.5) * 0.1)
    few, _ = cost_of([event(0.1), event(-0.1, device="a100-sxm")], "format", few=False)
    assert few == pytest.approx(norm.ppf(0.9) * 0.1)


def test_many_pairs_are_pooled_robustly():
    """One library whose formats are other kernels does not decide the rest."""
    usual = [event(0.1, library=str(i)) for i in range(9)]
    with_odd, pairs = cost_of([*usual, event(3.0, library="odd")], "format")
    assert pairs == 10
    assert with_odd == pytest.approx(t.ppf(0.9, 9) * np.sqrt(1.1) * 0.1 / norm.ppf(0.75), rel=1e-6)


def test_spread_that_a_crossing_adds_counts():
    wider = [event(0.0, 0.2, library=str(i)) for i in range(3)]
    assert cost_of(wider, "format")[0] == pytest.approx(np.sqrt(0.2**2 - 0.1**2))
    narrower = [event(0.0, 0.05, library=str(i)) for i in range(3)]
    assert cost_of(narrower, "format")[0] == 0.0


def test_events_that_cross_more_do_not_count():
    assert cost_of([event(crossed=("format", "epn"))], "format") == (0.0, 0)


def test_share_inside():
    assert event().inside(0.8) == pytest.approx(0.8)
    assert event().inside(0.05) == pytest.approx(0.05)
    assert event().inside(5.0) == 1.0


def test_a_library_does_not_vouch_for_itself():
    events = [event(0.1, library="one"), event(0.1, library="two"), event(1.0, library="three")]
    halves = [np.log(width) / 2 for _, _, width in nested_coverage(events)]
    assert halves[2] < halves[0]


@pytest.mark.parametrize(
    "crossed", ["ep1", "epn", "format", "version", "shape", "few_shot", "generation+format"]
)
def test_intervals_hold_where_their_library_told_nothing(crossed):
    """Nested cross-validation on rows that may be fitted: 70 to 90 % inside, 80 meant."""
    [row] = [row for row in nested_table(EVENTS) if row["crossed"] == crossed]
    assert 70 <= row["inside"] <= 90
    assert row["width"] < 3


def test_a_generation_alone_was_crossed_twice_and_held_both_times():
    """Two events are too few for a share; each tells the other's cost."""
    found = [inside for one, inside, _ in nested_coverage(EVENTS) if one.crossed == ("generation",)]
    assert len(found) == 2
    assert min(found) > 0.7


def test_shipped_costs_are_those_of_the_shipped_events(tmp_path):
    costs, groups = costs_of(EVENTS)
    shipped = crossings()
    for name, cost in costs.model_dump().items():
        assert cost == pytest.approx(getattr(shipped.costs, name), abs=2e-3)
    assert groups == shipped.groups
    write_crossings(tmp_path, EVENTS)
    assert (tmp_path / "crossings.csv").read_bytes() == crossings_path().with_suffix(
        ".csv"
    ).read_bytes()


def test_only_rows_that_may_be_fitted_made_events():
    assert {e.key.device for e in EVENTS} == {"a100-sxm", "h100-sxm", "b200-sxm"}
    # B200's rows may be fitted for other libraries only
    assert all("triton" not in e.key.library for e in EVENTS if e.key.device == "b200-sxm")


def row(ratio, shape=(1,), ep=1):
    return HeldOutRow("h100_sxm", "v", "bfloat16", ep, shape, ratio)


def test_cells_by_hand():
    few = [row(1.0, ep=8)] * (FEWEST - 1)
    [cell] = cells_of([*(row(r) for r in np.exp(np.linspace(-0.5, 0.5, 21))), *few])
    assert (cell["low"], cell["high"]) == pytest.approx((np.exp(-0.4), np.exp(0.4)))
    assert (cell["device"], cell["generation"], cell["ep"]) == ("h100-sxm", 90, "ep1")
    assert (cell["kind"], cell["rows"]) == ("one shape", 21)


def test_few_shapes_widen_an_interval():
    """Two shapes that disagree leave the next one open; many of one opinion do not."""

    def width(shapes):
        rows = [row(np.exp(bias + e), (i,)) for i, bias in shapes for e in (-0.01, 0, 0.01) * 9]
        [cell] = cells_of(rows)
        assert cell["kind"] == "cross-validated by shape"
        return np.log(cell["high"] / cell["low"]) / 2

    between = 0.1 * np.sqrt(2)
    factor = t.ppf(0.9, 1) ** 2 * 1.5 - norm.ppf(0.9) ** 2
    assert width([(0, 0.1), (1, -0.1)]) == pytest.approx(
        np.hypot(0.11, np.sqrt(factor) * between), rel=0.02
    )
    many = [(i, 0.1 * (-1) ** i) for i in range(20)]
    assert width(many) < 0.13


def test_few_shot_spread_by_hand():
    left_out = np.array([0.1, -0.1, 0.1, -0.1])
    expected = t.ppf(0.9, 3) * np.sqrt(1.25) * 0.1 / norm.ppf(0.75)
    assert few_shot_spread(left_out) == pytest.approx(expected)
