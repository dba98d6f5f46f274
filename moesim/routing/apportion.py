"""Whole numbers in proportion to weights: how many choices an expert gets.

Shape legend: E experts.
"""

import numpy as np

from moesim.errors import ConfigError


def capped(weight_E: np.ndarray, total: int, cap: int) -> np.ndarray:
    """Shares of ``total`` in proportion to weights, none above ``cap``; the others take what the
    capped cannot.

    Where all that is left has weight 0, it is shared evenly.
    """
    share = np.zeros(len(weight_E))
    free = np.ones(len(weight_E), dtype=bool)
    while True:
        weight = weight_E[free] if weight_E[free].any() else np.ones(int(free.sum()))
        share[free] = weight / weight.sum() * (total - cap * (~free).sum()) if len(weight) else 0.0
        over = free & (share > cap)
        if not over.any():
            return share
        share[over] = cap
        free &= ~over


def apportion(weight_E: np.ndarray, total: int, cap: int) -> np.ndarray:
    """Integer counts in proportion to weights, summing to ``total``, none above ``cap``.

    Rounds, clips at the cap, then hands what is left round, one at a time, the least loaded first;
    what is too much is taken one at a time from the most loaded. (That the least loaded come first
    is read off aiconfigurator's measured rows: at few tokens per expert, time tells how many
    experts were active.)

    Args:
        weight_E: ndarray of shape (E,), >= 0, not all 0.
        total: Sum of the counts; at most E * cap.
        cap: Largest count.

    Returns:
        ndarray of shape (E,), int64.

    Raises:
        ConfigError: More to give than E * cap.
    """
    if total > cap * len(weight_E):
        raise ConfigError(
            f"cannot give {total} choices to {len(weight_E)} experts of at most {cap} each"
        )
    counts = np.minimum(np.rint(weight_E / weight_E.sum() * total), cap).astype(np.int64)
    while left := total - int(counts.sum()):
        give = left > 0
        # by load, ties by weight: the heavier of two equally loaded experts gets first and gives
        # last
        order = np.lexsort((-weight_E, counts)) if give else np.lexsort((weight_E, -counts))
        able = order[counts[order] < cap] if give else order[counts[order] > 0]
        # as many rounds at once as all of them take part in
        room = int((cap - counts[able] if give else counts[able]).min())
        rounds = max(min(abs(left) // len(able), room), 1)
        counts[able[: abs(left)]] += rounds if give else -rounds
    return counts
