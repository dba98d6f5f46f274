"""Draw charts as SVG and PDF with matplotlib: the records that the page draws, for papers.

Text stays text (SVG) or is embedded as TrueType (PDF), so that it can be searched and edited.
"""

import io
import textwrap
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from moesim.errors import ConfigError, printable
from moesim.files.output import refused, replace_file, writable_folder
from moesim.page.charts import (
    PALETTE,
    Axis,
    BarChart,
    Chart,
    HeatChart,
    MapChart,
    ParallelChart,
    XYChart,
    heights,
    thinned,
)

_FORMATS = ("svg", "pdf")
_SYMBOLS = {
    "circle": "o", "square": "s", "diamond": "D", "star": "*", "x": "X", "triangle-up": "^",
}  # fmt: skip
#: settings of all figures; the hash makes SVG files alike from run to run
_STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "moesim",
    "pdf.fonttype": 42,
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e3e6ea",
    "legend.frameon": False,
}
#: files say no date, so that the same study gives the same files
_METADATA = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}
_LINKS = ("#B9BEC6", "#56B4E9", "#0072B2", "#E69F00", "#D55E00")
#: width of a figure in inches
_WIDTH = 7.0


def check_matplotlib() -> None:
    """Refuse figures where matplotlib is missing.

    Raises:
        ConfigError: It is.
    """
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise ConfigError(
            "--figures: expected matplotlib, got none: pip install 'moesim[figures]'"
        ) from None


def write_figures(charts: Iterable[Chart], folder: Path) -> list[str]:
    """Write each chart as an SVG and a PDF file.

    Args:
        charts: The charts.
        folder: The folder; it is created if missing.

    Returns:
        The names of the files without their ends.

    Raises:
        ConfigError: matplotlib is missing, or a file cannot be written.
    """
    check_matplotlib()
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    writable_folder(folder)
    names = []
    with matplotlib.rc_context(_STYLE):
        for chart in charts:
            figure = Figure(layout=ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.08))
            FigureCanvasAgg(figure)
            _DRAWN[chart.kind](figure, chart)
            figure.suptitle(_said(chart.title), fontsize=10, x=0.01, ha="left")
            for end in _FORMATS:
                content = io.BytesIO()
                figure.savefig(content, format=end, metadata=_METADATA[end])
                path = folder / f"{chart.key}.{end}"
                try:
                    replace_file(path, content.getvalue())
                except OSError as error:
                    raise refused(path, error) from None
            names.append(chart.key)
    return names


def _said(text: str) -> str:
    """Return a text that matplotlib does not read as mathematics."""
    return printable(text).replace("$", r"\$")


def _color(name: str) -> str:
    return PALETTE[name][0]


