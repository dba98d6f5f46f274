"""Shapes of load: draw the weights of experts from a named distribution.

``zipf:A`` gives the expert of rank r the weight r**-A. ``power_law:A`` draws weights from a
truncated power law of exponent A, the definition in NVIDIA's aiconfigurator data
(aiconfigurator-core 0.12, column ``distribution``). ``lognormal:S`` draws normal logarithms with
standard deviation S (it fits the per-rank loads of DeepSeek-V3 best, deepseek-ai/DeepEP pull
request 393). ``dirichlet:A`` is a symmetric Dirichlet draw of concentration A (measured loads:
0.5-9). ``domains:N:A`` is N such draws, one per data domain.

Shape legend: E experts, N domains.
"""

import numpy as np

#: names that take one number > 0 -> the meaning of that number
ONE_NUMBER = {"zipf": "ALPHA", "power_law": "ALPHA", "lognormal": "SIGMA", "dirichlet": "ALPHA"}


def truncated_power_law(alpha: float, low: float, high: float, u: np.ndarray) -> np.ndarray:
    """Return the inverse of the distribution function with density ~ x**-alpha on [low, high], at u
    in [0, 1).
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
    """Return the weights of one draw.

    Args:
        kind: The shape, ``uniform`` or a name in `ONE_NUMBER`.
        alpha: The number of the shape.
        num_experts: Number of experts E.
        choices: Number of all choices, T x K; if there are fewer choices than experts, a power law
            has other cuts.
        num_tokens: Number of tokens T.
        rng: Source of randomness.

    Returns:
        ndarray of shape (E,): weights > 0.
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
    """Return the weights after some steps, in each of which pairs from a share of the experts
    exchange their weights.

    The distribution stays equally skewed, but different experts become hot. A longer run begins
    with the same steps.

    Args:
        weight_NE: ndarray of shape (N, E): weights by domain.
        rate: Share of the experts that take part in a step.
        steps: Number of steps.
        rng: Source of the random pairs.
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
    """Return weights in which some experts are hotter by a factor, different ones in every step.

    Args:
        weight_NE: ndarray of shape (N, E): weights by domain.
        count: Number of hotter experts.
        factor: Factor by which they are hotter.
        step: Index of the step.
        rng: Source of randomness, the same for all steps.
    """
    which = np.random.default_rng([int(rng.integers(2**62)), step]).permutation(weight_NE.shape[1])[
        :count
    ]
    hot = weight_NE.copy()
    hot[:, which] *= factor
    return hot
