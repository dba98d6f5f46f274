"""The law behind an estimate: the joint law, a step of granularity, a correction fitted to a user's
points, and an interval.

``mid = (joint law + fine-grained law's step from granularity 1) x exp(offset + slopes . ln(x /
centre))``

The interval is the error of the law, plus a fixed amount for each doubling outside its range.
Beyond the range of experts it reaches as far as the step of any other law from the edge of that
range (`moesim.quality.other_laws`), since no law covers 10^4 to 10^6 experts. The step of
granularity is uncertain by a quarter of itself, or as far as the step of the leverage law goes.

Floats and arrays take the same path: the code that screens 10^5 candidates also estimates a single
one.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from moesim.quality.laws import (
    GRANULARITY_RANGE,
    JOINT_RANGE,
    Number,
    granularity_term,
    joint_loss,
    log,
)
from moesim.quality.other_laws import expert_opinions, leverage_loss

#: the variables that a correction may depend on
VARIABLES = ("E_eff", "active_params", "train_tokens", "granularity")
#: half width of the interval inside all ranges: about the error of the joint law on its own data
#: (assumed)
BASE_NATS = 0.005
#: added to the half width for each factor of two outside a range (assumed)
_OUTSIDE_NATS_PER_DOUBLING = 0.005
#: share of the granularity step that is uncertain (assumed: it comes from a different law, fitted
#: at one number of experts)
STEP_UNCERTAINTY = 0.25
_PUBLISHED = (
    *((name, *JOINT_RANGE[name]) for name in VARIABLES[:3]),
    ("granularity", *GRANULARITY_RANGE),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class LossLaw:
    """The published laws, with or without a correction.

    Attributes:
        name: ``published``, or the file of points the correction was fitted to.
        offset: Value added to ln L at the center.
        slopes: Value added to d ln L / d ln x, for each of `VARIABLES`.
        centre: The point at which the offset holds, for each of `VARIABLES`.
        base_nats: Half width of the interval inside all ranges.
        ranges: Name, low and high of each of `VARIABLES`; tokens per parameter are always checked
            against the joint law.
        num_points: Number of points the law was fitted to.
        digest: Hash of the file of these points.
    """

    name: str = "published"
    offset: float = 0.0
    slopes: tuple[float, ...] = (0.0, 0.0, 0.0, 0.0)
    centre: tuple[float, ...] = (1.0, 1.0, 1.0, 1.0)
    base_nats: float = BASE_NATS
    ranges: tuple[tuple[str, float, float], ...] = _PUBLISHED
    num_points: int = 0
    digest: str = ""

    def mid(
        self, e_eff: Number, active_params: Number, train_tokens: Number, granularity: Number
    ) -> Number:
        """Return the central estimate in nats.

        Args:
            e_eff: Number of routed experts over top_k, >= 1.
            active_params: Number of parameters that one token uses, with embeddings.
            train_tokens: Number of training tokens.
            granularity: Width of a dense feed-forward block over the width of an expert.
        """
        base = joint_loss(e_eff, active_params, train_tokens) + _step(active_params, granularity)
        if not self.offset and not any(self.slopes):
            return base
        given = (e_eff, active_params, train_tokens, granularity)
        shift = sum(
            slope * log(x / at)
            for slope, x, at in zip(self.slopes, given, self.centre, strict=True)
        )
        return base * math.e ** (self.offset + shift)

    def interval(
        self, e_eff: Number, active_params: Number, train_tokens: Number, granularity: Number
    ) -> tuple[Number, Number, Number]:
        """Return the low end, the central estimate and the high end of the interval around
        `mid`.
        """
        mid = self.mid(e_eff, active_params, train_tokens, granularity)
        doublings = sum(
            abs(log(value / _clip(value, low, high)))
            for _, value, low, high in self._checks(e_eff, active_params, train_tokens, granularity)
        ) / math.log(2.0)
        half = self.base_nats + _OUTSIDE_NATS_PER_DOUBLING * doublings
        below, above = self._disagreement(e_eff, active_params, train_tokens)
        # the granularity step of the published laws starts at 1, that of a user's law at the center
        # of the points
        at = 0.0 * granularity + self.centre[3]
        step = granularity_term(active_params, granularity) - granularity_term(active_params, at)
        other = leverage_loss(e_eff, active_params, train_tokens, granularity) - leverage_loss(
            e_eff, active_params, train_tokens, at
        )
        share = STEP_UNCERTAINTY * abs(step)
        return (
            mid - half - below - _most(share, step - other),
            mid,
            mid + half + above + _most(share, other - step),
        )

    def _disagreement(
        self, e_eff: Number, active_params: Number, train_tokens: Number
    ) -> tuple[Any, Any]:
        """Return how much lower and higher than our step the steps of the other laws go, from the
        edge of the range of experts.
        """
        edge = _clip(e_eff, *self.ranges[0][1:])
        if isinstance(e_eff, float) and edge == e_eff:
            return 0.0, 0.0
        ours = joint_loss(e_eff, active_params, train_tokens) - joint_loss(
            edge, active_params, train_tokens
        )
        there = expert_opinions(e_eff, active_params, train_tokens)
        here = expert_opinions(edge, active_params, train_tokens)
        below = above = 0.0 * e_eff
        for name, loss in there.items():
            further = loss - here[name] - ours
            below, above = _most(below, -further), _most(above, further)
        return below, above

    def _checks(
        self, e_eff: Number, active_params: Number, train_tokens: Number, granularity: Number
    ) -> list[tuple[str, Any, float, float]]:
        given = (e_eff, active_params, train_tokens, granularity, train_tokens / active_params)
        ranges = (*self.ranges, ("tokens_per_param", *JOINT_RANGE["tokens_per_param"]))
        return [
            (name, value, low, high) for (name, low, high), value in zip(ranges, given, strict=True)
        ]

    def outside(
        self, e_eff: float, active_params: float, train_tokens: float, granularity: float
    ) -> tuple[str, ...]:
        """Return the inputs that lie outside the ranges of the law, in words."""
        return tuple(
            f"{name} {value:.4g} outside {low:g}-{high:g}"
            for name, value, low, high in self._checks(
                e_eff, active_params, train_tokens, granularity
            )
            if not low <= value <= high
        )

    def is_outside(
        self,
        e_eff: np.ndarray,
        active_params: np.ndarray,
        train_tokens: np.ndarray,
        granularity: np.ndarray,
    ) -> np.ndarray:
        """Return whether any input lies outside the ranges, as bool arrays of the shape of the
        inputs.
        """
        checks = self._checks(e_eff, active_params, train_tokens, granularity)
        return np.logical_or.reduce(
            [(value < low) | (value > high) for _, value, low, high in checks]
        )


PUBLISHED = LossLaw()


def _step(active_params: Number, granularity: Number) -> Number:
    """Return the difference of the fine-grained law between granularity 1 and the given one."""
    return granularity_term(active_params, granularity) - granularity_term(
        active_params, 0.0 * granularity + 1.0
    )


def _clip(x: Any, low: float, high: float) -> Any:
    return np.clip(x, low, high) if isinstance(x, np.ndarray) else min(max(x, low), high)


def _most(one: Any, other: Any) -> Any:
    return np.maximum(one, other) if isinstance(other, np.ndarray) else max(one, other)
