"""Estimate what crossings cost from where they were crossed: devices, formats, EP kinds, versions.

An event is a fit that saw nothing of a cell and predicts it: of another device, format, EP kind or
version of a library. Compared to a fit that saw all but the row's shape, its errors have a bias and
a wider spread. Biases differ from library to library and from device to device, not from row to
row, so that such a pair of a library and a device counts as one observation: the median of its
events. The half width of the 80 % interval of the next bias is t sqrt(1 + 1 / n) s, with s the
spread of biases of n pairs and t the P90 of Student's distribution with n - 1 degrees of freedom.
From three pairs on s is 1.48 times the median absolute bias (a robust standard deviation: kernels
of two formats may be entirely different ones), else the root mean square. The spread of rows that
the crossing adds is estimated from many rows; it is the median of the pairs. Both are added in
quadrature.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from moesim.costs.cells import Costs

Array = np.ndarray
#: shares of rows within a distance of the prediction that an event states
SHARES = (*range(10, 100, 10), 95, 100)
#: pairs from which on biases are pooled robustly
_ROBUST_FROM = 3
#: crossings that are estimated from events of their own
KINDS = ("generation", "few_shot", "format", "ep1", "epn", "version", "shape")


class Key(NamedTuple):
    """A cell of measured rows: library, device, version of the library, format, EP kind."""

    library: str
    device: str
    version: str
    format: str
    ep: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """A cell that was predicted by a fit that saw nothing of it.

    Attributes:
        key: The cell.
        source: What was fitted, in words.
        crossed: What the prediction crossed.
        rows: Number of rows.
        bias: Median of log(measured / predicted).
        spread: P80 of the distance from that median.
        home_spread: The same of a fit that saw all but the row's shape.
        home: P80 of the absolute log error of that fit.
        within: By `SHARES`, percentiles of the absolute log error of the event.
    """

    key: Key
    source: str
    crossed: tuple[str, ...]
    rows: int
    bias: float
    spread: float
    home_spread: float
    home: float
    within: tuple[float, ...]

    @classmethod
    def of(
        cls, key: Key, source: str, crossed: tuple[str, ...], error_N: Array, home_M: Array
    ) -> "Event":
        """Summarize log errors.

        Args:
            key: The cell.
            source: What was fitted, in words.
            crossed: What the prediction crossed.
            error_N: ndarray of shape (N,): log(measured / predicted) of the event.
            home_M: ndarray of shape (M,): the same of a fit that saw all but the row's shape.
        """

        def spread(log_N: Array) -> float:
            return float(np.percentile(np.abs(log_N - np.median(log_N)), 80))

        return cls(
            key=key,
            source=source,
            crossed=crossed,
            rows=len(error_N),
            bias=float(np.median(error_N)),
            spread=spread(error_N),
            home_spread=spread(home_M),
            home=float(np.percentile(np.abs(home_M), 80)),
            within=tuple(np.percentile(np.abs(error_N), SHARES).tolist()),
        )

    def inside(self, half: float) -> float:
        """Return the share of rows within a distance of the prediction, by linear interpolation.

        Args:
            half: Half the logarithmic width of an interval.
        """
        return float(np.interp(half, (0.0, *self.within), (0.0, *(s / 100 for s in SHARES))))


def cost_of(events: Iterable[Event], kind: str, *, few: bool = True) -> tuple[float, int]:
    """Return what one crossing costs, and the number of pairs of a library and a device.

    Args:
        events: Events; those that crossed this alone count.
        kind: Name of the crossing.
        few: Whether to widen the interval because few pairs were seen.

    Returns:
        (half of the logarithmic width that it adds in quadrature, number of pairs); (0, 0) without
        events.
    """
    from scipy.stats import norm, t

    pairs: dict[tuple[str, str], list[Event]] = {}
    for event in events:
        if event.crossed == (kind,):
            pairs.setdefault((event.key.library, event.key.device), []).append(event)
    count = len(pairs)
    if not count:
        return 0.0, 0
    squared = [np.median([e.bias**2 for e in found]) for found in pairs.values()]
    if count >= _ROBUST_FROM:
        sigma = float(np.sqrt(np.median(squared)) / norm.ppf(0.75))
    else:
        sigma = float(np.sqrt(np.mean(squared)))
    z = float(norm.ppf(0.9))
    if few:
        z = float(t.ppf(0.9, max(count - 1, 1)) * np.sqrt(1 + 1 / count))
    wider = [
        np.median([max(e.spread**2 - e.home_spread**2, 0.0) for e in found])
        for found in pairs.values()
    ]
    return float(np.hypot(z * sigma, np.sqrt(np.median(wider)))), count


def costs_of(events: Sequence[Event]) -> tuple[Costs, dict[str, int]]:
    """Return what each crossing costs, and on how many pairs of a library and a device it rests.

    No two devices of one generation may be fitted. What a generation cost on those that may be,
    without widening because they are few, is an upper bound of what a device costs.
    """
    found = {kind: cost_of(events, kind) for kind in KINDS}
    device, count = cost_of(events, "generation", few=False)
    costs = {kind: round(cost, 4) for kind, (cost, _) in found.items()}
    groups = {"device": count} | {kind: count for kind, (_, count) in found.items()}
    return Costs(**costs, device=round(device, 4)), groups
