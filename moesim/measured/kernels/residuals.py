"""Compute the intervals of kernel prices from rows that a fit left out."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from moesim.costs.calibration import generation_of
from moesim.costs.cells import ONE_SHAPE
from moesim.hardware import load_profile

#: rows of which P10 and P90 are stated; a cell of fewer is left out
FEWEST = 20
#: how rows were left out, where a cell has several shapes
BY_SHAPE = "cross-validated by shape"


class HeldOutRow(NamedTuple):
    """A measured row that a fit left out, and measured / predicted."""

    system: str
    version: str
    format: str
    ep_size: int
    shape: tuple[int, ...]
    ratio: float


def cells_of(rows: Iterable[HeldOutRow]) -> list[dict]:
    """Return the cells of a calibration file: P10 and P90 of measured / predicted.

    Shapes have biases of their own, and a few of them tell little of the next one's. Their part of
    the interval is widened from the normal P90 to that of Student's distribution, times
    sqrt(1 + 1 / n) for n shapes.

    Returns:
        Cells of at least `FEWEST` rows, see `moesim.costs.cells.Cell`.
    """
    found: dict[tuple[str, str, str, str], list[HeldOutRow]] = {}
    shapes: dict[tuple[str, str], set[tuple[int, ...]]] = {}
    for row in rows:
        ep = "epn" if row.ep_size > 1 else "ep1"
        found.setdefault((row.system, row.version, row.format, ep), []).append(row)
        shapes.setdefault((row.system, row.format), set()).add(row.shape)
    out = []
    for (system, version, fmt, ep), own in sorted(found.items()):
        if len(own) < FEWEST:
            continue
        profile = load_profile(system)
        low, high = _interval(own)
        out.append(
            {
                "device": profile.name,
                "generation": generation_of(profile),
                "version": version,
                "format": fmt,
                "ep": ep,
                "low": low,
                "high": high,
                "kind": ONE_SHAPE if len(shapes[system, fmt]) == 1 else BY_SHAPE,
                "rows": len(own),
            }
        )
    return out


def _interval(rows: Sequence[HeldOutRow]) -> tuple[float, float]:
    from scipy.stats import norm, t

    by_shape: dict[tuple[int, ...], list[float]] = {}
    for row in rows:
        by_shape.setdefault(row.shape, []).append(float(np.log(row.ratio)))
    low, high = np.percentile(np.concatenate(list(by_shape.values())), (10, 90))
    count = len(by_shape)
    if count > 1:
        between = float(np.std([np.median(logs) for logs in by_shape.values()], ddof=1))
        excess = t.ppf(0.9, count - 1) ** 2 * (1 + 1 / count) - norm.ppf(0.9) ** 2
        half = float(np.hypot((high - low) / 2, np.sqrt(excess) * between))
        low, high = (low + high) / 2 - half, (low + high) / 2 + half
    return float(np.exp(low)), float(np.exp(high))


def few_shot_spread(left_out_N: np.ndarray) -> float:
    """Return half the logarithmic width of the 80 % interval that a few rows of a device leave.

    Args:
        left_out_N: ndarray of shape (N,): log(measured / predicted) of each of the rows by a fit to
            those of other shapes. Their standard deviation is taken as 1.48 times the median of
            their absolute values, and the P90 as Student's with N - 1 degrees of freedom.
    """
    from scipy.stats import norm, t

    count = len(left_out_N)
    sigma = float(np.median(np.abs(left_out_N)) / norm.ppf(0.75))
    return float(t.ppf(0.9, count - 1) * np.sqrt(1 + 1 / count) * sigma)
