"""Compute the intervals of kernel prices from rows that a fit left out."""

from collections.abc import Iterable, Mapping

import numpy as np

from moesim.costs.calibration import generation_of
from moesim.costs.crossings import ONE_SHAPE
from moesim.hardware import load_profile

#: rows of which P10 and P90 are stated; a cell of fewer is left out
FEWEST = 20
#: how rows were left out, where a cell has several shapes
BY_SHAPE = "cross-validated by shape"


def cells_of(
    rows: Iterable[tuple[str, str, str, int, float]], one_shape: Mapping[tuple[str, str], bool]
) -> list[dict]:
    """Return the cells of a calibration file: P10 and P90 of measured / predicted.

    Args:
        rows: System, version, format, EP size, and measured / predicted of each row, on rows left
            out of the fit.
        one_shape: (system, format) -> whether its rows are of one shape only.

    Returns:
        Cells of at least `FEWEST` rows, see `moesim.costs.crossings.Cell`.
    """
    found: dict[tuple[str, str, str, str], list[float]] = {}
    for system, version, fmt, ep_size, ratio in rows:
        key = (system, version, fmt, "epn" if ep_size > 1 else "ep1")
        found.setdefault(key, []).append(ratio)
    out = []
    for (system, version, fmt, ep), ratios in sorted(found.items()):
        if len(ratios) < FEWEST:
            continue
        profile = load_profile(system)
        low, high = np.percentile(ratios, (10, 90))
        out.append(
            {
                "device": profile.name,
                "generation": generation_of(profile),
                "version": version,
                "format": fmt,
                "ep": ep,
                "low": float(low),
                "high": float(high),
                "kind": ONE_SHAPE if one_shape[system, fmt] else BY_SHAPE,
                "rows": len(ratios),
            }
        )
    return out


def few_shot_spread(left_out_N: np.ndarray) -> float:
    """Return half the logarithmic width of the 80 % interval that a few rows of a device leave.

    Args:
        left_out_N: ndarray of shape (N,): log(measured / predicted) of each of the rows by a fit to
            the others. Their standard deviation is taken as 1.48 times the median of their
            absolute values, and the P90 as Student's with N - 1 degrees of freedom.
    """
    from scipy.stats import norm, t

    count = len(left_out_N)
    sigma = float(np.median(np.abs(left_out_N)) / norm.ppf(0.75))
    return float(t.ppf(0.9, count - 1) * np.sqrt(1 + 1 / count) * sigma)
