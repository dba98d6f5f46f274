"""Measure what a change of hardware or design is worth: ratios of simulated throughput, and
differences of estimated loss.

A ratio is more certain than the two times it is made of: an error of the calibration of a phase
affects the times before and after the change alike. The interval of a gain therefore lets each
phase be off by one factor, anywhere in the phase's interval, in both times. Where the interval
after the change is wider (hardware that nobody measured), the time after the change may be off by
that much more. Only where the change brings other kernels (another number format, another exchange)
are the two factors independent. The extremes of such a ratio are at the ends of the factors.

In the same way, the interval of a difference in loss says how far the laws disagree about that
step, not how far each loss may be off.
"""

import math
from dataclasses import dataclass, replace
from itertools import product

import numpy as np

from moesim.design.candidate import Candidate, Workload
from moesim.errors import ConfigError
from moesim.hardware import Cluster
from moesim.model import DensePart, MoELayer
from moesim.quality import estimate_loss
from moesim.quality.gates import together
from moesim.quality.laws import GRANULARITY_RANGE, granularity_term, joint_loss
from moesim.quality.layers import layer_deltas
from moesim.quality.loss_law import STEP_UNCERTAINTY
from moesim.quality.other_laws import expert_opinions, leverage_loss
from moesim.simulation.result import Result
from moesim.simulation.run import simulate

#: shares of the fine-grained law's step that the step may be
_STEP_SHARES = (1.0 - STEP_UNCERTAINTY, 1.0, 1.0 + STEP_UNCERTAINTY)


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """A figure with its interval."""

    mid: float
    low: float
    high: float

    def row(self, name: str) -> dict[str, float]:
        """Return the columns ``name``, ``name_low`` and ``name_high``."""
        return {name: self.mid, f"{name}_low": self.low, f"{name}_high": self.high}


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """A simulated design.

    Attributes:
        result: The result of the simulation.
        cluster: The hardware it ran on.
    """

    result: Result
    cluster: Cluster

    @property
    def plan_text(self) -> str:
        """Tokens, placement, schedule and throughput of the design in one line."""
        plan, tokens = self.result.candidate, self.result.workload.num_tokens_per_device
        return (
            f"{tokens} tokens per device, {plan.placement}+{plan.num_replicas} {plan.schedule}: "
            f"{self.result.tokens_per_s_per_device:,.0f} tokens/s/device"
        )


def outcome(
    candidate: Candidate, cluster: Cluster, workload: Workload, *, engine: str = "flow"
) -> Outcome:
    """Simulate a design.

    Raises:
        MoesimError: The design cannot be simulated, or its model does not fit in memory.
    """
    result = simulate(candidate, cluster, workload, engine=engine)
    return Outcome(result=result, cluster=cluster)


def gain(before: Outcome, after: Outcome) -> Span:
    """Return the throughput of all devices after a change over that before it."""
    phases = list(before.result.phase_time_s)
    was_P, becomes_P = (
        np.array([o.result.phase_time_s[p] for p in phases]) for o in (before, after)
    )
    own_P2, other_P2 = (
        np.array([(g.low, g.high) for g in map(o.result.grade_of, phases)]) for o in (before, after)
    )
    same_P = np.array([_same_kernels(p, before, after) for p in phases])
    # a phase with the same kernels shares its factor, apart from what its interval is wider than
    # before; a phase with other kernels has a free factor. Which end of a shared factor is the
    # worst depends on all others, so all corners are tried
    corners_CP = np.array(list(product((0, 1), repeat=len(phases))))
    factor_CP = np.where(corners_CP, own_P2[:, 1], own_P2[:, 0])
    wider_P2 = np.where(same_P[:, None], other_P2 / own_P2, other_P2)
    wider_P2[same_P] = np.stack(
        [np.minimum(wider_P2[same_P, 0], 1.0), np.maximum(wider_P2[same_P, 1], 1.0)], axis=1
    )
    base_CP = np.where(same_P, factor_CP, 1.0)
    before_C = (factor_CP * was_P).sum(axis=1)
    slowest, fastest = ((base_CP * wider_P2[:, end] * becomes_P).sum(axis=1) for end in (1, 0))
    tokens = _tokens(after) / _tokens(before)
    return Span(
        mid=after.result.tokens_per_s / before.result.tokens_per_s,
        low=tokens * float((before_C / slowest).min()),
        high=tokens * float((before_C / fastest).max()),
    )


def _tokens(found: Outcome) -> float:
    """Return the tokens of all devices."""
    return found.result.tokens_per_s * found.result.layer_time_s


