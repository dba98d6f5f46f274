"""Divide a total into whole numbers in proportion to weights: the number of choices of each expert.

Shape legend: E experts.
"""

import numpy as np

from moesim.errors import ConfigError


def capped(weight_E: np.ndarray, total: int, cap: int) -> np.ndarray:
    """Return shares of ``total`` in proportion to weights, none above ``cap``; the excess of capped
    shares goes to the others.

    If all the others have weight 0, they share it evenly.
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
    """Return integer counts in proportion to weights that sum to ``total``, none above ``cap``.

    The shares are rounded and clipped at the cap. Then the missing counts are handed out one at a
    time, least loaded first; an excess is taken back one at a time, most loaded first. (The rule
    "least loaded first" is derived from measured rows of aiconfigurator: with few tokens per
    expert, the time reveals how many experts were active.)

    Args:
        weight_E: ndarray of shape (E,): weights >= 0, not all 0.
        total: Sum of the counts, at most E * cap.
        cap: Largest count.

    Returns:
        ndarray of shape (E,), int64.

    Raises:
        ConfigError: ``total`` exceeds E * cap.
    """
    if total > cap * len(weight_E):
        raise ConfigError(
            f"cannot give {total} choices to {len(weight_E)} experts of at most {cap} each"
        )
    counts = np.minimum(np.rint(weight_E / weight_E.sum() * total), cap).astype(np.int64)
    while left := total - int(counts.sum()):
        give = left > 0
        # sorted by load, then by weight: of two equally loaded experts, the one with more weight
        # receives first and gives back last
        order = np.lexsort((-weight_E, counts)) if give else np.lexsort((weight_E, -counts))
        able = order[counts[order] < cap] if give else order[counts[order] > 0]
        # do as many rounds at once as all of them can take part in
        room = int((cap - counts[able] if give else counts[able]).min())
        rounds = max(min(abs(left) // len(able), room), 1)
        counts[able[: abs(left)]] += rounds if give else -rounds
    return counts
