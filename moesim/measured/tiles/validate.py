"""Predict timed tiles and score the predictions: ``moesim validate tiles``."""

from typing import Any

import numpy as np

from moesim.costs.calibration import load_calibration
from moesim.costs.libraries import OWN_KERNELS
from moesim.errors import ConfigError
from moesim.hardware import Profile
from moesim.hardware.drivers import profile_of_driver
from moesim.measured.scores import error_scores
from moesim.measured.tiles.fit import predicted_us_R
from moesim.measured.tiles.rows import TimedTiles

#: columns of `scores` that the terminal shows
SHOWN = ["profile", "gemm", "rows", "mape", "p90", "bias", "rank", "regret", "worst"]


def predicted(table: TimedTiles) -> np.ndarray:
    """Return the predicted microseconds of each row: ndarray of shape (R,).

    A row's device is priced from its profile, and from the shipped fit, which saw rows of an H100
    alone.

    Raises:
        ConfigError: No profile describes a row's device.
    """
    devices = [row["device"] for row in table.rows]
    out = np.empty(len(devices))
    for device in sorted(set(devices)):
        profile = _profile(device)
        its = np.array([one == device for one in devices])
        part = TimedTiles.of([row for row, own in zip(table.rows, its, strict=True) if own])
        out[its] = predicted_us_R(part, profile, load_calibration(OWN_KERNELS, profile))
    return out


def _profile(device: str) -> Profile:
    profile = profile_of_driver(device)
    if profile is None:
        raise ConfigError(f"device: expected a GPU that a profile describes, got {device!r}")
    return profile


def scores(table: TimedTiles, predicted_us_R: np.ndarray) -> list[dict[str, Any]]:
    """Return, by device and kind of GEMM, the errors of rows that were timed.

    Returns:
        Rows of errors in percent (see `moesim.measured.scores.error_scores`), the mean rank
        correlation over the tiles of a load (Spearman), and the regret of choosing by prediction:
        how much slower the chosen tile was timed than the fastest, mean and worst, in percent.
        Loads with fewer than four tiles rank nothing.
    """
    from scipy.stats import spearmanr

    measured = table.measured_us_R
    found: dict[tuple[str, str], list[np.ndarray]] = {}
    for group in table.groups():
        group = group[np.isfinite(measured[group])]
        if len(group):
            row = table.rows[group[0]]
            found.setdefault((row["device"], row["gemm"]), []).append(group)
    out = []
    for (device, gemm), groups in sorted(found.items()):
        rows = np.concatenate(groups)
        many = [group for group in groups if len(group) >= 4]
        ranks = [spearmanr(predicted_us_R[g], measured[g]).statistic for g in many]
        regrets = [
            100.0 * (measured[g][predicted_us_R[g].argmin()] / measured[g].min() - 1.0)
            for g in many
        ]
        out.append(
            {
                "profile": _profile(device).name,
                "gemm": gemm,
                **error_scores(predicted_us_R[rows], measured[rows]),
                "rank": float(np.mean(ranks)) if many else None,
                "regret": float(np.mean(regrets)) if many else None,
                "worst": float(np.max(regrets)) if many else None,
            }
        )
    return out
