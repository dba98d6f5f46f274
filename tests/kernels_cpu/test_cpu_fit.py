"""Fits find what was put in, drop what nothing exercised, and say how far off they are on what they
did not see.
"""

import numpy as np
import pytest
from moesim_kernels.profile.fit import (
    fit,
    fit_start_and_rate,
    held_out_ratios,
    start_and_rate_ratios,
)


def calls(count, noise=0.0, seed=0):
    rng = np.random.default_rng(seed)
    features = [
        {"a_s": rng.uniform(1, 100), "b_s": rng.uniform(1, 1000), "rare_s": 0.0}
        for _ in range(count)
    ]
    seconds = np.array([1e-5 + 2e-6 * f["a_s"] + 3e-7 * f["b_s"] for f in features])
    return features, seconds * np.exp(rng.normal(0.0, noise, count))


def test_fit_recovers_coefficients_and_drops_what_was_not_exercised():
    features, seconds = calls(40)
    features[0]["rare_s"] = features[1]["rare_s"] = 1e6
    found, low, high = fit(features, seconds)
    assert set(found) == {"a_s", "b_s"}
    assert found["a_s"] == pytest.approx(2e-6, rel=1e-3)
    assert found["b_s"] == pytest.approx(3e-7, rel=1e-3)
    assert low == pytest.approx(1.0, abs=1e-3)
    assert high == pytest.approx(1.0, abs=1e-3)


def test_fit_never_goes_below_zero():
    features = [{"up_s": float(i), "down_s": 100.0 - i} for i in range(1, 60)]
    found, _, _ = fit(features, np.array([1e-6 * (10 + i) for i in range(1, 60)]))
    assert all(value > 0 for value in found.values())


def test_held_out_ratios_are_the_noise_of_a_model_that_is_right():
    ratios = held_out_ratios(*calls(200, noise=0.1))
    low, high = np.percentile(ratios, (10, 90))
    assert ratios.shape == (200,)
    assert low == pytest.approx(np.exp(-0.128), rel=0.05)
    assert high == pytest.approx(np.exp(0.128), rel=0.05)


def test_held_out_is_never_closer_than_the_fit_itself():
    """A term that one call alone exercises can be fitted to it, but not predicted."""
    features, seconds = calls(16)
    for i in range(3):
        features[4 * i]["rare_s"] = 1.0
        seconds[4 * i] *= 3.0
    _, low, high = fit(features, seconds)
    held_low, held_high = np.percentile(held_out_ratios(features, seconds), (10, 90))
    assert high / low < held_high / held_low
    assert held_out_ratios(features, seconds)[0] > 2.0


def test_start_and_rate():
    amounts = np.array([1e3, 1e4, 1e5, 1e6, 1e7])
    start, rate = fit_start_and_rate(amounts, 5e-5 + amounts / 2e9)
    assert start == pytest.approx(5e-5, rel=1e-3)
    assert rate == pytest.approx(2e9, rel=1e-3)
    assert start_and_rate_ratios(amounts, 5e-5 + amounts / 2e9) == pytest.approx(1.0, abs=1e-3)
    disturbed = 5e-5 + amounts / 2e9
    disturbed[2] *= 2
    assert start_and_rate_ratios(amounts, disturbed)[2] == pytest.approx(2.0, rel=0.01)
