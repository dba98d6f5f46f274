"""Breed points like Optuna's NSGA-II sampler (Deb et al. 2002), without a trial object for each.

The draws, their order and their generators are those of `optuna.samplers.NSGAIISampler` 5.0 with
its defaults, so the children are the same; a test holds the two together. Optuna's own loop costs
2 ms per child, most of it copies.

Points are tuples of places: for each parameter the index of its choice. Shape legend: N parents,
P parameters.
"""

from collections.abc import Iterator, Sequence

import numpy as np

#: probabilities that a child has two parents, and that it takes a parameter of the second
_CROSSOVER, _SWAP = 0.9, 0.5


def dominance(costs: np.ndarray, broken: np.ndarray) -> np.ndarray:
    """Return which parent beats which in a tournament: ndarray of shape (N, N), bool.

    A parent that keeps all constraints beats one that does not; of two that break some, the one
    that breaks them less wins; of two that keep them, one wins if it dominates.

    Args:
        costs: Costs, less is better: ndarray of shape (N, M).
        broken: Sums of violations, 0 where all constraints hold: ndarray of shape (N,).
    """
    one, other = costs[:, None], costs[None]
    better = (one <= other).all(axis=2) & (one != other).any(axis=2)
    kept, less = broken <= 0, broken[:, None] < broken[None]
    return np.where(kept[:, None] & kept[None], better, less)


def children(
    parents: Sequence[Sequence[int]],
    beats: np.ndarray,
    names: Sequence[str],
    sizes: Sequence[int],
    numeric: Sequence[bool],
    seed: int,
) -> Iterator[list[int]]:
    """Yield children without end.

    Args:
        parents: Places of each of the N parents.
        beats: The tournament between them, see `dominance`.
        names: Names of the P parameters.
        sizes: Number of choices of each parameter.
        numeric: Whether a parameter is a number: mutation then rounds one draw, and otherwise takes
            the choice with the largest of as many draws.
        seed: Seed of all draws.
    """
    rng, mutating = np.random.RandomState(seed), np.random.RandomState(seed)
    count, number = len(parents), len(names)
    # parameters in the order of their names; crossing takes the numbers after the others
    by_name = sorted(range(number), key=names.__getitem__)
    parts = [[p for p in by_name if not numeric[p]], [p for p in by_name if numeric[p]]]
    while True:
        asked = by_name
        if count > 1 and rng.rand() < _CROSSOVER:
            first = _winner(list(range(count)), beats, rng)
            second = _winner([i for i in range(count) if i != first], beats, rng)
            child, asked = list(parents[first]), parts[0] + parts[1]
            for part in parts:
                for place, swapped in zip(part, rng.rand(len(part)) >= _SWAP, strict=True):
                    if swapped:
                        child[place] = parents[second][place]
        else:
            child = list(parents[rng.choice(count)])
        # every parameter is asked whether it mutates; those that do are then drawn anew
        mutates = rng.rand(number) < 1.0 / max(number, 1)
        for place in sorted(p for p, yes in zip(asked, mutates, strict=True) if yes):
            child[place] = _drawn(sizes[place], numeric[place], mutating)
        yield child


def _winner(among: list[int], beats: np.ndarray, rng: np.random.RandomState) -> int:
    """Return the winner of a tournament of two; the second one where neither beats the other."""
    first, second = among[rng.choice(len(among))], among[rng.choice(len(among))]
    return first if beats[first, second] else second


def _drawn(size: int, numeric: bool, rng: np.random.RandomState) -> int:
    if numeric:
        return min(max(int(np.floor(rng.uniform(-0.5, size - 0.5) + 0.5)), 0), size - 1)
    return int(rng.uniform(np.zeros(size), np.ones(size)).argmax())
