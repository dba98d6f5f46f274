"""Published figures: the list, and how near the simulator comes to what it covers."""

import numpy as np
import pytest

from moesim.hardware.frameworks import framework
from moesim.measured.published import Point, compare, load_points, summary
from moesim.measured.train_points import fitted_efficiency, run_train_point

pytestmark = pytest.mark.full


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
    parts = [row for row in rows if not row["whole_model"] and not row["training"]]
    found = summary(parts)
    assert (found["scored"], found["covered"]) == (32, 30)
    assert found["within_15_percent"] >= 90.0
    assert found["off_by_more_than_2x"] == 1
    worst = max(
        (row for row in parts if row["scored"] and row["error_percent"] is not None),
        key=lambda row: abs(row["error_percent"]),
    )
    assert worst["point"] == "8xH100 all-reduce, 58 MB"
    assert "355" in worst["note"]


def test_most_figures_of_whole_models_are_within_20_percent(rows):
    """16 figures: prefill and decode of DeepSeek-V3 on H100, H800 and GB200, gains of two-batch
    overlap, gpt-oss and Qwen3 on H100. Nothing was fitted to them. With balanced experts
    prefills of DeepSeek-V3 are 9 and 16 % too fast, with those of its data up to 34 %: batches
    there are less balanced than EPLB leaves them here. GB200 ran kernels that no measured row here
    is of.
    """
    whole = [row for row in rows if row["whole_model"]]
    found = summary(whole)
    assert (found["scored"], found["covered"]) == (16, 16)
    assert found["within_20_percent"] >= 55.0
    assert max(abs(row["error_percent"]) for row in whole) < 45.0


def test_most_figures_of_training_are_within_20_percent(rows):
    """20 figures: Megatron-Bridge on Blackwell, DeepSeek-V3, bf16 on H100; none was fitted."""
    training = [row for row in rows if row["training"] and row["scored"]]
    found = summary(training)
    assert (found["scored"], found["covered"]) == (20, 20)
    assert found["within_20_percent"] >= 70.0
    ratios = [1.0 + row["error_percent"] / 100.0 for row in training]
    assert max(*ratios, *(1.0 / ratio for ratio in ratios)) < 1.6
    # the framework's interval is the spread of these rows
    record = framework("megatron")
    low, high = np.percentile(ratios, [10, 90])
    assert (record.low, record.high) == pytest.approx((low, high), abs=0.02)


def test_utilizations_are_those_seen(rows):
    """Of the format's peak: bf16 on H100 16 to 49 %, fp8 there 10 to 13 %, mxfp8 on Blackwell 14 to
    33 % in the same summaries.
    """
    bounds = {("h100", "bf16"): (0.16, 0.49), ("h100", "fp8"): (0.10, 0.13)}
    seen = 0
    for point in load_points().points:
        if point.training is None:
            continue
        device = point.cluster.partition("-")[0]
        low, high = bounds.get((device, point.training.formats), (0.12, 0.40))
        result = run_train_point(
            point.training, point.cluster, point.num_nodes, point.devices_per_node
        )
        assert low <= result.format_mfu <= high, point.name
        seen += 1
    assert seen == 23


def test_the_framework_was_fitted_to_three_rows_of_h100(rows):
    fitted = [row for row in rows if row["training"] and not row["scored"]]
    assert {row["note"] for row in fitted} == {"fitted"}
    assert all("H100" in row["point"] for row in fitted)
    assert len(fitted) == 3
    applied = framework("megatron").efficiency
    assert fitted_efficiency(rows) == pytest.approx(applied, rel=0.005)


def test_offloaded_experts_are_an_upper_bound(rows):
    """The link alone would allow about three times what was published for Python and 2-bit weights
    that are widened first: nothing of either is simulated."""
    point = next(row for row in rows if "in host memory" in row["point"])
    assert not point["scored"]
    assert 4.0 < point["simulated"] < 12.0


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
        "within_20_percent": pytest.approx(100 / 3),
        "within_30_percent": pytest.approx(100 / 3),
        "off_by_more_than_2x": 1,
    }


def test_the_points_schema_refuses_what_it_does_not_know():
    with pytest.raises(ValueError, match="metric"):
        Point(name="x", source="y", metric="furlongs", value=1.0, scored=True)
