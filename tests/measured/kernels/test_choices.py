"""The choice of a library against measurements, by hand and on the package's rows."""

import pandas as pd
import pytest

from moesim.errors import MeasurementError, UnknownNameError
from moesim.measured.kernels import choices
from moesim.measured.kernels.choices import choice_table, measured_libraries

pytestmark = pytest.mark.full

KEY = {
    "moe_dtype": "bfloat16",
    "hidden_size": 4096,
    "inter_size": 1536,
    "topk": 8,
    "num_experts": 128,
    "moe_tp_size": 1,
    "moe_ep_size": 1,
    "distribution": "balanced",
}


def test_regret_by_hand(monkeypatch):
    """The pick is measured 2 / 1.6 - 1 = 25 % slower at 64 tokens and best at 128."""
    rows = pd.DataFrame(
        [
            KEY | {"num_tokens": tokens, "kernels": name, "latency_ms": ms}
            for tokens, name, ms in (
                (64, "a", 2.0),
                (64, "b", 1.6),
                (128, "a", 1.0),
                (128, "b", 3.0),
                (256, "a", 1.04),
                (256, "b", 1.0),
            )
        ]
    )
    predicted = rows["kernels"].map({"a": 1.0, "b": 2.0}).to_numpy()
    monkeypatch.setattr(
        choices, "predict_rows", lambda table, few_shot: {"predicted_latency_ms": predicted}
    )
    (row,) = choice_table(rows)
    assert (row["layers"], row["libraries"]) == (3, 2)
    assert row["as_good_percent"] == pytest.approx(200 / 3)
    assert row["regret_percent"] == pytest.approx((25 + 0 + 4) / 3)
    assert row["usual"] == "b"
    assert row["usual_regret_percent"] == pytest.approx((0 + 200 + 0) / 3)


def test_every_layer_has_several_libraries():
    rows = measured_libraries("b200_sxm", 25)
    counts = rows.groupby(list(choices._SAME))["kernels"].nunique()
    assert len(counts) == 25
    assert counts.min() >= 2
    assert rows["latency_ms"].min() >= 0.05
    for row in choice_table(rows):
        assert 0.0 <= row["as_good_percent"] <= 100.0
        assert row["regret_percent"] >= 0.0


def test_the_choice_beats_any_single_library_on_an_h100():
    """In fp8 with block scales, where four libraries were measured."""
    table = choice_table(measured_libraries("h100_sxm", 150))
    (row,) = [row for row in table if row["precision"] == "fp8_block"]
    assert row["regret_percent"] < row["usual_regret_percent"]


def test_an_unknown_system():
    with pytest.raises(UnknownNameError, match="unknown system 'h100': did you mean h100_sxm"):
        measured_libraries("h100", 10)
    with pytest.raises(MeasurementError, match="no two libraries were measured alike on a100_sxm"):
        measured_libraries("a100_sxm", 10)