def _same_kernels(phase: str, before: Outcome, after: Outcome) -> bool:
    """Return whether a phase runs the same kernels in two designs, so that one calibration error
    affects both.
    """
    one, other = before.result.candidate, after.result.candidate
    if phase in ("dispatch", "combine"):
        across = [bool(o.cluster.nic_bytes_per_s) for o in (before, after)]
        return one.schedule.exchange == other.schedule.exchange and across[0] == across[1]
    if phase == "gate":
        return one.layer.gate == other.layer.gate
    same = one.layer.precision == other.layer.precision
    return same and (phase != "experts" or before.result.kernels == after.result.kernels)


def elasticity(below: Outcome, above: Outcome, ratio: float) -> Span:
    """Return d ln(throughput) / d ln(number), from the throughput at two numbers.

    Args:
        below: The outcome at the smaller number.
        above: The outcome at the larger number.
        ratio: Larger number over smaller number, > 1.

    Raises:
        ConfigError: The ratio is 1 or less.
    """
    if not ratio > 1:
        raise ConfigError(f"elasticity: expected a ratio of numbers > 1, got {ratio!r}")
    found = gain(below, above)
    mid, low, high = (
        math.log(value) / math.log(ratio) for value in (found.mid, found.low, found.high)
    )
    return Span(mid=mid, low=low, high=high)


def loss_step(before: MoELayer, after: MoELayer, dense: DensePart, train_tokens: float) -> Span:
    """Return the loss after a change of the layer minus that before, in nats, and how far the laws
    disagree about it.

    The step in experts and active parameters may be that of the joint law or of any of
    `moesim.quality.other_laws`. The step in granularity may be the fine-grained law's, within a
    quarter of itself, or the leverage law's. Measured differences of gates and formats lie within
    their intervals.

    Args:
        before: The unchanged layer.
        after: The changed layer.
        dense: The rest of the model.
        train_tokens: Training tokens of both models.
    """
    mid = (
        estimate_loss(after, dense, train_tokens=train_tokens).loss
        - estimate_loss(before, dense, train_tokens=train_tokens).loss
    )
    one, two = (
        (
            layer.num_left / layer.top_k,
            float(dense.active_params(layer)),
            dense.dense_intermediate_size / layer.mean_width,
        )
        for layer in (before, after)
    )

    def opinions(e_eff: float, active: float) -> dict[str, float]:
        return {"joint": joint_loss(e_eff, active, train_tokens)} | expert_opinions(
            e_eff, active, train_tokens
        )

    was, becomes = opinions(*one[:2]), opinions(*two[:2])
    steps = [becomes[name] - was[name] for name in was]
    fine = (
        granularity_term(two[1], two[2])
        - granularity_term(two[1], 1.0)
        - granularity_term(one[1], one[2])
        + granularity_term(one[1], 1.0)
    )
    other = sum(
        sign * (leverage_loss(e, n, train_tokens, g) - leverage_loss(e, n, train_tokens, 1.0))
        for sign, (e, n, g) in ((-1, one), (1, two))
    )
    grains = [share * fine for share in _STEP_SHARES] + ([other] if fine else [])
    old, new = layer_deltas(before), layer_deltas(after)
    # only differences of gates and formats that one of the layers alone has count
    removed, added = (
        together([d for d in some if d not in others]) for some, others in ((old, new), (new, old))
    )
    low = min(steps) + min(grains) + added.low - removed.high
    high = max(steps) + max(grains) + added.high - removed.low
    return Span(mid=mid, low=min(low, mid), high=max(high, mid))


def narrowed(
    layer: MoELayer, larger: MoELayer, dense: DensePart, train_tokens: float, *, step: int = 128
) -> dict[str, MoELayer]:
    """Narrow the experts of a larger layer as far as its loss is no more than that of the first.

    Args:
        layer: The layer whose loss to keep; its experts have one width.
        larger: A layer of the same width that has more experts, for example.
        dense: The rest of the model.
        train_tokens: Training tokens of both models.
        step: Number of which the widths are multiples.

    Returns:
        The narrowed layer for each estimate of the difference in loss: ``mid`` is its central
        estimate, ``low`` and ``high`` are its ends. An estimate by which not even the full width
        keeps the loss has no entry. No layer is finer than the range of the fine-grained law, since
        nobody measured narrower experts.
    """
    finest = max(GRANULARITY_RANGE[1], dense.dense_intermediate_size / layer.mean_width)
    found: dict[str, MoELayer] = {}
    for width in range(larger.widest // step * step, 0, -step):
        narrow = replace(larger, expert_intermediate_size=width)
        change = loss_step(layer, narrow, dense, train_tokens)
        ends = {"low": change.low, "mid": change.mid, "high": change.high}
        if min(ends.values()) > 0 or dense.dense_intermediate_size / width > finest:
            break
        found |= {end: narrow for end, nats in ends.items() if nats <= 0}
    return found
