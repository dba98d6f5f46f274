"""Number the points of a space, and tell which of them are distinct designs.

Choices change in the order that the space names (`moesim.search.problem.SearchSpace`): points that
share a routing, a placement or a program are neighbors.
"""

from collections.abc import Callable, Iterable, Iterator
from itertools import product
from math import prod
from typing import Any

from moesim.search.problem import SearchSpace


def point_maker(space: SearchSpace) -> Callable[[int], dict[str, Any]]:
    """Return a function from a number to a point of the space, with every choice named."""
    choices = space.choices()
    rest = [name for name in choices if name not in space.slow_first]
    names = [*rest, *(name for name in space.slow_first if name in choices)]
    sizes = [len(choices[name]) for name in names]

    def point(flat: int) -> dict[str, Any]:
        found = {}
        for name, size in zip(reversed(names), reversed(sizes), strict=True):
            flat, place = divmod(flat, size)
            found[name] = choices[name][place]
        return found

    return point


def distinct_points(
    space: SearchSpace, numbers: Iterable[int] | None = None
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the points that are distinct designs with their numbers, without what does not apply.

    Of the points that are one design, it is the one with the first choices of what does not apply.

    Args:
        space: The space.
        numbers: Numbers of the points to look at; by default all.
    """
    point_at = point_maker(space)
    first = {name: choices[0] for name, choices in space.choices().items()}
    for number in range(space.size) if numbers is None else numbers:
        point = point_at(number)
        plain = space.applicable(point)
        if all(point[name] == first[name] for name in point.keys() - plain.keys()):
            yield number, plain


def num_designs(space: SearchSpace) -> int:
    """Return the number of points that are distinct designs."""
    choices = space.choices()
    ruling = [name for name in space.ruling if name in choices]
    first = {name: listed[0] for name, listed in choices.items()}
    total = 0
    for chosen in product(*(choices[name] for name in ruling)):
        point = first | dict(zip(ruling, chosen, strict=True))
        left = space.applicable(point)
        # one that does not apply itself counts with its first choice
        if all(name in left or point[name] == first[name] for name in ruling):
            total += prod(len(choices[name]) for name in left if name not in ruling)
    return total
