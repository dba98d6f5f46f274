"""Pareto fronts, their hypervolume, and the choice of survivors; all costs are minimized.

Shape legend: N rows, M objectives.
"""

from typing import TypeVar

import numpy as np

from moesim.compiled import compiled

T = TypeVar("T")


def front(costs: np.ndarray) -> list[int]:
    """Return the rows that no other row dominates (no worse in all costs, better in one).

    Args:
        costs: Costs, ndarray of shape (N, M).

    Returns:
        Row indices, ascending; equal rows are all included.
    """
    return [int(i) for i in np.flatnonzero(ranks(costs, 1) == 0)]


def ranks(costs: np.ndarray, most: int | None = None) -> np.ndarray:
    """Return the front each row is on: 0 is the Pareto front, 1 would be it without those rows, and
    so on.

    Args:
        costs: Finite costs, ndarray of shape (N, M).
        most: Number of fronts to tell apart; rows beyond them get this number.

    Returns:
        ndarray of shape (N,).
    """
    count = len(costs)
    if not count:
        return np.zeros(0, dtype=np.int64)
    # in this order a row comes after all rows that dominate it
    order = np.lexsort(costs.T[::-1])
    rank = np.empty(count, dtype=np.int64)
    rank[order] = _ranks(
        np.ascontiguousarray(costs[order], dtype=np.float64), count if most is None else most
    )
    return rank


@compiled()
def _ranks(costs, most):
    """Rank rows in lexicographic order: each joins the first front none of whose rows dominates it
    (Zhang et al. 2015).
    """
    count, objectives = costs.shape
    rank = np.full(count, most)
    # the newest row of each front, and for each row the next older one of its front
    last = np.full(most + 1, -1)
    older = np.full(count, -1)
    for i in range(count):
        for number in range(most):
            dominated = False
            j = last[number]
            while j >= 0 and not dominated:
                worse, equal = False, True
                for m in range(objectives):
                    if costs[j, m] > costs[i, m]:
                        worse = True
                        break
                    if costs[j, m] < costs[i, m]:
                        equal = False
                dominated = not worse and not equal
                j = older[j]
            if not dominated:
                rank[i] = number
                older[i] = last[number]
                last[number] = i
                break
    return rank


def crowding(costs: np.ndarray) -> np.ndarray:
    """Return the crowding distance of each row of one front (Deb et al. 2002), infinite at the
    ends.

    Returns:
        ndarray of shape (N,).
    """
    distance = np.zeros(len(costs))
    for column in costs.T:
        order = np.argsort(column, kind="stable")
        span = column[order[-1]] - column[order[0]]
        distance[order[[0, -1]]] = np.inf
        if span > 0 and np.isfinite(span):
            distance[order[1:-1]] += (column[order[2:]] - column[order[:-2]]) / span
    return distance


def survivors(costs: np.ndarray, broken: np.ndarray, size: int) -> list[int]:
    """Return the rows that a generation keeps: fronts in order, the last one by crowding, and then
    the rows that violate constraints least.

    Args:
        costs: Costs, ndarray of shape (N, M).
        broken: Sum of violations, ndarray of shape (N,); 0 where all constraints hold.
        size: Number of rows to keep.
    """
    kept: list[int] = []
    feasible = np.flatnonzero(broken <= 0)
    rank = ranks(costs[feasible], size)
    for number in range(size):
        on = feasible[rank == number]
        if not len(on) or len(kept) == size:
            break
        # the ends first, then the least crowded rows: a search tries screened points in this order
        kept += [
            int(i) for i in on[np.argsort(-crowding(costs[on]), kind="stable")][: size - len(kept)]
        ]
    if len(kept) == size:
        return kept
    others = np.flatnonzero(broken > 0)
    return kept + [
        int(i) for i in others[np.argsort(broken[others], kind="stable")][: size - len(kept)]
    ]


def hypervolume(costs: np.ndarray, reference: np.ndarray) -> float:
    """Return the volume that rows dominate up to a reference point: how good a front is.

    Args:
        costs: Costs, ndarray of shape (N, M).
        reference: The reference point, ndarray of shape (M,); rows that are not better in every
            cost add nothing.
    """
    inside = costs[(costs < reference).all(axis=1)] if len(costs) else costs
    if not len(inside):
        return 0.0
    return _volume(np.unique(inside[front(inside)], axis=0), reference)


def _volume(costs: np.ndarray, reference: np.ndarray) -> float:
    """Add up slices along the last cost; the rows are a front or a projection of one."""
    if costs.shape[1] == 1:
        return float(reference[0] - costs.min())
    order = np.argsort(costs[:, -1], kind="stable")
    costs = costs[order]
    if costs.shape[1] == 2:
        lowest = np.minimum.accumulate(costs[:, 0])
        heights = np.diff(np.append(costs[:, 1], reference[1]))
        return float(((reference[0] - lowest) * heights).sum())
    total = 0.0
    ends = np.append(costs[1:, -1], reference[-1])
    for i, height in enumerate(ends - costs[:, -1]):
        if height > 0:
            part = costs[: i + 1, :-1]
            total += float(height) * _volume(part[front(part)], reference[:-1])
    return total


def compromise(costs: np.ndarray) -> int:
    """Return the row of a front that gives up least: its worst cost is nearest to the best.

    Each cost counts from the best of the front (0) to its worst (1), on a logarithmic scale if all
    are of one sign. Of equal rows the one with the smaller sum counts, then the first.

    Args:
        costs: Finite costs, ndarray of shape (N, M), N >= 1.
    """
    share = np.zeros(costs.shape)
    for place, column in enumerate(costs.T):
        if (column > 0).all() or (column < 0).all():
            column = np.sign(column) * np.log(np.abs(column))
        span = np.ptp(column)
        if span > 0:
            share[:, place] = (column - column.min()) / span
    return int(np.lexsort((share.sum(axis=1), share.max(axis=1)))[0])


def spread(items: list[T], limit: int) -> list[T]:
    """Return at most ``limit`` items, evenly spaced by index, first and last included."""
    if len(items) <= limit:
        return items
    places = np.unique(np.linspace(0, len(items) - 1, limit).round().astype(int))
    return [items[i] for i in places]
