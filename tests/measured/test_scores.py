import numpy as np
import pytest

from moesim.measured.scores import error_scores, ranking


def test_error_scores_by_hand():
    scores = error_scores(np.array([1.1, 0.8, 1.0, 2.0]), np.ones(4))
    assert scores == pytest.approx(
        {"rows": 4, "median": 15.0, "mape": 32.5, "p90": 76.0, "bias": 5.0}
    )


def test_ranking_needs_four():
    assert ranking(np.array([1.0, 2, 3]), np.array([1.0, 2, 3])) is None


def test_regret_is_what_the_simulated_best_really_cost():
    found = ranking(np.array([1.0, 2, 3, 4]), np.array([12.0, 10, 30, 40]))
    assert found["regret"] == pytest.approx(0.2)
    assert found["kendall_tau"] == pytest.approx(4 / 6)
