"""Draw predicted against measured kernel times, as pages that need no network."""

from collections.abc import Iterable, Mapping, Sequence
from math import log10
from pathlib import Path
from typing import Any

from moesim.files.output import write_file
from moesim.report.embedded import figure_page

_MAX_POINTS = 5000
_SEED = 0
#: end of the heatmap's color scale, in percent; larger errors are off the scale
_SCALE_PERCENT = 40.0
_FLOOR_MS = 0.05
_DASHES = ("solid", "dash", "dot", "dashdot")
_PANELS = ("precision", "ep")


def write_html(path: Path, figure) -> Path:
    """Write a plotly figure as a page of its own, the whole file or nothing.

    Its title is that of the figure, or else the name of the file in words.

    Args:
        path: The page; its folder is created if missing.
        figure: The plotly Figure.

    Raises:
        ConfigError: The file cannot be written.
    """
    title = figure.layout.title.text or path.stem.replace("_", " ")
    return write_file(path, figure_page(figure, title))


def error_by_tokens(errors: Iterable[Mapping[str, Any]]):
    """Draw the mean absolute error by token count: a panel per precision and EP class, a line per
    system and dataset.

    Args:
        errors: Rows by ascending tokens with ``system``, ``dataset``, ``precision``, ``ep``,
            ``num_tokens`` and ``mape``.

    Returns:
        plotly Figure.
    """
    import plotly.graph_objects as go

    errors = list(errors)
    figure, panels = _panels(errors, shared_yaxes=True, vertical_spacing=0.1)
    lines = sorted({(e["system"], e["dataset"]) for e in errors})
    styles = _styles(lines)
    shown = set()
    for panel, (row, col) in panels.items():
        for line in lines:
            points = [
                e for e in errors if _panel(e) == panel and (e["system"], e["dataset"]) == line
            ]
            if not points:
                continue
            color, dash = styles[line]
            name = " ".join(line)
            figure.add_trace(
                go.Scatter(
                    x=[p["num_tokens"] for p in points],
                    y=[p["mape"] for p in points],
                    mode="lines+markers",
                    name=name,
                    legendgroup=name,
                    showlegend=line not in shown,
                    line={"color": color, "dash": dash},
                    marker={"size": 4},
                    customdata=[p["rows"] for p in points],
                    hovertemplate=(
                        f"{name}<br>%{{x}} tokens: %{{y:.1f}} %<br>%{{customdata}} "
                        "rows<extra></extra>"
                    ),
                ),
                row=row,
                col=col,
            )
            shown.add(line)
    ticks = [4**i for i in range(8)]
    figure.update_xaxes(
        type="log", title="tokens", tickvals=ticks, ticktext=[f"{tick:,}" for tick in ticks]
    )
    figure.update_yaxes(title="mean |error|, %", rangemode="tozero")
    figure.update_layout(
        title=(
            "Error of predicted kernel latency by token count: rows of at least 50 us, never fitted"
        ),
        template="plotly_white",
        height=850,
    )
    return figure


def predicted_against_measured(rows):
    """Draw predicted against measured latency, both logarithmic, for at most 5,000 rows (fixed
    seed).

    Args:
        rows: DataFrame of predicted rows with ``latency_ms``.

    Returns:
        plotly Figure.
    """
    import plotly.graph_objects as go

    if len(rows) > _MAX_POINTS:
        rows = rows.sample(_MAX_POINTS, random_state=_SEED)
    figure = go.Figure()
    systems = sorted(rows["system"].unique())
    styles = _styles([(system, "") for system in systems])
    for system in systems:
        part = rows[rows["system"] == system]
        words = [
            f"{r['dataset']} {r['moe_dtype']} T={r['num_tokens']} h={r['hidden_size']} "
            f"w={r['inter_size']} {r['topk']} of {r['num_experts']} tp{r['moe_tp_size']} "
            f"ep{r['moe_ep_size']}"
            for r in part.to_dict("records")
        ]
        figure.add_trace(
            go.Scatter(
                x=part["latency_ms"].tolist(),
                y=part["predicted_latency_ms"].tolist(),
                mode="markers",
                name=system,
                marker={"size": 4, "opacity": 0.6, "color": styles[system, ""][0]},
                text=words,
                hovertemplate=(
                    "%{text}<br>measured %{x:.4f} ms, predicted %{y:.4f} "
                    "ms<extra>%{fullData.name}</extra>"
                ),
            )
        )
    ends = [float(rows["latency_ms"].min()), float(rows["latency_ms"].max())]
    for factor, dash in ((1.0, "solid"), (0.8, "dot"), (1.25, "dot")):
        name = "equal" if factor == 1 else f"x {factor:g}"
        figure.add_trace(
            go.Scatter(
                x=ends,
                y=[factor * end for end in ends],
                mode="lines",
                name=name,
                line={"color": "black", "width": 1, "dash": dash},
                hoverinfo="skip",
            )
        )
    figure.add_vline(x=_FLOOR_MS, line={"color": "grey", "width": 1, "dash": "dash"})
    # an annotation on a logarithmic axis is placed by its exponent
    figure.add_annotation(
        x=log10(_FLOOR_MS), y=1, yref="paper", xanchor="left", showarrow=False, text="50 us"
    )
    figure.update_xaxes(type="log", title="measured, ms", exponentformat="none", dtick=1)
    figure.update_yaxes(type="log", title="predicted, ms", exponentformat="none", dtick=1)
    figure.update_layout(
        title=f"Predicted against measured latency: {len(rows):,} rows drawn of all",
        template="plotly_white",
        height=850,
        legend={"itemsizing": "constant"},
    )
    return figure


