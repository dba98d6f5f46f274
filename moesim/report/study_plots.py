"""Figures of the co-design studies: gains of changes, fronts with intervals, and what breaks with a million experts."""

from collections.abc import Mapping, Sequence
from typing import Any

_COLORS = ("#1f5fa8", "#d9822b", "#3a8f5c", "#8a4fa3", "#b03a48", "#5b6470", "#b8a12b", "#2b9aa8")


def gain_bars(rows: Sequence[Mapping[str, Any]]):
    """What each change is worth: a panel per model and workload, a bar per change with its interval, best on top.

    Args:
        rows: With ``model``, ``cluster``, ``workload``, ``change``, ``kind``, ``gain``, ``gain_low``, ``gain_high``.

    Returns:
        plotly Figure.
    """
    import plotly.graph_objects as go
    from plotly.subplots import make_subplots

    panels = list(dict.fromkeys((r["model"], r["cluster"], r["workload"]) for r in rows))
    across = min(len(panels), 2) or 1
    down = -(-len(panels) // across) or 1
    figure = make_subplots(rows=down, cols=across, subplot_titles=[f"{m} on {c}, {w}" for m, c, w in panels] or None,
                           horizontal_spacing=0.22, vertical_spacing=0.09)
    kinds = list(dict.fromkeys(r["kind"] for r in rows))
    for place, panel in enumerate(panels):
        part = sorted((r for r in rows if (r["model"], r["cluster"], r["workload"]) == panel), key=lambda r: r["gain"])
        for kind in kinds:
            own = [r for r in part if r["kind"] == kind]
            percent = [100 * (r["gain"] - 1) for r in own]
            figure.add_trace(go.Bar(
                x=percent, y=[r["change"] for r in own], orientation="h", name=kind, legendgroup=kind,
                showlegend=place == 0, marker={"color": _COLORS[kinds.index(kind)]},
                error_x={"type": "data", "symmetric": False, "thickness": 1, "width": 3,
                         "array": [100 * (r["gain_high"] - r["gain"]) for r in own],
                         "arrayminus": [100 * (r["gain"] - r["gain_low"]) for r in own]},
                hovertemplate="%{y}: %{x:+.1f} %<extra></extra>"), row=place // across + 1, col=place % across + 1)
        figure.update_yaxes(categoryorder="array", categoryarray=[r["change"] for r in part], row=place // across + 1,
                            col=place % across + 1)
    figure.update_xaxes(title="throughput of the MoE layers, %", zeroline=True)
    figure.update_layout(title="What a change is worth", template="plotly_white", barmode="overlay",
                         height=200 + 480 * down, legend={"orientation": "h", "y": 1.06, "x": 0.6})
    return figure
