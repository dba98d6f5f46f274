"""Draw measured losses: differences to a base model, seed by seed, next to a table's."""

from collections.abc import Mapping, Sequence
from typing import Any


def paired_differences(
    rows: Sequence[Mapping[str, Any]],
    runs: Sequence[Mapping[str, Any]],
    *,
    base: str,
    same: str,
):
    """Draw differences by variant: each seed, the mean with its interval, and the table's interval.

    Args:
        rows: A row per variant with ``delta``, ``high``, ``table_low``, ``table_high`` and
            ``table_unknown``.
        runs: A row per variant and seed with ``delta`` and ``seed``.
        base: The variant that the others are compared with.
        same: A variant that differs in nothing and is in no table.

    Returns:
        plotly Figure.
    """
    import plotly.graph_objects as go

    rows = [row for row in rows if row["variant"] != base][::-1]
    names = [row["variant"] for row in rows]
    known = [row for row in rows if row["variant"] != same]
    chart = go.Figure()
    chart.add_trace(
        go.Bar(
            y=[row["variant"] for row in known],
            x=[row["table_high"] - row["table_low"] for row in known],
            orientation="h",
            base=[row["table_low"] for row in known],
            name="table's interval",
            marker={"color": "#c6d4e8"},
            width=0.5,
            text=[row["table_unknown"] and "no measured figure" for row in known],
            textposition="none",
            hovertemplate="table %{base:.4f} + %{x:.4f}<br>%{text}<extra></extra>",
        )
    )
    points = [run for run in runs if run["variant"] in names]
    chart.add_trace(
        go.Scatter(
            y=[run["variant"] for run in points],
            x=[run["delta"] for run in points],
            mode="markers",
            name="one seed",
            marker={"color": "#d62728", "size": 6, "opacity": 0.5},
            text=[f"seed {run['seed']}" for run in points],
            hovertemplate="%{text}: %{x:.4f}<extra></extra>",
        )
    )
    reach = [row["high"] - row["delta"] for row in rows]
    chart.add_trace(
        go.Scatter(
            y=names,
            x=[row["delta"] for row in rows],
            mode="markers",
            name="mean, 90 % interval",
            error_x={"array": reach},
            marker={"color": "black", "symbol": "diamond", "size": 8},
            hovertemplate="mean %{x:.4f}<extra></extra>",
        )
    )
    chart.add_vline(x=0, line={"width": 1, "color": "grey"})
    chart.update_xaxes(
        title="difference of held-out loss to flat top-k, nats per byte (right is worse)"
    )
    chart.update_yaxes(categoryorder="array", categoryarray=names)
    chart.update_layout(
        title="Tiny models on this CPU against the table: they need not agree",
        height=620,
        template="plotly_white",
        barmode="overlay",
    )
    return chart
