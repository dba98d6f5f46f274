"""Draw a timeline: the tracks of a few processes one below the other, a color for each category."""

from collections.abc import Sequence
from html import escape

from moesim.errors import ConfigError
from moesim.report.slices import Sheet, Slice, processes

#: colors that people with any color vision tell apart (Okabe and Ito 2008)
_PALETTE = (
    "#0072B2",
    "#E69F00",
    "#009E73",
    "#D55E00",
    "#56B4E9",
    "#CC79A7",
    "#B8A800",
    "#8A8F98",
)
_US = 1e6
#: pixels of the drawing, of its margin for names, of a row and of a character
_WIDTH, _MARGIN, _ROW, _CHARACTER = 960, 190, 26, 6.5


def timeline_figure(sheet: Sheet, names: Sequence[str] | None = None):
    """Draw slices as bars over time.

    Args:
        sheet: The timeline.
        names: Names of the processes that are drawn; by default the first two ranks.

    Returns:
        plotly Figure.

    Raises:
        ConfigError: No slice belongs to them.
    """
    import plotly.graph_objects as go

    slices = _shown(sheet, names)
    rows = _rows(slices)
    chart = go.Figure()
    for category, color in _colors(slices).items():
        part = [one for one in slices if one.category == category]
        chart.add_trace(
            go.Bar(
                orientation="h",
                name=category,
                y=[_row(one) for one in part],
                base=[one.begin_s * _US for one in part],
                x=[one.seconds * _US for one in part],
                marker={"color": color, "line": {"width": 0.5, "color": "white"}},
                text=[_label(one) for one in part],
                hovertext=[f"{one.name}: {one.seconds * _US:,.1f} us" for one in part],
                hoverinfo="text",
            )
        )
    chart.update_layout(
        title=sheet.title,
        barmode="overlay",
        template="plotly_white",
        xaxis_title="us",
        yaxis={"categoryorder": "array", "categoryarray": rows[::-1]},
        height=150 + _ROW * len(rows),
    )
    return chart


def timeline_svg(sheet: Sheet, names: Sequence[str] | None = None) -> str:
    """Draw the same as the text of an SVG file, which needs no script.

    Args:
        sheet: The timeline.
        names: Names of the processes that are drawn; by default the first two ranks.

    Raises:
        ConfigError: No slice belongs to them.
    """
    slices = _shown(sheet, names)
    rows, colors = _rows(slices), _colors(slices)
    begin_s = min(one.begin_s for one in slices)
    span_s = max(one.end_s for one in slices) - begin_s
    scale = (_WIDTH - _MARGIN - 10) / span_s
    height = _ROW * (len(rows) + 2)
    found = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{height}" '
        f'viewBox="0 0 {_WIDTH} {height}" font-family="sans-serif" font-size="11">',
        f'<rect width="{_WIDTH}" height="{height}" fill="white"/>',
    ]
    for at, row in enumerate(rows):
        y = _ROW * (at + 1)
        found.append(f'<text x="4" y="{y - 8}">{escape(row)}</text>')
        found.append(f'<path d="M {_MARGIN} {y} H {_WIDTH - 10}" stroke="#ddd"/>')
    for one in slices:
        x = _MARGIN + (one.begin_s - begin_s) * scale
        width, y = one.seconds * scale, _ROW * rows.index(_row(one)) + 3
        found.append(
            f'<rect x="{x:.2f}" y="{y}" width="{width:.2f}" height="{_ROW - 6}" '
            f'fill="{colors[one.category]}"><title>{escape(one.name)}: '
            f"{one.seconds * _US:,.1f} us</title></rect>"
        )
        if len(label := _label(one)) * _CHARACTER < width:
            found.append(f'<text x="{x + 3:.2f}" y="{y + 14}" fill="white">{escape(label)}</text>')
    x, y = float(_MARGIN), _ROW * (len(rows) + 1)
    for category, color in colors.items():
        found.append(f'<rect x="{x:.0f}" y="{y - 16}" width="10" height="10" fill="{color}"/>')
        found.append(f'<text x="{x + 14:.0f}" y="{y - 7}">{escape(category)}</text>')
        x += 30 + len(category) * _CHARACTER
    found.append(f'<text x="4" y="{y - 7}">{span_s * _US:,.0f} us</text>')
    return "\n".join([*found, "</svg>", ""])


def _shown(sheet: Sheet, names: Sequence[str] | None) -> list[Slice]:
    sheet = sheet.in_lanes()
    if names is None:
        names = [name for name in processes(sheet.slices) if "rank " in name][:2]
    slices = [one for one in sheet.slices if one.process in names]
    if not slices:
        known = ", ".join(processes(sheet.slices)[:8]) or "none"
        raise ConfigError(f"timeline: expected processes among {known}, got {', '.join(names)}")
    return slices


def _row(one: Slice) -> str:
    return f"{one.process} {one.track}"


def _rows(slices: Sequence[Slice]) -> list[str]:
    """Return the names of rows: processes in order, their tracks by name."""
    order = processes(slices)
    tracks = {(order.index(one.process), one.track): _row(one) for one in slices}
    return [tracks[key] for key in sorted(tracks)]


def _colors(slices: Sequence[Slice]) -> dict[str, str]:
    """Return category -> color, in order of time."""
    ordered = sorted(slices, key=lambda one: one.begin_s)
    categories = dict.fromkeys(one.category for one in ordered)
    return {name: _PALETTE[at % len(_PALETTE)] for at, name in enumerate(categories)}


def _label(one: Slice) -> str:
    batch = one.args.get("micro_batch")
    return one.category if batch is None else f"{one.category} {batch}"
