"""Fit measured calls: non-negative coefficients of their terms, and their errors on calls left
out.
"""

from collections.abc import Sequence

import numpy as np
from scipy.optimize import least_squares, nnls

Array = np.ndarray
#: a term that fewer calls exercised stays 0; a free fit would give it an arbitrary value
_MIN_USES = 3
#: number of parts into which calls are divided; each part is left out in turn
_FOLDS = 4


def _matrix(features: Sequence[dict[str, float]]) -> tuple[Array, Array]:
    """Return the names of the terms and their values, shape (N, terms); the last term is a
    constant.
    """
    names = np.array([*features[0], "call"])
    return names, np.array([[*(float(value) for value in row.values()), 1.0] for row in features])


def _solve(terms: Array, seconds: Array) -> Array:
    """Return coefficients >= 0 of every term, 0 for terms hardly exercised: ndarray of shape
    (terms,).
    """
    used = (terms > 0).sum(axis=0) >= _MIN_USES
    scale = terms[:, used].max(axis=0)
    scaled = terms[:, used] / scale
    # A non-negative least-squares fit of the ratios starts the robust one near its result.
    start = np.maximum(nnls(scaled / seconds[:, None], np.ones(len(seconds)))[0], 1e-9)
    found = least_squares(
        lambda c: np.log(scaled @ c / seconds),
        start,
        bounds=(0.0, np.inf),
        loss="soft_l1",
        f_scale=0.1,
        x_scale=np.maximum(start, 1e-3 * start.max()),
    ).x
    # The solver never reaches its bounds: a term below a thousandth of every call counts as zero.
    share = (scaled * found / (scaled @ found)[:, None]).max(axis=0)
    out = np.zeros(terms.shape[1])
    out[used] = np.where(share > 1e-3, found / scale, 0.0)
    return out


def fit(
    features: Sequence[dict[str, float]], seconds: Array
) -> tuple[dict[str, float], float, float]:
    """Fit non-negative coefficients of calls' terms, with a robust loss on the log of measured over
    fitted time.

    A constant is fitted too and then dropped: the fixed cost of a call is counted by
    ``launch.call_s``.

    Args:
        features: Terms of each call, the same terms for all calls.
        seconds: Measured times, ndarray of shape (N,).

    Returns:
        Coefficients above 0; P10 and P90 of measured over fitted time.
    """
    names, terms = _matrix(features)
    found = _solve(terms, seconds)
    low, high = np.percentile(seconds / (terms @ found), (10, 90))
    kept = (found > 0) & (names != "call")
    coefficients = {
        str(name): float(value) for name, value in zip(names[kept], found[kept], strict=True)
    }
    return coefficients, float(low), float(high)


def held_out_ratios(features: Sequence[dict[str, float]], seconds: Array) -> Array:
    """Return measured over predicted time of every call, predicted from a fit to the calls of the
    other parts.

    Args:
        features: Terms of each call.
        seconds: Measured times, ndarray of shape (N,).

    Returns:
        ndarray of shape (N,), in the order of the calls.
    """
    _, terms = _matrix(features)
    fold = np.arange(len(seconds)) % min(_FOLDS, len(seconds))
    ratios = np.empty(len(seconds))
    for left_out in np.unique(fold):
        inside = fold != left_out
        predicted = terms[~inside] @ _solve(terms[inside], seconds[inside])
        # A call whose only terms the others did not exercise gets the time of the cheapest call
        # that was seen.
        ratios[~inside] = seconds[~inside] / np.maximum(predicted, seconds[inside].min())
    return ratios


def fit_start_and_rate(amounts: Array, seconds: Array) -> tuple[float, float]:
    """Fit start and rate of ``seconds = start + amounts / rate``, by least squares on the log; both
    are > 0.

    Args:
        amounts: Amounts, ndarray of shape (N,), > 0, of at least two sizes.
        seconds: Measured times, ndarray of shape (N,).
    """
    order = np.argsort(amounts)
    # The smallest amount shows the start, the largest the rate; logs keep both positive.
    first = np.log([max(seconds[order[0]], 1e-9), amounts[order[-1]] / seconds[order[-1]]])
    found = least_squares(
        lambda p: np.log((np.exp(p[0]) + amounts / np.exp(p[1])) / seconds),
        first,
        loss="soft_l1",
        f_scale=0.2,
    ).x
    return float(np.exp(found[0])), float(np.exp(found[1]))


def start_and_rate_ratios(amounts: Array, seconds: Array) -> Array:
    """Return measured over predicted time of each point, predicted from a fit to the others:
    ndarray of shape (N,).
    """
    ratios = np.empty(len(seconds))
    for i in range(len(seconds)):
        others = np.arange(len(seconds)) != i
        start, rate = fit_start_and_rate(amounts[others], seconds[others])
        ratios[i] = seconds[i] / (start + amounts[i] / rate)
    return ratios
