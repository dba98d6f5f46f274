"""Score predicted against measured values, and say whether a ranking survived."""

import numpy as np


def error_scores(predicted: np.ndarray, measured: np.ndarray) -> dict[str, float]:
    """Return median, mean and P90 of |predicted / measured - 1|, and the median signed error, in
    percent.

    Args:
        predicted: ndarray of shape (N,): predicted values > 0, N >= 1.
        measured: ndarray of shape (N,): measured values > 0.
    """
    error = 100.0 * (np.asarray(predicted) / np.asarray(measured) - 1.0)
    size = np.abs(error)
    return {
        "rows": float(len(error)),
        "median": float(np.median(size)),
        "mape": float(size.mean()),
        "p90": float(np.percentile(size, 90)),
        "bias": float(np.median(error)),
    }


def ranking(
    simulated: np.ndarray, measured: np.ndarray, *, least: int = 4
) -> dict[str, float] | None:
    """Say whether simulation ranks candidates as measurement does; lower is better for both.

    Args:
        simulated: ndarray of shape (N,): simulated values.
        measured: ndarray of shape (N,): measured values.
        least: Candidates that make a ranking.

    Returns:
        ``kendall_tau`` (tau-b, Kendall 1945) and ``regret``, the share by which the simulated best
        was measured to be slower than the measured best; None for fewer candidates than the least.
    """
    simulated, measured = np.asarray(simulated), np.asarray(measured)
    if len(simulated) < least:
        return None
    from scipy.stats import kendalltau

    chosen = measured[int(simulated.argmin())]
    return {
        "kendall_tau": float(kendalltau(simulated, measured).statistic),
        "regret": float(chosen / measured.min() - 1.0),
    }
