"""Second opinions: laws whose coefficients we have at second hand, or that answer a different
question than the joint law.

The estimate uses only how far they disagree about a *step* from one number of experts or
granularity to another at the same active parameters and tokens, since their losses belong to other
data and other tokenizers.
"""

import math
from typing import Literal

import numpy as np

from moesim.quality.laws import Number, joint_loss, log, saturated

ClarkRouting = Literal["s_base", "rl_r", "hash"]
#: routing -> (a, b, c, d, E_start, E_max), from arXiv 2202.01169 at second hand
CLARK: dict[ClarkRouting, tuple[float, float, float, float, float, float]] = {
    "s_base": (-0.082, -0.108, 0.009, 1.104, 1.847, 314.478),
    "rl_r": (-0.083, -0.126, 0.012, 1.111, 1.880, 469.982),
    "hash": (-0.087, -0.136, 0.012, 1.157, 4.175, 477.741),
}
_LN10, _LN2 = math.log(10.0), math.log(2.0)


def clark_loss(experts: Number, active_params: Number, routing: ClarkRouting = "s_base") -> Number:
    """Return the loss of the unified law of routed models after 130B tokens (Clark et al. 2022,
    arXiv 2202.01169).

    ``log10 L = a log10 N + b log10 E + c log10 N log10 E + d`` with E the saturated number of
    experts, at most 512; the coefficients are at second hand.

    Args:
        experts: Number of experts of a top-1 layer, >= 1.
        active_params: Number of parameters N of the dense model that one token sees.
        routing: The routing method: Sinkhorn (BASE), reinforcement learning or hashing.
    """
    a, b, c, d, start, largest = CLARK[routing]
    log_e = log(saturated(experts, start, largest)) / _LN10
    log_n = log(active_params) / _LN10
    return 10.0 ** (a * log_n + b * log_e + c * log_n * log_e + d)


def abnar_loss(total_params: Number, train_tokens: Number, sparsity: Number) -> Number:
    """Return the loss as a function of total parameters and sparsity (Abnar et al. 2025, arXiv
    2501.12370; coefficients at second hand).

    ``16612.5 / N^0.5962 + 5455.67 / D^0.3954 + 0.4598 (1 - S)^0.1666 + 17.26 / ((1 - S)^0.1603
    N^0.1595) + 0.94``. Its R² on held-out sparsity is only 68 %, so it serves as a second opinion
    and not for extrapolation.

    Args:
        total_params: Number of all parameters N.
        train_tokens: Number of training tokens D.
        sparsity: Sparsity S, the share of the experts that a token does not use, in [0, 1).
    """
    used = 1.0 - sparsity
    return (
        16612.5 / total_params**0.5962
        + 5455.67 / train_tokens**0.3954
        + 0.4598 * used**0.1666
        + 17.26 / (used**0.1603 * total_params**0.1595)
        + 0.94
    )


def leverage(activation: Number, granularity: Number, train_flops: Number) -> Number:
    """Return the compute a dense model needs for the same loss, over that of an MoE (Tian et al.
    2025, arXiv 2507.17702).

    ``A_hat ** (1.23 - 0.0761 log10 C + 0.0167 (log2 G)^2 - 0.117 log2 G)``, with A_hat the
    activation ratio saturated from A_start 0.0163 to 5.28e16. The bases of the logarithms are
    inferred: they reproduce the published "more than 7 at 3.1 %, G = 12, 1e22 FLOPs" and the best
    granularity near 11 to 12.

    Args:
        activation: Activation ratio A, the share of the experts that a token uses.
        granularity: Granularity G, which the paper defines as 2 x hidden size over expert width.
        train_flops: Training compute C in FLOPs.
    """
    log_g = log(granularity) / _LN2
    power = 1.23 - 0.0761 * log(train_flops) / _LN10 + (0.0167 * log_g - 0.117) * log_g
    return saturated(activation, 0.0163, 5.28e16, unit=0.0) ** power


def leverage_loss(
    e_eff: Number, active_params: Number, train_tokens: Number, granularity: Number
) -> Number:
    """Return the leverage as a loss: the joint law at a dense model with leverage times the
    compute.

    Parameters and tokens share the factor evenly, sqrt(leverage) times as many of each. This is our
    assumption.
    """
    more = leverage(1.0 / e_eff, granularity, 6.0 * active_params * train_tokens) ** 0.5
    one = np.ones_like(more) if isinstance(more, np.ndarray) else 1.0
    return joint_loss(one, active_params * more, train_tokens * more)


def expert_opinions(
    e_eff: Number, active_params: Number, train_tokens: Number
) -> dict[str, Number]:
    """Return the loss of each other law for this many experts at granularity 1. Only differences of
    these losses are meaningful.

    For the law of Abnar et al., all parameters are counted as parameters of experts, so that there
    are ``e_eff`` times as many as active ones.
    """
    return {
        "clark": clark_loss(e_eff, active_params),
        "abnar": abnar_loss(active_params * e_eff, train_tokens, 1.0 - 1.0 / e_eff),
        "leverage": leverage_loss(e_eff, active_params, train_tokens, 0.0 * e_eff + 1.0),
    }
