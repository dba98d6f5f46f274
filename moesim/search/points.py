"""Number the points of a space, and tell which of them are distinct designs.

Choices of routing change slowest, then those of placement, and the width changes fastest: points
that share a routing, a placement or a program (`moesim.simulation.screening`) are neighbors.
"""

from collections.abc import Callable, Iterable, Iterator
from itertools import product
from math import prod
from typing import Any

from moesim.search.space import Space

#: parameters by how slowly they change: first those of routing, then of placement, then the rest
_ORDER = (
    "gate",
    "num_expert_groups",
    "num_limited_groups",
    "num_experts",
    "top_k",
    "capacity_factor",
    "overflow",
    "placement",
    "num_replicas",
    "parallelism",
    "exchange",
    "num_micro_batches",
    "precision",
)
#: the parameters whose choices decide which others apply (`Space.applicable`)
_RULING = ("gate", "placement", "capacity_factor")


def point_maker(space: Space) -> Callable[[int], dict[str, Any]]:
    """Return a function from a number to a point of the space, with every choice named."""
    choices = space.choices()
    rest = [name for name in choices if name not in _ORDER and name != "expert_intermediate_size"]
    names = [*rest, *(name for name in _ORDER if name in choices), "expert_intermediate_size"]
    sizes = [len(choices[name]) for name in names]

    def point(flat: int) -> dict[str, Any]:
        found = {}
        for name, size in zip(reversed(names), reversed(sizes), strict=True):
            flat, place = divmod(flat, size)
            found[name] = choices[name][place]
        return found

    return point


def distinct_points(
    space: Space, numbers: Iterable[int] | None = None
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


def num_designs(space: Space) -> int:
    """Return the number of points that are distinct designs."""
    choices = space.choices()
    ruling = [name for name in _RULING if name in choices]
    first = {name: listed[0] for name, listed in choices.items()}
    return sum(
        prod(
            len(choices[name])
            for name in space.applicable(first | dict(zip(ruling, chosen, strict=True)))
            if name not in ruling
        )
        for chosen in product(*(choices[name] for name in ruling))
    )
