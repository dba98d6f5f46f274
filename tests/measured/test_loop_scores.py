"""Scores of a closed loop, by hand."""

import numpy as np
import pytest

from moesim.measured.loop_scores import TARGETS, against_targets, best_of_regret, fit_line, scores


def test_a_line_is_found_among_noise_and_one_stray():
    rng = np.random.default_rng(0)
    simulated = 10 ** rng.uniform(2, 5, 24)
    measured = (900.0 + 1.1 * simulated) * np.exp(rng.normal(0, 0.02, 24))
    measured[3] *= 3
    start, slope = fit_line(simulated, measured)
    assert start == pytest.approx(900, rel=0.05)
    assert slope == pytest.approx(1.1, rel=0.03)
    assert fit_line(simulated, 0.5 * simulated - 20)[0] >= 0


def test_regret_of_the_best_of_eight():
    measured = np.arange(1.0, 31.0)
    assert best_of_regret(measured, measured) == 0.0
    assert best_of_regret(-measured, measured) > 100
    assert best_of_regret(np.array([1.0, 2.0]), np.array([2.0, 1.0])) == 100.0


def test_scores():
    rows = [
        {
            "simulated_us": 110.0 * i,
            "measured_us": 100.0 * i,
            "roofline_us": 50.0,
            "simulated_low_us": 100.0 * i,
            "simulated_high_us": 120.0,
            "contended": i == 1,
        }
        for i in range(1, 5)
    ]
    found = scores(rows)
    assert found["mape"] == pytest.approx(10)
    assert (found["kendall_tau"], found["inside_percent"], found["contended"]) == (1.0, 25.0, 1.0)
    assert "inside_percent" not in scores(rows, "roofline_us")


def test_targets_beside_what_was_found():
    rows = against_targets([{"what": "layers", "mape": 9.0, "p90": 20.1, "kendall_tau": 0.96}])
    assert [row["met"] for row in rows[:4]] == ["yes", "no", "yes", "not measured"]
    assert rows[0] == {
        "what": "layers",
        "score": "mape",
        "target": "<= 9",
        "found": 9.0,
        "met": "yes",
    }
    assert len(rows) == len(TARGETS)
