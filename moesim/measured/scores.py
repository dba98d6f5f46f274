"""How far off: scores of predicted against measured, and whether a ranking survived."""

import numpy as np


def error_scores(predicted: np.ndarray, measured: np.ndarray) -> dict[str, float]:
    """Median, mean and P90 of |predicted / measured - 1|, and the median signed error, in percent.

    Args:
        predicted: ndarray of shape (N,), > 0, N >= 1.
        measured: ndarray of shape (N,), > 0.
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


def ranking(simulated: np.ndarray, measured: np.ndarray) -> dict[str, float] | None:
    """Whether simulation ranks as measurement does; lower is better for both.

    Returns:
        ``kendall_tau`` (tau-b, Kendall 1945) and ``regret``: how much slower, as a share, the
        candidate that simulation calls best was measured to be than the best measured; None for
        fewer than four candidates.
    """
    simulated, measured = np.asarray(simulated), np.asarray(measured)
    if len(simulated) < 4:
        return None
    from scipy.stats import kendalltau

    chosen = measured[int(simulated.argmin())]
    return {
        "kendall_tau": float(kendalltau(simulated, measured).statistic),
        "regret": float(chosen / measured.min() - 1.0),
    }
