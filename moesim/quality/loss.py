"""The loss a candidate would train to: one law, one step from another, and measured deltas, with an interval.

``loss = joint law at E_eff = num_experts / top_k and N = active parameters
       + fine-grained law at its granularity - the same at granularity 1 + deltas``

Both steps (E_eff, and adding the second law's difference) are assumptions of ours, and every published MoE of today is
larger than the laws' range. So the estimate carries an interval that widens outside the ranges, and says
``extrapolated``. Candidates whose intervals overlap are ties.

Of some choices no trustworthy figure is known: product-key gates, experts of different widths, pruned experts. They
too are ``extrapolated``; their deltas are assumptions, wide enough for the worst figure known of anything like them.
"""

import math
from dataclasses import dataclass
from itertools import pairwise

from moesim.errors import ConfigError
from moesim.model import DensePart, MoELayer
from moesim.quality.gates import Delta, gate_deltas
from moesim.quality.laws import GRANULARITY_RANGE, JOINT_RANGE, fine_grained_loss, joint_loss

#: half width inside all ranges: about what one law misses its own data by (assumed)
_BASE_NATS = 0.005
#: more for each factor of two outside a range (assumed)
_OUTSIDE_NATS_PER_DOUBLING = 0.005
#: share of the granularity step that is uncertain (assumed: another law, one expert count)
_STEP_UNCERTAINTY = 0.25


@dataclass(frozen=True, slots=True, kw_only=True)
class LossEstimate:
    """Loss in nats per token.

    Attributes:
        loss: Central estimate.
        low: Low end of its interval.
        high: High end.
        extrapolated: Whether any input lies outside its law's range, or a choice has no measured delta.
        outside: Which, and by how much, in words; empty if none.
    """

    loss: float
    low: float
    high: float
    extrapolated: bool
    outside: tuple[str, ...]

    def row(self) -> dict[str, object]:
        """Flat columns for a CSV file, in nats."""
        return {
            "loss": self.loss,
            "loss_low": self.low,
            "loss_high": self.high,
            "loss_extrapolated": self.extrapolated,
            "loss_outside": "; ".join(self.outside),
        }


def _deltas(layer: MoELayer) -> list[Delta]:
    """Measured differences: gate, weight format, capacity."""
    deltas = gate_deltas(layer.gate)
    if len(set(layer.widths_key or ()) - {0}) > 1:
        # no figure found (HMoE, arXiv 2408.10681, claims a gain): nothing, within the largest step of a gate that is
        # measured either way
        deltas.append(Delta(0.0, -0.025, 0.025, "experts of different widths"))
    if layer.has_pruned:
        # after training, 5 % of one model's 512 experts cost 13 times the perplexity; trained without them, nothing:
        # in between, in proportion up to these 5 %
        share = min((1.0 - layer.num_left / layer.num_experts) / 0.05, 1.0)
        deltas.append(Delta(share * math.log(13.0) / 2, 0.0, share * math.log(13.0), "pruned experts"))
    if layer.precision.weights in ("float8_e4m3", "int8"):
        # 8-bit round to nearest of DeepSeek-MoE-16B +0.0015; int8 Mixtral +0.0008
        deltas.append(Delta(0.0015, 0.0008, 0.0030))
    if layer.precision.weights == "int4":
        # calibrated 4-bit weights of DeepSeek-MoE-16B +0.024 to +0.055; rounding to nearest +0.095
        deltas.append(Delta(0.040, 0.024, 0.095))
    if layer.precision.weights in ("mxfp4", "nvfp4"):
        # no figure found for block-scaled 4-bit floats: between nothing and integer rounding to nearest (assumed)
        deltas.append(Delta(0.024, 0.0, 0.095))
    if layer.capacity_factor is not None:
        # Switch Transformer, arXiv 2101.03961, table 1, relative to capacity factor 2.0: top-1, and top-2 for k > 1
        points = (
            ((1.0, 0.007), (1.25, -0.001), (2.0, 0.0))
            if layer.top_k == 1
            else ((1.0, 0.025), (1.25, 0.012), (2.0, 0.0))
        )
        nats = _interpolate(points, layer.capacity_factor)
        if layer.overflow == "reroute":
            # no figure found for choices served by an expert nobody chose: between all and nothing of what drops cost
            deltas.append(Delta(nats / 2, min(nats, 0.0) - 0.005, max(nats, 0.0) + 0.005, "re-routed tokens"))
        else:
            deltas.append(Delta(nats, nats - 0.005, nats + 0.005))
    return deltas


def _interpolate(points: tuple[tuple[float, float], ...], x: float) -> float:
    if x <= points[0][0]:
        return points[0][1]
    for (x0, y0), (x1, y1) in pairwise(points):
        if x <= x1:
            return y0 + (y1 - y0) * (x - x0) / (x1 - x0)
    return points[-1][1]


def _doublings_outside(name: str, value: float, low: float, high: float) -> tuple[float, str]:
    if low <= value <= high:
        return 0.0, ""
    edge = high if value > high else low
    return abs(math.log2(value / edge)), f"{name} {value:.4g} outside {low:g}-{high:g}"


def estimate_loss(
    layer: MoELayer, dense_part: DensePart, *, train_tokens: float | None = None, train_flops: float | None = None
) -> LossEstimate:
    """Estimate the pre-training loss of a model.

    Args:
        layer: Its MoE layer.
        dense_part: Everything else; its dense_intermediate_size is what granularity is relative to.
        train_tokens: Training tokens D.
        train_flops: Training FLOPs instead; then D = FLOPs / (6 N).

    Raises:
        ConfigError: Not exactly one of train_tokens and train_flops, or not > 0.
    """
    if (train_tokens is None) == (train_flops is None):
        raise ConfigError("loss: expected exactly one of train_tokens and train_flops")
    active = float(dense_part.active_params(layer))
    tokens = train_tokens if train_tokens is not None else (train_flops or 0.0) / (6.0 * active)
    if not tokens > 0:
        raise ConfigError(
            f"loss: expected a training budget > 0, got {train_tokens if train_tokens is not None else train_flops!r}"
        )
    e_eff = layer.num_left / layer.top_k
    granularity = dense_part.dense_intermediate_size / layer.mean_width
    step = fine_grained_loss(active, tokens, granularity) - fine_grained_loss(active, tokens, 1.0)
    deltas = _deltas(layer)
    loss = joint_loss(e_eff, active, tokens) + step + sum(d.nats for d in deltas)

    checks = [
        _doublings_outside(name, value, *JOINT_RANGE[name])
        for name, value in (
            ("E_eff", e_eff),
            ("active_params", active),
            ("train_tokens", tokens),
            ("tokens_per_param", tokens / active),
        )
    ] + [_doublings_outside("granularity", granularity, *GRANULARITY_RANGE)]
    half = _BASE_NATS + _OUTSIDE_NATS_PER_DOUBLING * sum(d for d, _ in checks) + _STEP_UNCERTAINTY * abs(step)
    outside = tuple(text for _, text in checks if text)
    outside += tuple(f"{d.unknown}: no measured figure" for d in deltas if d.unknown)
    return LossEstimate(
        loss=loss,
        low=loss - half + sum(d.low - d.nats for d in deltas),
        high=loss + half + sum(d.high - d.nats for d in deltas),
        extrapolated=bool(outside),
        outside=outside,
    )
