"""Draw closed loops: times simulated on a machine against times that it then measured."""

from collections.abc import Mapping, Sequence
from typing import Any


def loop_scatter(
    parts: Mapping[str, tuple[Sequence[Mapping[str, Any]], str]],
    title: str,
    *,
    measured: str = "measured_us",
):
    """Draw simulated over measured times, a color per part, with the line where both are equal.

    Args:
        parts: Name -> rows and the column of the simulated time; rows with a ``candidate`` show it
            when pointed at.
        title: The title of the page.
        measured: The column of the measured time.

    Returns:
        plotly Figure.
    """
    import plotly.graph_objects as go

    points = [
        go.Scatter(
            x=[row[measured] for row in rows],
            y=[row[simulated] for row in rows],
            mode="markers",
            name=name,
            text=[row.get("candidate") for row in rows],
        )
        for name, (rows, simulated) in parts.items()
    ]
    every = [row[measured] for rows, _ in parts.values() for row in rows] or [1.0, 10.0]
    ends = [min(every) * 0.8, max(every) * 1.25]
    figure = go.Figure([*points, go.Scatter(x=ends, y=ends, mode="lines", name="equal")])
    figure.update_layout(title=title, template="plotly_white")
    figure.update_xaxes(type="log", title="measured, us")
    figure.update_yaxes(type="log", title="simulated, us")
    return figure
