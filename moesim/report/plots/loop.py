"""Draw closed loops: times simulated on a machine against times that it then measured."""

import html
import textwrap
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


#: characters of a line of text above a page's figures
_TEXT_WIDTH = 110


def loop_page(
    parts: Mapping[str, Sequence[Mapping[str, Any]]],
    told: Sequence[str],
    beside: Sequence[Mapping[str, Any]] = (),
):
    """Draw a closed loop with its verdict above it: simulated over measured times, and beside them
    how long moesim's kernels take over those of other libraries.

    Args:
        parts: Name -> points with ``candidate``, ``simulated`` and ``measured``, in microseconds.
        told: Sentences of the verdict, the headline first.
        beside: Rows with ``candidate``, ``library`` and ``ratio``, moesim's time over the
            library's; those of moesim itself are left out.

    Returns:
        plotly Figure.
    """
    import plotly.graph_objects as go
    from plotly.subplots import make_subplots

    others: dict[str, list[Mapping[str, Any]]] = {}
    for row in beside:
        if row["library"] != "moesim":
            others.setdefault(str(row["library"]), []).append(row)
    scatter = loop_scatter(
        {n: (rows, "simulated") for n, rows in parts.items()}, "", measured="measured"
    )
    figure = make_subplots(
        rows=1,
        cols=2 if others else 1,
        column_widths=[0.6, 0.4] if others else None,
        subplot_titles=["simulated against measured times", "moesim's time over others'"]
        if others
        else ["simulated against measured times"],
        horizontal_spacing=0.12,
    )
    for trace in scatter.data:
        figure.add_trace(trace, row=1, col=1)
    figure.update_xaxes(type="log", title="measured, us", row=1, col=1)
    figure.update_yaxes(type="log", title="simulated, us", row=1, col=1)
    for name, rows in others.items():
        figure.add_trace(
            go.Box(
                y=[row["ratio"] for row in rows],
                text=[row["candidate"] for row in rows],
                name=name,
                boxpoints="all",
                showlegend=False,
            ),
            row=1,
            col=2,
        )
    if others:
        figure.update_yaxes(title="below 1: moesim is faster", row=1, col=2)
        figure.add_hline(y=1.0, line_dash="dot", row=1, col=2)
    head, *rest = (html.escape(line) for line in told)
    lines = [f"<b>{head}</b>"]
    lines += [part for line in rest for part in textwrap.wrap(line, _TEXT_WIDTH)]
    figure.update_layout(
        title={
            "text": "<br>".join(lines),
            "font": {"size": 14},
            "x": 0.02,
            "y": 0.98,
            "yref": "container",
            "yanchor": "top",
        },
        margin={"t": 60 + 20 * len(lines)},
        height=560 + 20 * len(lines),
        template="plotly_white",
    )
    return figure
