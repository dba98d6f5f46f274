"""Score intervals of crossed cells by nested cross-validation, on rows that may be fitted."""

from collections.abc import Sequence

import numpy as np

from moesim.measured.kernels.crossing_costs import Event, cost_of


def nested_coverage(events: Sequence[Event]) -> list[tuple[Event, float, float]]:
    """Return how many rows of each event an interval holds whose costs its library did not tell.

    Where no other library crossed the same, the library's other devices tell the cost.

    Returns:
        (event, share of rows inside, high over low) of every event.
    """
    out = []
    for one in events:
        others = [e for e in events if e.key.library != one.key.library]
        apart = [e for e in events if e.key[:2] != one.key[:2]]
        costs = []
        for kind in one.crossed:
            cost, count = cost_of(others, kind)
            costs.append(cost if count else cost_of(apart, kind)[0])
        half = float(np.hypot.reduce([one.home, *costs]))
        out.append((one, one.inside(half), float(np.exp(2 * half))))
    return out


def nested_table(events: Sequence[Event]) -> list[dict[str, str | int | float]]:
    """Return `nested_coverage` by what is crossed, the mean over libraries.

    Returns:
        Rows with ``crossed``, ``events``, ``inside`` (percent) and ``width`` (high over low, the
        median).
    """
    found: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for event, inside, width in nested_coverage(events):
        libraries = found.setdefault("+".join(event.crossed), {})
        libraries.setdefault(event.key.library, []).append((inside, width))
    return [
        {
            "crossed": crossed,
            "events": sum(map(len, libraries.values())),
            "inside": 100
            * float(np.mean([np.mean([i for i, _ in v]) for v in libraries.values()])),
            "width": float(np.median([w for v in libraries.values() for _, w in v])),
        }
        for crossed, libraries in sorted(found.items())
    ]
