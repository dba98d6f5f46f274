"""Simulated against measured: what was compared, what came of it, and what was left out."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from moesim.page.charts import Axis, Series, XYChart

_COLORS = {"confirmed": "green", "inconclusive": "amber", "refuted": "orange"}
_SYMBOLS = {"confirmed": "circle", "inconclusive": "diamond", "refuted": "x"}
_NOTE = (
    "A point is a time of a candidate, measured by a source and simulated with its P10 to P90; on "
    "the line both are equal. A verdict says whether the measurement bears the simulation out, see "
    "the table; stand-ins that were scaled down say so there."
)


def compared(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the rows that compare a simulated time with a measured one."""
    return [
        row
        for row in rows
        if row["quantity"].endswith("_us") and row["simulated"] and row["measured"]
    ]


def left_out(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return how many rows are not in the chart, by source and reason."""
    kept = {id(row) for row in compared(rows)}
    counted = Counter((row["source"], _reason(row)) for row in rows if id(row) not in kept)
    return [
        {"source": source, "rows": count, "reason": reason}
        for (source, reason), count in sorted(counted.items())
    ]


def _reason(row: dict[str, Any]) -> str:
    if row["status"] == "checked":
        return "compares numbers that the kernels compute, not times"
    return f"{row['status'].replace('_', ' ')}: {row['detail']}"


def check_chart(rows: Sequence[dict[str, Any]]) -> XYChart | None:
    """Return simulated against measured times; None without any."""
    kept = compared(rows)
    if not kept:
        return None
    series = []
    for verdict, color in _COLORS.items():
        own = [row for row in kept if row["verdict"] == verdict]
        if own:
            simulated = np.array([row["simulated"] for row in own])
            ends: dict[str, Any] = {
                f"y_{end}": [row[f"simulated_{end}"] or row["simulated"] for row in own]
                for end in ("low", "high")
            }
            series.append(
                Series(
                    name=verdict,
                    x=np.array([row["measured"] for row in own]),
                    y=simulated,
                    text=[
                        f"{row['candidate']}\n{row['source']}, {row['quantity']}, {row['role']}"
                        for row in own
                    ],
                    color=color,
                    symbol=_SYMBOLS[verdict],
                    size=9.0,
                    **ends,
                )
            )
    return XYChart(
        key="check",
        title="Simulated against measured times",
        note=_NOTE,
        x=Axis(label="measured (us)", log=True),
        y=Axis(label="simulated (us)", log=True),
        series=tuple(series),
        equal=True,
    )