def error_by_shape(errors: Iterable[Mapping[str, Any]]):
    """Draw the median signed error as heatmaps, a panel per precision and EP class: shapes down,
    systems and datasets across.

    Args:
        errors: Rows with ``system``, ``dataset``, ``precision``, ``ep``, ``shape``, ``rows`` and
            ``bias``.

    Returns:
        plotly Figure.
    """
    import plotly.graph_objects as go

    errors = list(errors)
    figure, panels = _panels(
        errors, shared_yaxes=True, shared_xaxes=True, vertical_spacing=0.05, horizontal_spacing=0.03
    )
    shapes = sorted({e["shape"] for e in errors}, key=_natural)
    columns = sorted({f"{e['system']} {e['dataset']}" for e in errors})
    for panel, (row, col) in panels.items():
        found = {
            (e["shape"], f"{e['system']} {e['dataset']}"): e for e in errors if _panel(e) == panel
        }
        cells = [[found.get((shape, column)) for column in columns] for shape in shapes]
        figure.add_trace(
            go.Heatmap(
                z=[[None if cell is None else cell["bias"] for cell in line] for line in cells],
                x=columns,
                y=shapes,
                coloraxis="coloraxis",
                texttemplate="%{z:.0f}",
                textfont={"size": 9},
                customdata=[
                    [None if cell is None else cell["rows"] for cell in line] for line in cells
                ],
                hovertemplate=(
                    "%{y}<br>%{x}<br>median %{z:+.1f} %<br>%{customdata} rows<extra></extra>"
                ),
            ),
            row=row,
            col=col,
        )
    figure.update_xaxes(tickangle=-90)
    figure.update_yaxes(autorange="reversed", dtick=1)
    figure.update_layout(
        title=(
            "Median signed error by shape, %: rows of at least 50 us, never fitted; red predicts "
            "too slow"
        ),
        template="plotly_white",
        height=1300,
        coloraxis={
            "colorscale": "RdBu_r",
            "cmin": -_SCALE_PERCENT,
            "cmax": _SCALE_PERCENT,
            "cmid": 0,
            "colorbar": {"title": "%"},
        },
    )
    return figure


def _panel(error: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(error[key] for key in _PANELS)


def _panels(errors: Sequence[Mapping[str, Any]], **options: Any):
    """Make a figure with panels by precision (down) and EP class (across), and locate them."""
    from plotly.subplots import make_subplots

    down, across = (sorted({e[key] for e in errors}) for key in _PANELS)
    figure = make_subplots(
        rows=max(len(down), 1),
        cols=max(len(across), 1),
        subplot_titles=[f"{p}, {e}" for p in down for e in across] or None,
        **options,
    )
    return figure, {
        (p, e): (i + 1, j + 1) for i, p in enumerate(down) for j, e in enumerate(across)
    }


def _styles(lines: Sequence[tuple[str, str]]) -> dict[tuple[str, str], tuple[str, str]]:
    """Choose a color per system, and a dash pattern per dataset of the system."""
    from plotly.colors import qualitative

    systems = sorted({system for system, _ in lines})
    colors = dict(zip(systems, qualitative.Dark24, strict=False))
    own = {system: [line for line in lines if line[0] == system] for system in systems}
    return {
        line: (colors[line[0]], _DASHES[own[line[0]].index(line) % len(_DASHES)]) for line in lines
    }


def _natural(shape: str) -> tuple[tuple[int, str], ...]:
    """Return a sort key by which numbers in a name compare as numbers."""
    import re

    return tuple((int(part) if part.isdigit() else 0, part) for part in re.split(r"(\d+)", shape))
