"""Draw placements: heatmaps of strategies by distribution, and layer time while loads drift."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any


def strategy_heatmap(rows: Iterable[Mapping[str, Any]], value: str, title: str):
    """Draw a heatmap of strategies (down) and distributions (across), a panel per cluster (down)
    and number of redundant experts (across).

    Args:
        rows: Rows with ``cluster``, ``num_replicas``, ``distribution``, ``placement`` and the
            value.
        value: Column to show.
        title: Title of the page.

    Returns:
        plotly Figure.
    """
    import plotly.graph_objects as go
    from plotly.subplots import make_subplots

    table = [row for row in rows if row.get(value) is not None]
    clusters, replicas = (
        _in_order(row[key] for row in table) for key in ("cluster", "num_replicas")
    )
    figure = make_subplots(
        rows=max(len(clusters), 1),
        cols=max(len(replicas), 1),
        vertical_spacing=0.12,
        horizontal_spacing=0.12,
        subplot_titles=[f"{c}, {r} redundant" for c in clusters for r in replicas] or None,
    )
    for i, cluster in enumerate(clusters):
        for j, number in enumerate(replicas):
            part = [r for r in table if (r["cluster"], r["num_replicas"]) == (cluster, number)]
            strategies, distributions = (
                _in_order(r[key] for r in part) for key in ("placement", "distribution")
            )
            found = {(r["placement"], r["distribution"]): r[value] for r in part}
            figure.add_trace(
                go.Heatmap(
                    z=[[found.get((s, d)) for d in distributions] for s in strategies],
                    x=distributions,
                    y=strategies,
                    coloraxis="coloraxis",
                    texttemplate="%{z:.2f}",
                    textfont={"size": 9},
                    hovertemplate="%{y}<br>%{x}<br>%{z:.4f}<extra></extra>",
                ),
                row=i + 1,
                col=j + 1,
            )
    figure.update_xaxes(tickangle=-45)
    figure.update_yaxes(autorange="reversed", dtick=1)
    figure.update_layout(
        title=title,
        template="plotly_white",
        height=480 * max(len(clusters), 1) + 100,
        coloraxis={"colorscale": "Viridis"},
    )
    return figure


def drift_lines(rows: Iterable[Mapping[str, Any]]):
    """Draw layer time by step: a panel per cluster, a line per redundancy and interval between
    plans.

    Args:
        rows: Rows by ascending steps with ``cluster``, ``num_replicas``, ``renewed_every``,
            ``step``, ``with_migration_us`` and ``known_us``.

    Returns:
        plotly Figure.
    """
    import plotly.graph_objects as go
    from plotly.colors import qualitative
    from plotly.subplots import make_subplots

    table = list(rows)
    clusters = _in_order(row["cluster"] for row in table)
    figure = make_subplots(rows=1, cols=max(len(clusters), 1), subplot_titles=clusters or None)
    lines = _in_order((row["num_replicas"], row["renewed_every"]) for row in table)
    for j, cluster in enumerate(clusters):
        for number, (replicas, every) in enumerate(lines):
            part = [
                r
                for r in table
                if (r["cluster"], r["num_replicas"], r["renewed_every"])
                == (cluster, replicas, every)
            ]
            when = f"new plan every {every} steps" if every else "first plan kept"
            figure.add_trace(
                go.Scatter(
                    x=[r["step"] for r in part],
                    y=[r["with_migration_us"] for r in part],
                    mode="lines+markers",
                    name=f"{replicas} redundant, {when}",
                    legendgroup=str(number),
                    showlegend=j == 0,
                    line={"color": qualitative.Dark24[number % 24]},
                ),
                row=1,
                col=j + 1,
            )
    figure.update_xaxes(title="step")
    figure.update_yaxes(title="layer time with its share of migration, us", rangemode="tozero")
    figure.update_layout(title="Layer time while loads drift", template="plotly_white", height=550)
    return figure


def _in_order(values: Iterable[Any]) -> Sequence[Any]:
    """Return the different values in order of appearance."""
    return list(dict.fromkeys(values))
