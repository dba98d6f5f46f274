"""Inter-token latencies: the gaps between the steps that bring tokens to a request.

With speculative decoding a step brings several tokens at once; its gap counts once, as a client
sees a streamed answer. A gap holds whatever happens between two such steps: steps with other
requests' prompts, and the recomputation after a preemption.
"""

from collections.abc import Sequence

import numpy as np

#: places in a run of evenly growing gaps that stand for all of them in quantiles
_PLACES = (np.arange(8) + 0.5) / 8


class Gaps:
    """A collection of gaps, kept as runs that grow evenly."""

    __slots__ = ("_runs",)

    def __init__(self) -> None:
        #: (time of the last token, first gap, last gap, number of gaps)
        self._runs: list[tuple[float, float, float, int]] = []

    def add(self, end_s: float, low_s: float, high_s: float, count: int) -> None:
        """Add gaps.

        Args:
            end_s: When the last of them ended.
            low_s: The first of them.
            high_s: The last of them; those between grow evenly.
            count: Their number.
        """
        self._runs.append((end_s, low_s, high_s, count))

    def count(self) -> int:
        """Return the number of gaps."""
        return sum(run[3] for run in self._runs)

    def statistics(
        self, after_s: float, until_s: float, percents: Sequence[float]
    ) -> list[float] | None:
        """Return the mean and the percentiles of the gaps that ended in an interval of time.

        Args:
            after_s: The interval's beginning, which does not belong to it.
            until_s: The interval's end, which does.
            percents: The percentiles to return, from 0 to 100.

        Returns:
            The mean, then the percentiles, in seconds; None without a gap.
        """
        runs = np.array(self._runs).reshape(-1, 4)
        inside = (runs[:, 0] > after_s) & (runs[:, 0] <= until_s)
        low_s, high_s, count = runs[inside, 1:].T
        total = count.sum()
        if total == 0:
            return None
        value = (low_s[:, None] + (high_s - low_s)[:, None] * _PLACES).ravel()
        order = np.argsort(value, kind="stable")
        rank = np.cumsum(np.repeat(count / len(_PLACES), len(_PLACES))[order])
        at = np.searchsorted(rank, np.array(percents) * total / 100)
        mean = float((count * (low_s + high_s)).sum() / 2 / total)
        return [mean, *value[order][np.minimum(at, len(value) - 1)].tolist()]
