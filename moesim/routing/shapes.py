"""Shapes of load: weights of experts by the name of their distribution.

``zipf:A``: expert ranked r gets r**-A. ``power_law:A``: weights drawn from a truncated power law of
exponent A, the definition of NVIDIA's aiconfigurator data (aiconfigurator-core 0.12, column
``distribution``). ``lognormal:S``: the logarithms are normal with deviation S (per-rank loads of
DeepSeek-V3 fit it best, deepseek-ai/DeepEP pull request 393). ``dirichlet:A``: a symmetric
Dirichlet draw of concentration A (measured loads: 0.5-9). ``domains:N:A``: N such draws, one for
each domain of data.

Shape legend: E experts, N domains.
"""

import numpy as np

#: names that take one number > 0, and what it is
ONE_NUMBER = {"zipf": "ALPHA", "power_law": "ALPHA", "lognormal": "SIGMA", "dirichlet": "ALPHA"}


def truncated_power_law(alpha: float, low: float, high: float, u: np.ndarray) -> np.ndarray:
    """Inverse of the distribution function of density ~ x**-alpha on [low, high], at u in [0, 1).
    """
    if abs(alpha - 1.0) < 1e-9:
        return low * (high / low) ** u
    power = 1.0 - alpha
    return ((high**power - low**power) * u + low**power) ** (1.0 / power)


def shape_weights(
    kind: str,
    alpha: float,
    num_experts: int,
    choices: int,
    num_tokens: int,
    rng: np.random.Generator,
) -> np.ndarray:
    """Weights of one draw.

    Args:
        kind: ``uniform`` or one of `ONE_NUMBER`.
        alpha: Its number.
        num_experts: E.
        choices: All choices, T x K: where they are fewer than the experts a power law is cut
            elsewhere.
        num_tokens: T.
        rng: Source of randomness.

    Returns:
        ndarray of shape (E,), > 0.
    """
    if kind == "uniform":
        return np.ones(num_experts)
    if kind == "zipf":
        return rng.permutation(np.arange(1, num_experts + 1, dtype=np.float64)) ** -alpha
    if kind == "lognormal":
        return np.exp(alpha * rng.standard_normal(num_experts))
    if kind == "dirichlet":
        return rng.standard_gamma(alpha, num_experts) + np.finfo(np.float64).tiny
    low, high = (0.01, 2.0) if choices <= num_experts else (1.0, max(0.8 * num_tokens, 1.0))
    return truncated_power_law(alpha, low, high, rng.random(num_experts))


def drifted(weight_NE: np.ndarray, rate: float, steps: int, rng: np.random.Generator) -> np.ndarray:
    """Weights after some steps in each of which a share of the experts exchange theirs, in pairs.

    The distribution stays as skewed as it was; who is hot changes. The same steps come before
    whatever follows them.

    Args:
        weight_NE: ndarray of shape (N, E).
        rate: Share of experts that take part in a step.
        steps: How many.
        rng: Source of pairs.
    """
    at = np.arange(weight_NE.shape[1])
    pairs_per_step = min(max(round(rate * len(at) / 2), 1), len(at) // 2)
    for _ in range(steps):
        pairs = rng.permutation(len(at))[: 2 * pairs_per_step].reshape(2, -1)
        at[pairs] = at[pairs[::-1]]
    return weight_NE[:, at]


def burst(
    weight_NE: np.ndarray, count: int, factor: float, step: int, rng: np.random.Generator
) -> np.ndarray:
    """Weights with some experts hotter by a factor: others in every step.

    Args:
        weight_NE: ndarray of shape (N, E).
        count: Experts.
        factor: By how much.
        step: Which.
        rng: Source of randomness, the same for all steps.
    """
    which = np.random.default_rng([int(rng.integers(2**62)), step]).permutation(weight_NE.shape[1])[
        :count
    ]
    hot = weight_NE.copy()
    hot[:, which] *= factor
    return hot
