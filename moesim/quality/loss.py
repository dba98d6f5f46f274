"""Estimate the loss a candidate would train to: a law at its sizes plus measured deltas of its
choices, with an interval.

``loss = joint law at E_eff = num_experts / top_k and N = active parameters
       + fine-grained law at its granularity - the same at granularity 1 + deltas``

Both steps (E_eff, and adding the difference of the second law) are our assumptions, and every
published MoE of today is larger than the range of the laws. So the estimate carries an interval
(`moesim.quality.loss_law`), and says whether and why it is ``extrapolated``. Candidates whose
intervals overlap are ties. For some choices no trustworthy figure is known
(`moesim.quality.deltas`); estimates with them are also ``extrapolated``.

A user's own points move the law; see `moesim.quality.refit`.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from moesim.errors import ConfigError
from moesim.model import DensePart, MoELayer
from moesim.model.compression import Compression
from moesim.quality.compressed import compression_delta
from moesim.quality.deltas import DELTAS
from moesim.quality.gates import together
from moesim.quality.layers import layer_delta
from moesim.quality.loss_law import PUBLISHED, LossLaw


@dataclass(frozen=True, slots=True, kw_only=True)
class LossEstimate:
    """An estimated loss in nats per token.

    Attributes:
        loss: Central estimate.
        low: Low end of the interval.
        high: High end of the interval.
        extrapolated: Whether any input lies outside the range of its law, or a choice has no
            measured delta.
        outside: These inputs and choices in words, with the amount by which inputs exceed their
            ranges; empty if there are none.
        law: Name of the law: ``published``, or the points it was fitted to.
    """

    loss: float
    low: float
    high: float
    extrapolated: bool
    outside: tuple[str, ...]
    law: str = "published"

    def row(self) -> dict[str, object]:
        """Return flat columns for a CSV file, in nats."""
        return {
            "loss": self.loss,
            "loss_low": self.low,
            "loss_high": self.high,
            "loss_extrapolated": self.extrapolated,
            "loss_outside": "; ".join(self.outside),
            "loss_law": self.law,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class LossBand:
    """The losses of many candidates as ndarrays of shape (N,); see `LossEstimate`."""

    loss_N: np.ndarray
    low_N: np.ndarray
    high_N: np.ndarray
    extrapolated_N: np.ndarray


def loss_mid(
    e_eff_N: np.ndarray,
    active_params_N: np.ndarray,
    train_tokens_N: np.ndarray,
    granularity_N: np.ndarray,
    law: LossLaw = PUBLISHED,
) -> np.ndarray:
    """Return central estimates without deltas for float arrays that broadcast.

    Args:
        e_eff_N: Number of routed experts over top_k, >= 1.
        active_params_N: Number of parameters that one token uses, with embeddings.
        train_tokens_N: Number of training tokens.
        granularity_N: Width of a dense feed-forward block over the width of an expert.
        law: The published law, or the law of a user.
    """
    return law.mid(*_floats(e_eff_N, active_params_N, train_tokens_N, granularity_N))


def estimate_losses(
    e_eff_N: np.ndarray,
    active_params_N: np.ndarray,
    train_tokens_N: np.ndarray,
    granularity_N: np.ndarray,
    *,
    law: LossLaw = PUBLISHED,
) -> LossBand:
    """Return estimates without deltas; add those of `moesim.quality.layer_delta` once per distinct
    choice.

    Args:
        e_eff_N: Number of routed experts over top_k, >= 1.
        active_params_N: Number of parameters that one token uses, with embeddings.
        train_tokens_N: Number of training tokens.
        granularity_N: Width of a dense feed-forward block over the width of an expert.
        law: The published law, or the law of a user.
    """
    given = _floats(e_eff_N, active_params_N, train_tokens_N, granularity_N)
    low, mid, high = law.interval(*given)
    return LossBand(loss_N=mid, low_N=low, high_N=high, extrapolated_N=law.is_outside(*given))


def _floats(*given: np.ndarray) -> tuple[np.ndarray, ...]:
    return np.broadcast_arrays(*(np.asarray(x, dtype=float) for x in given))


@lru_cache(maxsize=1 << 16)
def _of_sizes(
    law: LossLaw, e_eff: float, active_params: float, train_tokens: float, granularity: float
) -> tuple[tuple[float, float, float], tuple[str, ...]]:
    """Return the interval and the inputs outside the ranges. They are cached, since a search meets
    the same sizes with many gates, placements and formats.
    """
    sizes = e_eff, active_params, train_tokens, granularity
    return law.interval(*sizes), law.outside(*sizes)


def estimate_loss(
    layer: MoELayer,
    dense_part: DensePart,
    *,
    train_tokens: float | None = None,
    train_flops: float | None = None,
    law: LossLaw = PUBLISHED,
    compression: Compression | None = None,
) -> LossEstimate:
    """Estimate the pre-training loss of a model.

    Args:
        layer: An MoE layer of the model.
        dense_part: The rest of the model; granularity is relative to its dense_intermediate_size.
        train_tokens: Number of training tokens D.
        train_flops: Training FLOPs, instead of train_tokens; then D = FLOPs / (6 N).
        law: The published law, or a law fitted to a user's points (`moesim.quality.load_law`).
        compression: How experts are compressed after training; None for not at all.

    Raises:
        ConfigError: Not exactly one of train_tokens and train_flops is given, or it is not > 0.
    """
    if (train_tokens is None) == (train_flops is None):
        raise ConfigError("loss: expected exactly one of train_tokens and train_flops")
    active = float(dense_part.active_params(layer))
    tokens = float(
        train_tokens if train_tokens is not None else (train_flops or 0.0) / (6.0 * active)
    )
    if not tokens > 0:
        raise ConfigError(
            "loss: expected a training budget > 0, got "
            f"{train_tokens if train_tokens is not None else train_flops!r}"
        )
    sizes = (
        layer.num_left / layer.top_k,
        active,
        tokens,
        dense_part.dense_intermediate_size / layer.mean_width,
    )
    (low, mid, high), outside = _of_sizes(law, *sizes)
    delta = layer_delta(layer)
    if compression is not None and not compression.is_nothing:
        delta = together([delta, compression_delta(layer, compression)])
    if layer.hidden_size != dense_part.hidden_size:
        delta = together([delta, DELTAS["latent"]])
    outside += tuple(
        f"{unknown}: no measured figure" for unknown in delta.unknown.split("; ") if unknown
    )
    return LossEstimate(
        loss=mid + delta.nats,
        low=low + delta.low,
        high=high + delta.high,
        extrapolated=bool(outside),
        outside=outside,
        law=law.name,
    )