def _along(axes: Any, axis: Axis, which: str) -> None:
    """Label an axis, and set its scale or the names of its positions."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    getattr(axes, f"set_{which}label")(_said(axis.label))
    one = getattr(axes, f"{which}axis")
    if axis.names:
        one.set_ticks(range(len(axis.names)), [_said(name) for name in axis.names])
    elif axis.log:
        getattr(axes, f"set_{which}scale")("log")
        one.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        one.set_minor_formatter(NullFormatter())
        one.set_major_formatter(FuncFormatter(lambda value, _: _short(value)))
    else:
        one.set_major_formatter(FuncFormatter(lambda value, _: _short(value)))


def _short(value: float) -> str:
    """Return 4292710 as 4.293M."""
    for unit, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= unit:
            return f"{value / unit:.4g}{letter}"
    return f"{value:.4g}"


def _legend(figure: Any, axes: Any, title: str | None = None) -> None:
    handles, _ = axes.get_legend_handles_labels()
    if handles:
        figure.legend(loc="outside lower center", ncols=4, title=title, fontsize=8)


def _xy(figure: Any, chart: XYChart) -> None:
    figure.set_size_inches(_WIDTH, 4.6)
    axes = figure.subplots()
    if chart.equal:
        every = np.concatenate([np.asarray(s.x) for s in chart.series])
        every = np.concatenate([every, *(np.asarray(s.y) for s in chart.series)])
        ends = [every.min(), every.max()]
        axes.plot(ends, ends, ":", color=_color("muted"), linewidth=1, label="equal")
    for s in chart.series:
        x, y, color = np.asarray(s.x), np.asarray(s.y), _color(s.color)
        if s.cloud:
            kept = thinned(len(x), chart.most)
            name = f"{s.name} ({len(kept):,} of {len(x):,} drawn)" if len(kept) < len(x) else s.name
            axes.plot(
                x[kept], y[kept], "o", color=color, markersize=s.size / 1.6, alpha=0.4,
                markeredgewidth=0, label=_said(name),
            )  # fmt: skip
        elif s.mode != "markers":
            style = "steps-post" if s.mode == "steps" else "default"
            axes.plot(x, y, color=color, drawstyle=style, label=_said(s.name))
        else:
            bars = {
                f"{along}err": np.abs([at - np.asarray(low), np.asarray(high) - at])
                for along, at, low, high in (
                    ("x", x, s.x_low, s.x_high),
                    ("y", y, s.y_low, s.y_high),
                )
                if low is not None
            }
            axes.errorbar(
                x, y, fmt=_SYMBOLS[s.symbol], color=color, markersize=s.size / 1.7,
                markeredgecolor="white", markeredgewidth=0.6, elinewidth=0.7, ecolor=f"{color}88",
                label=_said(s.name), **bars,
            )  # fmt: skip
    _along(axes, chart.x, "x")
    _along(axes, chart.y, "y")
    _legend(figure, axes)


def _bars(figure: Any, chart: BarChart) -> None:
    parts, count = len(chart.parts), len(chart.rows)
    figure.set_size_inches(_WIDTH, 1.6 + count * (0.3 if chart.stacked else 0.16 * (parts + 1)))
    axes = figure.subplots()
    place, left = np.arange(count), np.zeros(count)
    thick = 0.75 if chart.stacked else 0.8 / parts
    for number, (name, values) in enumerate(chart.parts.items()):
        at = place if chart.stacked else place - 0.4 + thick * (number + 0.5)
        color, width = _color(chart.colors[name]), np.asarray(values, dtype=float)
        if chart.stacked:
            axes.barh(
                at, width, thick, left=left, color=color, edgecolor="white", linewidth=0.5,
                label=_said(name),
            )  # fmt: skip
            left = left + width
        else:
            axes.barh(at, width, thick, color=color, label=_said(name))
    axes.set_yticks(place, [_said(row) for row in chart.rows])
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")
    axes.margins(x=0)
    _along(axes, chart.x, "x")
    _legend(figure, axes)


def _heat(figure: Any, chart: HeatChart) -> None:
    figure.set_size_inches(_WIDTH * 0.75, 3.6)
    axes = figure.subplots()
    axes.grid(visible=False)
    z = np.asarray(chart.z, dtype=float)
    shown = axes.imshow(z, cmap="cividis", vmin=0, aspect="auto", interpolation="nearest")
    axes.set_xlabel(_said(chart.x.label))
    axes.set_ylabel(_said(chart.y.label))
    figure.colorbar(shown, label=_said(chart.label))


def _map(figure: Any, chart: MapChart) -> None:
    from matplotlib.collections import LineCollection

    figure.set_size_inches(_WIDTH, 4.2)
    axes = figure.subplots()
    axes.axis("off")
    low = -1.0
    wide = np.linspace(0.8, 2.2, len(_LINKS))
    for number, edge in enumerate(chart.edges):
        own = [((a, b), (c, d)) for a, b, c, d, load in chart.links if low < load <= edge]
        if own:
            since = "up to" if low < 0 else f"{low:g} to"
            axes.add_collection(
                LineCollection(
                    own, colors=_LINKS[number], linewidths=wide[number], label=f"{since} {edge:g} %"
                )
            )
        low = edge
    nodes = [(x, y, value) for x, y, value in chart.nodes.values() if value is not None]
    x, y, values = (np.array(column, dtype=float) for column in zip(*nodes, strict=True))
    shown = axes.scatter(
        x, y, c=values, cmap="cividis", vmin=0, s=70 if len(nodes) <= 128 else 20, zorder=3,
        edgecolors="#5a6472", linewidths=0.6,
    )  # fmt: skip
    others = [(x, y) for x, y, value in chart.nodes.values() if value is None]
    if others:
        axes.scatter(
            *zip(*others, strict=True), marker="s", s=60, zorder=3, facecolors="white",
            edgecolors="#5a6472",
        )  # fmt: skip
    axes.autoscale_view()
    figure.colorbar(shown, label=_said(chart.label), shrink=0.8)
    _legend(figure, axes, title=_said(chart.load_label))


def _parallel(figure: Any, chart: ParallelChart) -> None:
    figure.set_size_inches(max(_WIDTH, 1.15 * len(chart.axes)), 4.6)
    axes = figure.subplots()
    axes.axis("off")
    at_AN = heights(chart)
    place = np.arange(len(chart.axes))
    seen: set[str] = set()
    for number, color in enumerate(chart.colors):
        role = chart.names[color]
        faint = color == "sky"
        axes.plot(
            place, at_AN[:, number], color=_color(color), alpha=0.5 if faint else 1.0,
            linewidth=0.7 if faint else 2.0, label=None if role in seen else _said(role),
        )  # fmt: skip
        seen.add(role)
    for number, axis in enumerate(chart.axes):
        axes.plot([number, number], [0, 1], color="#c3c9d1", linewidth=1, zorder=0)
        label = "\n".join(map(_said, textwrap.wrap(axis.label, 15)))
        axes.text(number, 1.08, label, ha="center", va="bottom", fontsize=8)
        values = np.asarray(chart.values[number], dtype=float)
        last = max(len(axis.names) - 1, 1)
        ticks = [(i / last, name) for i, name in enumerate(axis.names)] or [
            (0.0, _short(values.min())),
            (1.0, _short(values.max())),
        ]
        for height, text in ticks:
            axes.text(number + 0.04, height + 0.015, _said(text), fontsize=6.5, color="#5a6472")
    axes.set_ylim(-0.03, 1.05)
    _legend(figure, axes)


_DRAWN: dict[str, Callable[[Any, Any], None]] = {
    "xy": _xy,
    "bars": _bars,
    "heat": _heat,
    "map": _map,
    "parallel": _parallel,
}

__all__ = ["check_matplotlib", "write_figures"]
