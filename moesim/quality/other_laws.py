"""Second opinions: laws whose coefficients we have at second hand, or that answer another question
than the joint law.

What the estimate takes from them is how far they disagree about a *step*, from one number of
experts or granularity to another at the same active parameters and tokens; their losses are of
other data and other tokenizers.
"""

import math
from typing import Literal

import numpy as np

from moesim.quality.laws import Number, joint_loss, log, saturated

ClarkRouting = Literal["s_base", "rl_r", "hash"]
#: (a, b, c, d, E_start, E_max) by routing: arXiv 2202.01169, at second hand
CLARK: dict[ClarkRouting, tuple[float, float, float, float, float, float]] = {
    "s_base": (-0.082, -0.108, 0.009, 1.104, 1.847, 314.478),
    "rl_r": (-0.083, -0.126, 0.012, 1.111, 1.880, 469.982),
    "hash": (-0.087, -0.136, 0.012, 1.157, 4.175, 477.741),
}
_LN10, _LN2 = math.log(10.0), math.log(2.0)


def clark_loss(experts: Number, active_params: Number, routing: ClarkRouting = "s_base") -> Number:
    """Loss of the unified law of routed models after 130B tokens (Clark et al. 2022, arXiv
    2202.01169).

    ``log10 L = a log10 N + b log10 E + c log10 N log10 E + d`` with E the saturated expert count,
    at most 512; the coefficients are second hand.

    Args:
        experts: Experts of a top-1 layer, >= 1.
        active_params: N, parameters of the dense model that one token sees.
        routing: How it was routed: Sinkhorn (BASE), reinforcement learning or hashing.
    """
    a, b, c, d, start, largest = CLARK[routing]
    log_e = log(saturated(experts, start, largest)) / _LN10
    log_n = log(active_params) / _LN10
    return 10.0 ** (a * log_n + b * log_e + c * log_n * log_e + d)


def abnar_loss(total_params: Number, train_tokens: Number, sparsity: Number) -> Number:
    """Loss over total parameters and sparsity (Abnar et al. 2025, arXiv 2501.12370; coefficients
    second hand).

    ``16612.5 / N^0.5962 + 5455.67 / D^0.3954 + 0.4598 (1 - S)^0.1666 + 17.26 / ((1 - S)^0.1603
    N^0.1595) + 0.94``. Its R² on held-out sparsity is 68 % only: a second opinion, nothing to
    extrapolate with.

    Args:
        total_params: N, all parameters.
        train_tokens: D.
        sparsity: S, share of the experts a token does not use, in [0, 1).
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
    """Compute a dense model needs for the same loss, over an MoE's (Tian et al. 2025, arXiv
    2507.17702).

    ``A_hat ** (1.23 - 0.0761 log10 C + 0.0167 (log2 G)^2 - 0.117 log2 G)``, A_hat the activation
    ratio saturated from A_start 0.0163 to 5.28e16. The bases of the logarithms are inferred: they
    give the published "more than 7 at 3.1 %, G = 12, 1e22 FLOPs" and its best granularity near 11
    to 12.

    Args:
        activation: A, share of the experts a token uses.
        granularity: G; there 2 x hidden size over expert width.
        train_flops: C.
    """
    log_g = log(granularity) / _LN2
    power = 1.23 - 0.0761 * log(train_flops) / _LN10 + (0.0167 * log_g - 0.117) * log_g
    return saturated(activation, 0.0163, 5.28e16, unit=0.0) ** power


def leverage_loss(
    e_eff: Number, active_params: Number, train_tokens: Number, granularity: Number
) -> Number:
    """The leverage as a loss: the joint law's of a dense model with that many times the compute.

    Parameters and tokens share it evenly: sqrt(leverage) times as many of both. An assumption of
    ours.
    """
    more = leverage(1.0 / e_eff, granularity, 6.0 * active_params * train_tokens) ** 0.5
    one = np.ones_like(more) if isinstance(more, np.ndarray) else 1.0
    return joint_loss(one, active_params * more, train_tokens * more)


def expert_opinions(
    e_eff: Number, active_params: Number, train_tokens: Number
) -> dict[str, Number]:
    """What each other law says of this many experts, at granularity 1: losses to take differences
    of.

    For Abnar's all parameters are counted as experts', so that their number is ``e_eff`` times the
    active ones.
    """
    return {
        "clark": clark_loss(e_eff, active_params),
        "abnar": abnar_loss(active_params * e_eff, train_tokens, 1.0 - 1.0 / e_eff),
        "leverage": leverage_loss(e_eff, active_params, train_tokens, 0.0 * e_eff + 1.0),
    }
