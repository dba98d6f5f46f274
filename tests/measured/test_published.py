"""Published figures: the list, and how near the simulator comes to what it covers."""

import pytest

from moesim.measured.published import Point, compare, load_points, summary


@pytest.fixture(scope="module")
def rows():
    return compare()


def test_every_point_is_simulated_or_says_why_not():
    file = load_points()
    assert len({point.name for point in file.points}) == len(file.points)
    for point in file.points:
        assert point.source in file.sources
        assert (point.how is None) == bool(point.reason), point.name


def test_nine_tenths_of_the_scored_points_are_within_15_percent(rows):
    """32 points of exchanges and rank loads. Two are not covered; one all-reduce is off by more
    than 2x, where measured NCCL rows side with the simulator: see its note."""
    found = summary(rows)
    assert (found["scored"], found["covered"]) == (32, 30)
    assert found["within_15_percent"] >= 90.0
    assert found["off_by_more_than_2x"] == 1
    worst = max(
        (row for row in rows if row["error_percent"] is not None),
        key=lambda row: abs(row["error_percent"]),
    )
    assert worst["point"] == "8xH100 all-reduce, 58 MB"
    assert "355" in worst["note"]


def test_rows_are_whole(rows):
    for row in rows:
        assert row["source"]
        assert (row["simulated"] is None) == (row["evidence"] == "")
        assert row["simulated"] is None or row["error_percent"] == pytest.approx(
            100 * (row["simulated"] / row["published"] - 1)
        )


def test_a_miss_is_counted_in_the_share():
    known = {"scored": True, "error_percent": 5.0}
    missing = {"scored": True, "error_percent": None}
    far = {"scored": True, "error_percent": -60.0}
    found = summary([known, missing, far, {"scored": False, "error_percent": None}])
    assert found == {
        "scored": 3,
        "covered": 2,
        "within_10_percent": pytest.approx(100 / 3),
        "within_15_percent": pytest.approx(100 / 3),
        "within_30_percent": pytest.approx(100 / 3),
        "off_by_more_than_2x": 1,
    }


def test_the_points_schema_refuses_what_it_does_not_know():
    with pytest.raises(ValueError, match="metric"):
        Point(name="x", source="y", metric="furlongs", value=1.0, scored=True)
