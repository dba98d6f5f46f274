"""Draw the co-design studies: gains of changes, fronts with intervals, and what breaks with a
million experts.
"""

from collections.abc import Mapping, Sequence
from typing import Any

_COLORS = ("#1f5fa8", "#d9822b", "#3a8f5c", "#8a4fa3", "#b03a48", "#5b6470", "#b8a12b", "#2b9aa8")


def gain_bars(rows: Sequence[Mapping[str, Any]]):
    """Draw what each change is worth: a panel per model and workload, a bar per change with its
    interval, the best on top.

    Args:
        rows: Rows with ``model``, ``cluster``, ``workload``, ``change``, ``kind``, ``gain``,
            ``gain_low``, ``gain_high``.

    Returns:
        plotly Figure.
    """
    import plotly.graph_objects as go
    from plotly.subplots import make_subplots

    panels = list(dict.fromkeys((r["model"], r["cluster"], r["workload"]) for r in rows))
    across = min(len(panels), 2) or 1
    down = -(-len(panels) // across) or 1
    figure = make_subplots(
        rows=down,
        cols=across,
        subplot_titles=[f"{m} on {c}, {w}" for m, c, w in panels] or None,
        horizontal_spacing=0.22,
        vertical_spacing=0.09,
    )
    kinds = list(dict.fromkeys(r["kind"] for r in rows))
    for place, panel in enumerate(panels):
        part = sorted(
            (r for r in rows if (r["model"], r["cluster"], r["workload"]) == panel),
            key=lambda r: r["gain"],
        )
        for kind in kinds:
            own = [r for r in part if r["kind"] == kind]
            percent = [100 * (r["gain"] - 1) for r in own]
            figure.add_trace(
                go.Bar(
                    x=percent,
                    y=[r["change"] for r in own],
                    orientation="h",
                    name=kind,
                    legendgroup=kind,
                    showlegend=place == 0,
                    marker={"color": _COLORS[kinds.index(kind)]},
                    error_x={
                        "type": "data",
                        "symmetric": False,
                        "thickness": 1,
                        "width": 3,
                        "array": [100 * (r["gain_high"] - r["gain"]) for r in own],
                        "arrayminus": [100 * (r["gain"] - r["gain_low"]) for r in own],
                    },
                    hovertemplate="%{y}: %{x:+.1f} %<extra></extra>",
                ),
                row=place // across + 1,
                col=place % across + 1,
            )
        figure.update_yaxes(
            categoryorder="array",
            categoryarray=[r["change"] for r in part],
            row=place // across + 1,
            col=place % across + 1,
        )
    figure.update_xaxes(title="throughput of the MoE layers, %", zeroline=True)
    figure.update_layout(
        title="What a change is worth",
        template="plotly_white",
        barmode="overlay",
        height=200 + 480 * down,
        legend={"orientation": "h", "y": 1.06, "x": 0.6},
    )
    return figure


def fronts(
    parts: Mapping[str, tuple[Sequence[Mapping[str, Any]], Sequence[Mapping[str, Any]]]],
    *,
    rate: str,
    label: str,
    title: str,
):
    """Draw loss against a rate: every trial that fits, and fronts with the intervals of both.

    Args:
        parts: Name -> (trials, Pareto front), rows as in trials.csv; those of a front also have the
            interval of the rate, in columns that end in ``_low`` and ``_high``.
        rate: Column of the rate.
        label: Label of its axis.
        title: Title of the figure.

    Returns:
        plotly Figure.
    """
    import plotly.graph_objects as go

    figure = go.Figure()
    for color, (name, (trials, _)) in zip(_COLORS, parts.items(), strict=False):
        # there are many trials: the browser's graphics card draws them, without intervals
        figure.add_trace(
            go.Scattergl(
                x=[t[rate] for t in trials],
                y=[t["loss"] for t in trials],
                mode="markers",
                hoverinfo="skip",
                name=f"{name}: trials that fit",
                marker={"size": 4, "opacity": 0.3, "color": color},
            )
        )
    for number, (name, (_, front)) in enumerate(parts.items()):
        figure.add_trace(
            go.Scatter(
                x=[t[rate] for t in front],
                y=[t["loss"] for t in front],
                mode="markers",
                name=f"{name}: front",
                marker={
                    "size": 9,
                    "line": {"width": 1, "color": "white"},
                    "symbol": "diamond" if number else "circle",
                    "color": _COLORS[number],
                },
                error_x=_error_bars(front, rate),
                error_y=_error_bars(front, "loss"),
                text=[f"{t['candidate']}<br>{t['cluster']}" for t in front],
                hovertemplate="%{text}<br>%{x:,.4g}, loss %{y:,.5g}<extra></extra>",
            )
        )
    figure.update_xaxes(title=label, type="log", exponentformat="none", dtick="D2")
    figure.update_yaxes(title="loss, nats (estimate with its interval)")
    figure.update_layout(
        title=title, template="plotly_white", height=750, legend={"orientation": "h", "y": -0.12}
    )
    return figure


def _error_bars(rows: Sequence[Mapping[str, Any]], column: str) -> dict[str, Any]:
    """Return the bars of a column's interval."""
    return {
        "type": "data",
        "symmetric": False,
        "thickness": 1,
        "width": 0,
        "color": "rgba(60,60,60,0.35)",
        "array": [row[f"{column}_high"] - row[column] for row in rows],
        "arrayminus": [row[column] - row[f"{column}_low"] for row in rows],
    }


def lines_by_experts(rows: Sequence[Mapping[str, Any]], metrics: Mapping[str, str]):
    """Draw metrics over the number of experts: a row of panels per metric, a column per cluster, a
    color per gate.

    Args:
        rows: Rows with ``cluster``, ``scale``, ``gate_kind``, ``num_experts`` and the metrics.
        metrics: Column -> title.

    Returns:
        plotly Figure.
    """
    import plotly.graph_objects as go
    from plotly.subplots import make_subplots

    clusters = list(dict.fromkeys(row["cluster"] for row in rows))
    scales = list(dict.fromkeys(row["scale"] for row in rows))
    gates = list(dict.fromkeys(row["gate_kind"] for row in rows))
    figure = make_subplots(
        rows=len(metrics),
        cols=len(clusters),
        shared_xaxes=True,
        shared_yaxes=True,
        column_titles=clusters,
        vertical_spacing=0.03,
        horizontal_spacing=0.02,
    )
    for across, cluster in enumerate(clusters, start=1):
        for down, metric in enumerate(metrics, start=1):
            for gate in gates:
                for scale in scales:
                    points = sorted(
                        (
                            r
                            for r in rows
                            if (r["cluster"], r["gate_kind"], r["scale"]) == (cluster, gate, scale)
                        ),
                        key=lambda r: r["num_experts"],
                    )
                    name = f"{gate}, x {scale:,}"
                    figure.add_trace(
                        go.Scatter(
                            x=[p["num_experts"] for p in points],
                            y=[p[metric] for p in points],
                            mode="lines+markers",
                            name=name,
                            legendgroup=name,
                            showlegend=across == down == 1,
                            marker={"size": 5},
                            line={
                                "color": _COLORS[gates.index(gate)],
                                "dash": ("solid", "dash", "dot")[scales.index(scale) % 3],
                            },
                            hovertemplate=f"{name}<br>%{{x:,}} experts: %{{y:.3g}}<extra></extra>",
                        ),
                        row=down,
                        col=across,
                    )
    figure.update_xaxes(
        type="log",
        exponentformat="none",
        tickvals=[1024, 16384, 262144],
        ticktext=["1,024", "16,384", "262,144"],
    )
    for down, (metric, title) in enumerate(metrics.items(), start=1):
        logarithmic = metric.endswith(("_gib", "_efficiency"))
        figure.update_yaxes(
            type="log" if logarithmic else "linear",
            exponentformat="none",
            row=down,
            dtick=1 if logarithmic else None,
        )
        figure.update_yaxes(title=title, row=down, col=1)
    figure.update_xaxes(title="experts", row=len(metrics))
    figure.update_layout(
        title="A thousand to a million experts",
        template="plotly_white",
        height=260 * len(metrics),
        legend={"orientation": "h", "y": -0.06},
    )
    return figure
