"""What a reader is told: the headline by its rule, and each number in a sentence."""

import pytest

from moesim.measured.recalibrate import Recalibration
from moesim.measured.sources import CheckRow
from moesim.measured.verdict import headline, sentences


def row(name, error, part="layer", source="triton"):
    """A measured time, and one simulated with this error in percent."""
    number = int(name[1:])
    measured = 100.0 * number
    simulated = measured * (1.0 + error / 100.0)
    return CheckRow(
        candidate=name,
        source=source,
        quantity=f"{part}_time_us",
        status="checked",
        simulated=simulated,
        simulated_low=0.95 * simulated,
        simulated_high=1.05 * simulated,
        measured=measured,
    )


@pytest.mark.parametrize(
    ("errors", "expected"),
    [
        ([2, -3, 14, 20, 1], "The simulator holds on a test: 4 of 5 winners are confirmed, 0"),
        ([2, 20, 20, 20], "The simulator holds on a test with reservations: 1 of 4 winners"),
        ([2, 2, 2, 2, -40], "Do not rely on the simulator on a test: 4 of 5 winners"),
    ],
)
def test_the_headline_follows_its_rule(errors, expected):
    rows = [row(f"E{i + 1}", error) for i, error in enumerate(errors)]
    assert headline(rows, "a test").startswith(expected)


def test_nothing_measured_says_nothing():
    unknown = CheckRow(candidate="E1", source="triton", quantity="none", status="not_measured")
    assert headline([unknown], "a test") == (
        "None of the 1 winners was measured on a test: nothing can be said."
    )
    assert headline([], "a test").startswith("None of the 0 winners")


def test_every_number_has_its_sentence():
    rows = [("winner", row(f"E{i}", 10)) for i in range(1, 5)]
    rows += [("random", row(f"E{i}", -20, "gate")) for i in range(1, 5)]
    beside = [
        {"candidate": "E1", "library": "moesim", "ratio": 1.0},
        {"candidate": "E1", "library": "vllm", "ratio": 0.8},
        {"candidate": "E1", "library": "sglang", "ratio": 1.25},
        {"candidate": "E2", "library": "moesim", "ratio": 1.0},
        {"candidate": "E2", "library": "vllm", "ratio": 0.8},
    ]
    fitted = Recalibration(
        factors={}, before={"mape": 15.2}, after={"mape": 4.1}, fitted_on=("a",), kept_apart=("b",)
    )
    told = sentences(rows, "a test", beside=beside, recalibration=fitted)
    assert told[0].startswith("The simulator holds on a test: 4 of 4")
    assert told[1] == (
        "Simulated times of whole layers are off by 10 % in the median and 10 % at P90, and 10 % "
        "too long (4 designs)."
    )
    assert told[2].startswith("Simulated times of gates are off by 20 %")
    assert "20 % too short (4 designs)" in told[2]
    assert told[3] == (
        "The design simulated as the fastest is the fastest measured; of pairs of designs 100 % "
        "are ranked rightly."
    )
    # The fastest other library of each design: 1.25 and 0.8 times, whose mean is 1.
    assert told[4] == (
        "moesim's expert phase takes 1.00 times as long as that of the fastest other library "
        "(geometric mean of 2 designs; at worst 1.25 times sglang)."
    )
    assert "the other half from 15 to 4 %" in told[5]
    assert told[-1] == (
        "Confirmed: within 15 %, or inside an 80 % interval narrower than a factor of 1.5; "
        "refuted: more than 30 % off and outside the interval."
    )


def test_alone_there_is_nobody_to_compare_with():
    told = sentences(
        [("winner", row("E1", 0))],
        "a test",
        beside=[{"candidate": "E1", "library": "moesim", "ratio": 1.0}],
    )
    assert "No other library's kernels could be timed beside moesim's." in told
