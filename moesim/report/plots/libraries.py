"""Draw which kernel library is fastest where."""

from collections.abc import Mapping, Sequence
from typing import Any


def library_map(rows: Sequence[Mapping[str, Any]]):
    """Draw the fastest library by tokens and experts: a panel per device and format.

    Args:
        rows: Rows of `moesim.advice.libraries.library_rows`.

    Returns:
        plotly Figure.
    """
    import plotly.graph_objects as go
    from plotly.colors import qualitative
    from plotly.subplots import make_subplots

    panels = list(dict.fromkeys((row["device"], row["precision"]) for row in rows))
    names = sorted({row["kernels"] for row in rows})
    columns = min(len(panels), 3) or 1
    lines = -(-len(panels) // columns) or 1
    figure = make_subplots(
        rows=lines,
        cols=columns,
        subplot_titles=[f"{device}, {precision}" for device, precision in panels] or None,
    )
    best = [row for row in rows if row["behind_percent"] == 0.0]
    for number, panel in enumerate(panels):
        own = [row for row in best if (row["device"], row["precision"]) == panel]
        for name in names:
            points = [row for row in own if row["kernels"] == name]
            figure.add_trace(
                go.Scatter(
                    x=[p["num_tokens"] for p in points],
                    y=[p["num_experts"] for p in points],
                    mode="markers",
                    name=name,
                    legendgroup=name,
                    showlegend=bool(points) and not _shown(best, panels[:number], name),
                    marker={
                        "color": qualitative.Dark24[names.index(name) % 24],
                        "size": 16,
                        # a win that the intervals do not bear out is an open symbol
                        "symbol": [
                            "square" if p["wins"] in ("yes", "only") else "square-open"
                            for p in points
                        ],
                    },
                    text=[f"{p['experts_us']:,.0f} us" for p in points],
                    hovertemplate=f"{name}<br>%{{x}} tokens, %{{y}} experts<br>%{{text}}"
                    "<extra></extra>",
                ),
                row=number // columns + 1,
                col=number % columns + 1,
            )
    figure.update_xaxes(type="log", title="tokens", exponentformat="none")
    figure.update_yaxes(type="log", title="experts", exponentformat="none")
    figure.update_layout(
        title="The fastest kernel library; filled where its 80 % interval excludes every other",
        template="plotly_white",
        height=120 + 330 * lines,
    )
    return figure


def _shown(best: Sequence[Mapping[str, Any]], panels: Sequence[tuple], name: str) -> bool:
    """Return whether an earlier panel has shown a library in the legend."""
    return any(
        (row["device"], row["precision"]) in panels for row in best if row["kernels"] == name
    )
