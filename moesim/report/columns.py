"""What the columns of CSV files mean: one schema for files, pages and docs.

`columns.csv` beside this module holds each column once. Ends and percentiles of a quantity follow
from it: ``x_low`` and ``x_high`` are the P10 and P90 of ``x`` as the residuals of its calibration
give them, ``x_mean_ms`` or ``x_p99_ms`` are over the requests that are counted.
"""

import csv
import re
from dataclasses import dataclass, replace
from functools import cache
from importlib.resources import files

_ENDS = {
    "low": "Low end (P10) of the interval of {}.",
    "high": "High end (P90) of the interval of {}.",
    "mean": "Mean of {} over the counted requests.",
    "p50": "P50 of {} over the counted requests.",
    "p90": "P90 of {} over the counted requests.",
    "p99": "P99 of {} over the counted requests.",
}
_END = re.compile(rf"^(?P<stem>.+)_(?P<end>{'|'.join(_ENDS)})(?P<unit>_us|_ms|_s)?$")


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """One column.

    Attributes:
        name: Its name in a file.
        group: What it is about: trial, design, workload, layer, loss, memory, cost, serving,
            training, check, advice, operations or provenance.
        unit: Its unit; empty for names and plain numbers.
        meaning: A sentence.
    """

    name: str
    group: str
    unit: str
    meaning: str


@cache
def known_columns() -> dict[str, Column]:
    """Return the columns of the schema by name, those that follow from others left out."""
    text = (files("moesim.report") / "columns.csv").read_text(encoding="utf-8")
    return {row["name"]: Column(**row) for row in csv.DictReader(text.splitlines())}


def column_of(name: str) -> Column | None:
    """Return what a column means.

    Args:
        name: Its name in a file.

    Returns:
        The column, or None where the schema does not hold it (such as those of a study's own
        tables).
    """
    known = known_columns()
    if name in known:
        return known[name]
    match = _END.match(name)
    if match is None:
        return None
    base = f"{match['stem']}{match['unit'] or ''}"
    if base not in known:
        return None
    return replace(known[base], name=name, meaning=_ENDS[match["end"]].format(base))


__all__ = ["Column", "column_of", "known_columns"]
