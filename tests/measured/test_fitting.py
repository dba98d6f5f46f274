"""Fits find what was put in, and do not let rounding choose what no row depends on."""

import numpy as np
import pytest

from moesim.measured.fitting import robust_fit
from moesim.measured.kernels.calibrate import BOUNDS, fit
from moesim.measured.kernels.groups import collect

pytestmark = pytest.mark.full

X = np.array([1.0, 2.0, 4.0, 8.0])
LIMITS = {"start": (1.0, 0.1, 10.0), "rate": (1.0, 0.1, 10.0), "unused": (7.0, 1.0, 100.0)}


def log_errors(p):
    return np.log((p["start"] + X / p["rate"]) / (2.0 + X / 3.0))


def test_a_parameter_without_rows_keeps_its_first_guess():
    found = robust_fit(log_errors, LIMITS, np.ones(4))
    assert found == pytest.approx({"start": 2.0, "rate": 3.0, "unused": 7.0}, rel=1e-3)
    assert found["unused"] == 7.0


def test_a_device_alone_has_no_factors_of_its_own():
    """From an A100 alone nobody can tell its own launches from everybody's."""
    groups = [g.few(0) for g in collect("sglang") if g.precision == "bfloat16"]
    alone = fit([g for g in groups if g.system == "a100_sxm"])
    both = fit(groups)
    assert "a100_launch" in both
    assert set(both) == set(BOUNDS)
    assert set(alone) == set(BOUNDS) - {"a100_launch"}
    for name in ("block_scale_iteration_cycles", "masked_block_cycles"):
        assert alone[name] == BOUNDS[name][0], "no row of the A100 has such blocks"
