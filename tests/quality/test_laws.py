"""Scaling laws against points their papers print."""

import numpy as np
import pytest
from scipy.optimize import minimize_scalar

from moesim.quality.laws import fine_grained_loss, joint_loss, saturated_experts


@pytest.mark.parametrize(
    ("train_flops", "experts", "tokens"),
    [
        (1e20, 1, 9.7e9),
        (1e20, 8, 17.0e9),
        (1e20, 32, 24.9e9),
        (1e21, 8, 44.3e9),
        (1e21, 32, 58.4e9),
        (1e22, 8, 115.8e9),
    ],
)
def test_joint_law_s_compute_optimal_tokens(train_flops, experts, tokens):
    """Tokens that minimise the loss at 6 N D FLOPs: arXiv 2502.05172, table of compute-optimal
    sizes.
    """
    best = minimize_scalar(
        lambda x: joint_loss(experts, train_flops / 6 / np.exp(x), np.exp(x)),
        bounds=(np.log(1e8), np.log(1e13)),
        method="bounded",
        options={"xatol": 1e-8},
    )
    assert np.exp(best.x) == pytest.approx(tokens, rel=0.02)


@pytest.mark.parametrize(
    ("active_params", "tokens", "granularity", "loss"),
    [
        (1e8, 4.37e9, 8, 3.133),
        (1e9, 28.94e9, 16, 2.491),
        (3e9, 72.9e9, 16, 2.245),
        (7e9, 137.6e9, 32, 2.076),
        (7e10, 941.07e9, 32, 1.694),
    ],
)
def test_fine_grained_law_s_points(active_params, tokens, granularity, loss):
    """Table 2 of arXiv 2402.07871, at 64 experts."""
    assert fine_grained_loss(active_params, tokens, granularity) == pytest.approx(loss, abs=0.003)


def test_experts_saturate_at_both_ends():
    values = [saturated_experts(e) for e in (1, 2, 8, 32, 128, 1e6)]
    assert values == sorted(values)
    assert values[0] == pytest.approx(2.0732, rel=1e-6)
    assert values[-1] < 290.4521


@pytest.mark.parametrize("experts", [1, 8, 32])
def test_more_of_anything_lowers_the_loss(experts):
    for n, d in ((1e8, 1e10), (1e9, 5e10)):
        assert joint_loss(experts, 2 * n, d) < joint_loss(experts, n, d)
        assert joint_loss(experts, n, 2 * d) < joint_loss(experts, n, d)
        assert joint_loss(2 * experts, n, d) < joint_loss(experts, n, d)
        assert fine_grained_loss(n, d, 8) < fine_grained_loss(n, d, 4) < fine_grained_loss(n, d, 1)
