"""Draw days with failures, ways to run a job, and growth."""

from collections.abc import Mapping, Sequence
from typing import Any

#: response -> color of its events
_COLORS = {
    "rollback": "#d62728",
    "restart": "#d62728",
    "failover": "#2ca02c",
    "elastic": "#2ca02c",
    "planned": "#7f7f7f",
    "replaced": "#9467bd",
    "slow": "#ff7f0e",
    "silent": "#8c564b",
    "rejoin": "#1f77b4",
}


def timeline(events: Sequence[Mapping[str, Any]], *, height: str, title: str):
    """Draw events over time, a color per response.

    Args:
        events: Rows with ``time_h``, ``cause``, ``response`` and the column that is drawn.
        height: Column that is drawn upwards, such as ``down_s``.
        title: Title of the figure.

    Returns:
        plotly Figure.
    """
    import plotly.graph_objects as go

    chart = go.Figure()
    for response in dict.fromkeys(event["response"] for event in events):
        part = [event for event in events if event["response"] == response]
        chart.add_trace(
            go.Scatter(
                x=[event["time_h"] / 24 for event in part],
                y=[event[height] for event in part],
                mode="markers",
                name=response,
                marker={"color": _COLORS.get(response, "black"), "size": 7, "opacity": 0.7},
                text=[event["cause"] for event in part],
                hovertemplate="day %{x:.2f}: %{text}, %{y:,.4g}<extra></extra>",
            )
        )
    chart.update_layout(title=title, xaxis_title="day", yaxis_title=height, template="plotly_white")
    return chart


def lines_by(
    rows: Sequence[Mapping[str, Any]],
    axes: tuple[str, str],
    *,
    by: str,
    title: str,
    low_high: tuple[str, str] | None = None,
    log: str = "",
):
    """Draw one column over another, a line for each value of a third.

    Args:
        rows: Rows with all columns.
        axes: Columns of the horizontal and of the vertical axis.
        by: Column whose values have lines of their own.
        title: Title of the figure.
        low_high: Columns of the ends of an interval; None for none.
        log: The axes that are logarithmic: ``x``, ``y``, ``xy`` or nothing.

    Returns:
        plotly Figure.
    """
    import plotly.graph_objects as go

    chart = go.Figure()
    across, up = axes
    for value in dict.fromkeys(row[by] for row in rows):
        part = [row for row in rows if row[by] == value]
        error = {}
        if low_high is not None:
            low, high = low_high
            error["error_y"] = {
                "array": [row[high] - row[up] for row in part],
                "arrayminus": [row[up] - row[low] for row in part],
            }
        chart.add_trace(
            go.Scatter(
                x=[row[across] for row in part],
                y=[row[up] for row in part],
                mode="lines+markers",
                name=f"{by} {value}",
                **error,
            )
        )
    chart.update_layout(title=title, xaxis_title=across, yaxis_title=up, template="plotly_white")
    if "x" in log:
        chart.update_xaxes(type="log")
    if "y" in log:
        chart.update_yaxes(type="log")
    return chart
