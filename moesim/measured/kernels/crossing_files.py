"""Write and read what crossings cost, and the events that it was estimated from."""

import csv
import io
from collections.abc import Iterable, Sequence
from pathlib import Path

from moesim.files.output import write_file
from moesim.measured.kernels.crossing_costs import SHARES, Event, Key, costs_of

_NUMBERS = ("bias", "spread", "home_spread", "home")
_WITHIN = tuple(f"p{share}" for share in SHARES)


def write_crossings(folder: Path, events: Sequence[Event]) -> dict[str, dict[str, float]]:
    """Write ``crossings.csv``, the events, and ``crossings.toml``, what crossings cost.

    Returns:
        Name of a crossing -> its cost (``half``), and the ``pairs`` that it rests on.
    """
    costs, groups = costs_of(events)
    alone = {f"{e.key.format}-{e.key.ep}" for e in events if e.crossed == ("generation",)}
    known = ", ".join(f'"{kind}"' for kind in sorted(alone))
    lines = [
        'title = "What crossings cost: half the logarithmic width that each adds in quadrature"',
        'command = "moesim calibrate crossings"',
        f'fitted_on = "{len(events)} cells predicted by fits that saw nothing of them"',
        f"generation_known_in = [{known}]",
        "",
        "[costs]",
        *(f"{name} = {cost!r}" for name, cost in costs.model_dump().items()),
        "",
        "# pairs of a library and a device",
        "[groups]",
        *(f"{name} = {groups[name]}" for name in costs.model_dump()),
    ]
    write_file(folder / "crossings.toml", "\n".join(lines) + "\n")
    write_events(folder / "crossings.csv", events)
    return {
        name: {"half": cost, "pairs": float(groups[name])}
        for name, cost in costs.model_dump().items()
    }


def write_events(path: Path, events: Iterable[Event]) -> None:
    """Write events as a table, five digits each."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*Key._fields, "source", "crossed", "rows", *_NUMBERS, *_WITHIN])
    for one in events:
        numbers = [getattr(one, name) for name in _NUMBERS]
        writer.writerow(
            [*one.key, one.source, "+".join(one.crossed), one.rows]
            + [f"{value:.5g}" for value in (*numbers, *one.within)]
        )
    write_file(path, text.getvalue())


def read_events(path: Path) -> list[Event]:
    """Read the table that `write_events` wrote."""
    with path.open(encoding="utf-8") as file:
        return [
            Event(
                key=Key(*(row[name] for name in Key._fields)),
                source=row["source"],
                crossed=tuple(row["crossed"].split("+")),
                rows=int(row["rows"]),
                **{name: float(row[name]) for name in _NUMBERS},
                within=tuple(float(row[name]) for name in _WITHIN),
            )
            for row in csv.DictReader(file)
        ]
