"""Refit the published laws to a user's measurements, only as far as the data supports.

``ln L = ln L_published + offset + sum over E_eff, N, D, G of slope x ln(x / centre)``: one offset
(data and tokenizer differ) and up to four slopes, found by least squares with a ridge that pulls
each slope to the published one (0). The ridge is a prior of 0.01 for a slope, about two thirds of
the change of ln L with ln E_eff in the joint law at 1B parameters, against noise of 0.2 % of a loss
(both assumed). Slopes are kept only if they predict left-out points better than the offset alone
does.

The fitted law holds in the range of the points; its interval covers about 90 % of the left-out
points.
"""

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from moesim.errors import ConfigError
from moesim.quality.law_file import read_law
from moesim.quality.loss_law import BASE_NATS, PUBLISHED, VARIABLES, LossLaw
from moesim.quality.points import Points, read_points

#: standard deviations of a slope, d ln L / d ln x, and of ln L (assumed)
SLOPE_PRIOR, LOG_NOISE = 0.01, 0.002
#: 90 % of a normal distribution lie within this many standard deviations
_NINETY = 1.645


@dataclass(frozen=True, slots=True, kw_only=True)
class Refit:
    """A law fitted to points, and the quality of the fit.

    Attributes:
        law: The fitted law.
        rows: One row per point with its sizes, its loss and three predictions: as published,
            fitted, and fitted without that point.
        published_rms: Root mean square error of the published law, in nats.
        offset_rms: Root mean square error of an offset alone, with each point predicted from the
            others.
        left_out_rms: Root mean square error of the chosen law, with each point predicted from the
            others.
        residual_rms: Root mean square error of the law on the points it was fitted to.
    """

    law: LossLaw
    rows: list[dict[str, object]]
    published_rms: float
    offset_rms: float
    left_out_rms: float
    residual_rms: float


def refit(points: Points) -> Refit:
    """Fit an offset and slopes; see the module docstring.

    Args:
        points: The measured points, at least three.
    """
    published_P = PUBLISHED.mid(*points.sizes_PV.T)
    log_ratio_P = np.log(points.loss_P / published_P)
    log_PV = np.log(points.sizes_PV)
    candidates = [
        (with_slopes, _left_out(log_PV, log_ratio_P, points.weight_P, with_slopes))
        for with_slopes in (False, True)
    ]
    errors = [
        _rms(published_P * np.exp(left_P) - points.loss_P, points.weight_P)
        for _, left_P in candidates
    ]
    best = int(errors[1] < errors[0])
    with_slopes, left_P = candidates[best]
    offset, slopes, centre = _fit(log_PV, log_ratio_P, points.weight_P, with_slopes)
    ranges = tuple(
        (name, float(column.min()), float(column.max()))
        for name, column in zip(VARIABLES, points.sizes_PV.T, strict=True)
    )
    law = LossLaw(
        name=points.name,
        offset=offset,
        slopes=tuple(slopes.tolist()),
        centre=tuple(np.exp(centre).tolist()),
        base_nats=max(BASE_NATS, _NINETY * errors[best]),
        ranges=ranges,
        num_points=len(points.loss_P),
        digest=points.digest,
    )
    fitted_P, left_loss_P = law.mid(*points.sizes_PV.T), published_P * np.exp(left_P)
    rows: list[dict[str, object]] = [
        {
            "line": line,
            **dict(zip(VARIABLES, sizes, strict=True)),
            "weight": weight,
            "loss": loss,
            "published": published,
            "fitted": fitted,
            "residual": loss - fitted,
            "left_out": left,
            "left_out_error": left - loss,
        }
        for line, sizes, weight, loss, published, fitted, left in zip(
            points.line_P,
            points.sizes_PV.tolist(),
            points.weight_P.tolist(),
            points.loss_P.tolist(),
            published_P.tolist(),
            fitted_P.tolist(),
            left_loss_P.tolist(),
            strict=True,
        )
    ]
    return Refit(
        law=law,
        rows=rows,
        published_rms=_rms(published_P - points.loss_P, points.weight_P),
        offset_rms=errors[0],
        left_out_rms=errors[best],
        residual_rms=_rms(fitted_P - points.loss_P, points.weight_P),
    )


def load_law(path: str | Path) -> LossLaw:
    """Load a law from a file: a law is fitted to the points of a ``.csv`` file; a ``.toml`` file
    holds a law written by `moesim.quality.save_law`.

    Raises:
        ConfigError: The file has a different suffix, or breaks a rule.
    """
    path = Path(path)
    if path.suffix.lower() == ".csv":
        return refit(read_points(path)).law
    if path.suffix.lower() == ".toml":
        return read_law(path)
    raise ConfigError(
        f"{path}: expected measured points as .csv, or a fitted law as .toml, got "
        f"{path.suffix or 'no ending'!r}"
    )


def _fit(
    log_PV: np.ndarray, log_ratio_P: np.ndarray, weight_P: np.ndarray, with_slopes: bool
) -> tuple[float, np.ndarray, np.ndarray]:
    """Return the offset, the slopes, and the center of the logarithms, at which the offset
    holds.
    """
    from scipy.optimize import lsq_linear

    centre = np.average(log_PV, axis=0, weights=weight_P)
    offset = float(np.average(log_ratio_P, weights=weight_P))
    if not with_slopes:
        return offset, np.zeros(len(VARIABLES)), centre
    # columns are centered, so that the offset is the mean for any slopes
    scale_P1 = np.sqrt(weight_P)[:, None] / LOG_NOISE
    rows = np.vstack([(log_PV - centre) * scale_P1, np.eye(len(VARIABLES)) / SLOPE_PRIOR])
    target = np.concatenate([(log_ratio_P - offset) * scale_P1[:, 0], np.zeros(len(VARIABLES))])
    return offset, lsq_linear(rows, target).x, centre


def _left_out(
    log_PV: np.ndarray, log_ratio_P: np.ndarray, weight_P: np.ndarray, with_slopes: bool
) -> np.ndarray:
    """Return ln(loss / published loss) at each point, predicted from the other points."""
    found = np.empty(len(log_ratio_P))
    for p in range(len(found)):
        others = np.arange(len(found)) != p
        offset, slopes, centre = _fit(
            log_PV[others], log_ratio_P[others], weight_P[others], with_slopes
        )
        found[p] = offset + (log_PV[p] - centre) @ slopes
    return found


def _rms(error_P: np.ndarray, weight_P: np.ndarray) -> float:
    return math.sqrt(float(np.average(error_P**2, weights=weight_P)))
