"""Distributions of load over experts: how many of the T x k choices each expert gets.

Shape legend: E experts, T tokens, k choices per token.
"""

import math
from dataclasses import dataclass

import numpy as np

from moesim.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class RoutingSpec:
    """A named distribution of load.

    Attributes:
        kind: ``uniform``: every expert alike. ``zipf``: expert ranked r gets r**-alpha. ``power_law``: expert weights
            drawn from a truncated power law of exponent alpha, the definition of NVIDIA's aiconfigurator data
            (aiconfigurator-core 0.12, column ``distribution``).
        alpha: Exponent; 0 for uniform.
    """

    kind: str
    alpha: float

    @classmethod
    def parse(cls, text: str) -> "RoutingSpec":
        """Read ``"uniform"``, ``"zipf:0.8"`` or ``"power_law:1.2"``.

        Raises:
            ConfigError: Not of that form.
        """
        kind, _, number = text.partition(":")
        try:
            alpha = float(number) if number else 0.0
        except ValueError:
            alpha = -1.0
        if (kind == "uniform" and not number) or (kind in ("zipf", "power_law") and 0 < alpha < math.inf):
            return cls(kind=kind, alpha=alpha)
        raise ConfigError(
            f"routing: expected 'uniform', 'zipf:ALPHA' or 'power_law:ALPHA' with ALPHA > 0, got {text!r}"
        )

    def __str__(self) -> str:
        return self.kind if self.kind == "uniform" else f"{self.kind}:{self.alpha:g}"

    def loads(self, num_experts: int, top_k: int, num_tokens: int, rng: np.random.Generator,
              left_E: np.ndarray | None = None) -> np.ndarray:
        """Draw the load of every expert.

        Pruned experts leave their share to the others, in proportion to these.

        Args:
            num_experts: E.
            top_k: k.
            num_tokens: T.
            rng: Source of randomness (which experts are hot; for power_law also how hot).
            left_E: ndarray of shape (E,), bool: experts that are not pruned, at least top_k; None for all.

        Returns:
            ndarray of shape (E,), int64: sums to T * k, none above T.
        """
        if self.kind == "uniform":
            weight = np.ones(num_experts)
        elif self.kind == "zipf":
            ranks = rng.permutation(np.arange(1, num_experts + 1, dtype=np.float64))
            weight = ranks**-self.alpha
        else:
            low, high = (0.01, 2.0) if num_tokens * top_k <= num_experts else (1.0, max(0.8 * num_tokens, 1.0))
            weight = _truncated_power_law(self.alpha, low, high, rng.random(num_experts))
        left = np.ones(num_experts, dtype=bool) if left_E is None else left_E
        weight = weight[left]
        if self.kind == "zipf":
            weight = _capped(weight, num_tokens * top_k, num_tokens)
        loads = np.zeros(num_experts, dtype=np.int64)
        loads[left] = apportion(weight, num_tokens * top_k, num_tokens)
        return loads


def _truncated_power_law(alpha: float, low: float, high: float, u: np.ndarray) -> np.ndarray:
    """Inverse of the distribution function of density ~ x**-alpha on [low, high], at u in [0, 1)."""
    if abs(alpha - 1.0) < 1e-9:
        return low * (high / low) ** u
    power = 1.0 - alpha
    return ((high**power - low**power) * u + low**power) ** (1.0 / power)


def _capped(weight_E: np.ndarray, total: int, cap: int) -> np.ndarray:
    """Shares of ``total`` in proportion to weights, none above ``cap``; the others take what the capped cannot."""
    share = np.zeros(len(weight_E))
    free = np.ones(len(weight_E), dtype=bool)
    while True:
        share[free] = weight_E[free] / weight_E[free].sum() * (total - cap * (~free).sum())
        over = free & (share > cap)
        if not over.any():
            return share
        share[over] = cap
        free &= ~over


def apportion(weight_E: np.ndarray, total: int, cap: int) -> np.ndarray:
    """Integer counts in proportion to weights, summing to ``total``, none above ``cap``.

    Rounds, clips at the cap, then hands what is left round, one at a time, the least loaded first; what is too much is
    taken one at a time from the most loaded. (That the least loaded come first is read off aiconfigurator's measured
    rows: at few tokens per expert, time tells how many experts were active.)

    Args:
        weight_E: ndarray of shape (E,), >= 0, not all 0.
        total: Sum of the counts; at most E * cap.
        cap: Largest count.

    Returns:
        ndarray of shape (E,), int64.

    Raises:
        ConfigError: More to give than E * cap.
    """
    if total > cap * len(weight_E):
        raise ConfigError(f"cannot give {total} choices to {len(weight_E)} experts of at most {cap} each")
    counts = np.minimum(np.rint(weight_E / weight_E.sum() * total), cap).astype(np.int64)
    while left := total - int(counts.sum()):
        give = left > 0
        # by load, ties by weight: the heavier of two equally loaded experts gets first and gives last
        order = np.lexsort((-weight_E, counts)) if give else np.lexsort((weight_E, -counts))
        able = order[counts[order] < cap] if give else order[counts[order] > 0]
        counts[able[: abs(left)]] += 1 if give else -1
    return counts
