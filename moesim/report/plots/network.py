"""Draw the figures of the network studies: granularity and scaling."""

from collections.abc import Mapping, Sequence
from typing import Any


def granularity_errors(rows: Sequence[Mapping[str, Any]]):
    """Draw the signed error of device granularity by cluster: a panel per topology, a color per
    traffic.

    Args:
        rows: Rows with ``topology``, ``cluster``, ``traffic``, ``micro_batches`` and
            ``error_percent``.

    Returns:
        plotly Figure.
    """
    import plotly.graph_objects as go
    from plotly.colors import qualitative
    from plotly.subplots import make_subplots

    topologies = list(dict.fromkeys(row["topology"] for row in rows))
    traffics = list(dict.fromkeys(row["traffic"] for row in rows))
    figure = make_subplots(
        rows=1, cols=max(len(topologies), 1), subplot_titles=topologies or None, shared_yaxes=True
    )
    for column, topology in enumerate(topologies, start=1):
        for number, traffic in enumerate(traffics):
            for parts, symbol in ((1, "circle"), (2, "diamond-open")):
                points = [
                    row
                    for row in rows
                    if (row["topology"], row["traffic"], row["micro_batches"])
                    == (topology, traffic, parts)
                ]
                name = f"{traffic}, {parts} micro-batch" + ("es" if parts > 1 else "")
                figure.add_trace(
                    go.Scatter(
                        x=[p["cluster"] for p in points],
                        y=[p["error_percent"] for p in points],
                        mode="markers",
                        name=name,
                        legendgroup=name,
                        showlegend=column == 1,
                        marker={"color": qualitative.Dark24[number], "symbol": symbol, "size": 8},
                        hovertemplate=f"%{{x}}<br>{name}<br>%{{y:+.2f}} %<extra></extra>",
                    ),
                    row=1,
                    col=column,
                )
    figure.update_yaxes(title="layer time, device over pair granularity - 1, %", col=1)
    figure.update_layout(
        title="One transfer per device against one per pair", template="plotly_white", height=650
    )
    return figure


def scaling_lines(rows: Sequence[Mapping[str, Any]], panels: Mapping[str, str]):
    """Draw the cost of a simulation by devices, both logarithmic: a panel per measure, a line per
    topology and engine.

    Args:
        rows: Rows with ``topology``, ``routing``, ``engine``, ``num_devices`` and the panels'
            columns.
        panels: Column -> title.

    Returns:
        plotly Figure.
    """
    import plotly.graph_objects as go
    from plotly.colors import qualitative
    from plotly.subplots import make_subplots

    figure = make_subplots(rows=1, cols=len(panels), subplot_titles=list(panels.values()))
    topologies = list(dict.fromkeys(row["topology"] for row in rows))
    engines = list(dict.fromkeys(row["engine"] for row in rows))
    lines = list(dict.fromkeys((row["topology"], row["engine"]) for row in rows))
    for column, what in enumerate(panels, start=1):
        for topology, engine in lines:
            points = [row for row in rows if (row["topology"], row["engine"]) == (topology, engine)]
            name = f"{topology} {engine}"
            figure.add_trace(
                go.Scatter(
                    x=[p["num_devices"] for p in points],
                    y=[p[what] for p in points],
                    mode="lines+markers",
                    name=name,
                    legendgroup=name,
                    showlegend=column == 1,
                    line={
                        "color": qualitative.Dark24[topologies.index(topology)],
                        "dash": ("solid", "dash", "dot", "dashdot")[engines.index(engine) % 4],
                    },
                    hovertemplate=f"{name}<br>%{{x}} devices: %{{y:.3g}}<extra></extra>",
                ),
                row=1,
                col=column,
            )
    figure.update_xaxes(
        type="log", title="devices", tickvals=[8 * 4**i for i in range(6)] + [16384]
    )
    figure.update_yaxes(type="log", exponentformat="none")
    figure.update_layout(
        title="An all-to-all, simulated: cost by size", template="plotly_white", height=650
    )
    return figure
