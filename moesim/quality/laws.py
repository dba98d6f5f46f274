"""Scaling laws of MoE pre-training loss, in nats per token, with the ranges they were fitted on.

Losses of different laws are not comparable; a search may use only differences within one law. This
module has the two laws behind the estimate, `moesim.quality.other_laws` has second opinions, and
`moesim.quality.catalog` lists all of them. Arguments are floats or arrays; floats take a fast path.
"""

import math
from typing import TypeVar

import numpy as np

#: a float, or an array of floats
Number = TypeVar("Number", float, np.ndarray)

#: ranges of the fit of the joint law (arXiv 2502.05172): experts, active parameters, tokens, tokens
#: per active parameter
JOINT_RANGE = {
    "E_eff": (1.0, 32.0),
    "active_params": (79e6, 2.7e9),
    "train_tokens": (0.5e9, 80e9),
    "tokens_per_param": (0.0, 414.0),
}
#: range of granularity in the fit of the fine-grained law (arXiv 2402.07871)
GRANULARITY_RANGE = (1.0, 16.0)
#: The fine-grained law counts total parameters; at its 64 experts these are 37 times the active
#: ones (our fit of table 2 of the paper, which its N reproduces only with this factor).
_TOTAL_PER_ACTIVE = 37.0


def log(x: Number) -> Number:
    """Return the natural logarithm of a float or of each number of an array."""
    return np.log(x) if isinstance(x, np.ndarray) else math.log(x)


def saturated(x: Number, start: float, largest: float, unit: float = 1.0) -> Number:
    """Return ``1 / (1 / (x - unit + (1 / start - 1 / largest)**-1) + 1 / largest)``, which rises
    from start at x = unit to largest.

    This is the transformation of Clark et al. 2022 (arXiv 2202.01169), which both later laws
    adopted.
    """
    return 1.0 / (1.0 / (x - unit + 1.0 / (1.0 / start - 1.0 / largest)) + 1.0 / largest)


def saturated_experts(experts: Number) -> Number:
    """Return E-hat of the joint law: the number of experts with saturation at both ends
    (Ludziejewski et al. 2025, arXiv 2502.05172).

    E_start is 2.0732, E_max 290.4521.
    """
    return saturated(experts, 2.0732, 290.4521)


def joint_loss(experts: Number, active_params: Number, train_tokens: Number) -> Number:
    """Return the loss of the joint MoE law (Ludziejewski et al. 2025, arXiv 2502.05172).

    ``35.91 E^-0.2285 N^(-0.1889 + 0.0098 ln E) + 35.98 E^0.5529 D^(-0.1775 - 0.0259 ln E) +
    1.3637`` with E the saturated number of experts. It was fitted on top-1 Switch models; see
    `JOINT_RANGE`.

    Args:
        experts: Number of experts E, >= 1.
        active_params: Number of parameters N that one token uses, with embeddings.
        train_tokens: Number of training tokens D.
    """
    e = saturated_experts(experts)
    log_e = log(e)
    by_size = 35.91 * e**-0.2285 * active_params ** (-0.1889 + 0.0098 * log_e)
    by_data = 35.98 * e**0.5529 * train_tokens ** (-0.1775 - 0.0259 * log_e)
    return by_size + by_data + 1.3637


def fine_grained_loss(active_params: Number, train_tokens: Number, granularity: Number) -> Number:
    """Return the loss of the fine-grained law at 64 experts (Krajewski et al. 2024, arXiv
    2402.07871; coefficients at second hand).

    ``0.47 + (2.1 / G^0.58 + 18.1) / N^0.115 + 30.8 / D^0.147``. The coefficients reproduce table 2
    of the paper.

    Args:
        active_params: Number of parameters that one token uses.
        train_tokens: Number of training tokens D.
        granularity: Granularity G, the width of a dense feed-forward block over the width of an
            expert.
    """
    return (
        0.47
        + 18.1 / _params(active_params)
        + granularity_term(active_params, granularity)
        + (30.8 / train_tokens**0.147)
    )


def granularity_term(active_params: Number, granularity: Number) -> Number:
    """Return the part of `fine_grained_loss` that depends on granularity."""
    return 2.1 / granularity**0.58 / _params(active_params)


def _params(active_params: Number) -> Number:
    return (_TOTAL_PER_ACTIVE * active_params) ** 0.115
