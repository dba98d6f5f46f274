"""Pareto fronts: all costs are minimised."""

from typing import TypeVar

import numpy as np

T = TypeVar("T")


def front(costs: np.ndarray) -> list[int]:
    """Rows that no other row dominates (no worse in all costs, better in one).

    Args:
        costs: ndarray of shape (N, M).

    Returns:
        Row numbers, ascending; of equal rows all.
    """
    kept = []
    for i, row in enumerate(costs):
        no_worse = (costs <= row).all(axis=1)
        better = (costs < row).any(axis=1)
        if not (no_worse & better).any():
            kept.append(i)
    return kept


def spread(items: list[T], limit: int) -> list[T]:
    """At most ``limit`` items, evenly spaced by place, first and last included."""
    if len(items) <= limit:
        return items
    places = np.unique(np.linspace(0, len(items) - 1, limit).round().astype(int))
    return [items[i] for i in places]
