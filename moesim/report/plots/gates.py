"""Draw gates over the number of experts; `moesim.report.plots.fidelity.write_html` writes the
pages.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

_DASHES = {
    "flat": "solid",
    "group_limited": "dot",
    "two_level": "dash",
    "product_key": "dashdot",
    "low_rank": "longdash",
}
Row = Mapping[str, Any]


def gate_times(rows: Iterable[Row]):
    """Draw gate time over experts, both logarithmic: a panel per device, hidden size and tokens;
    crosses are measured.

    Args:
        rows: Rows with ``device``, ``hidden_size``, ``tokens``, ``top_k``, ``kind``, ``gate``,
            ``num_experts``, ``gate_us``, and ``measured_us`` where it was measured.

    Returns:
        plotly Figure.
    """
    return _lines(
        list(rows),
        "gate_us",
        "gate, us",
        "Gate time over the number of experts; crosses are measured",
        log=True,
    )


def gate_shares(rows: Iterable[Row]):
    """Draw the share of the simulated layer time that the gate takes, in the panels of
    `gate_times`.

    Args:
        rows: Rows of `gate_times` that also have ``gate_share``.

    Returns:
        plotly Figure.
    """
    return _lines(
        list(rows),
        "gate_share",
        "gate / layer",
        "Share of the gate in the layer's time, simulated",
        log=False,
    )


def simulated_against_measured(rows: Iterable[Row]):
    """Draw simulated against measured gate time, both logarithmic.

    Args:
        rows: Rows of `gate_times`, all of them measured.

    Returns:
        plotly Figure.
    """
    import plotly.graph_objects as go

    rows = list(rows)
    figure = go.Figure()
    for kind in _kinds(rows):
        part = [row for row in rows if row["kind"] == kind]
        words = [
            f"{r['gate']} E={r['num_experts']} H={r['hidden_size']} T={r['tokens']} k={r['top_k']}"
            for r in part
        ]
        figure.add_trace(
            go.Scatter(
                x=[r["measured_us"] for r in part],
                y=[r["gate_us"] for r in part],
                mode="markers",
                name=kind,
                text=words,
                marker={"size": 6, "opacity": 0.7},
                hovertemplate=(
                    "%{text}<br>measured %{x:.0f} us, simulated %{y:.0f} us<extra></extra>"
                ),
            )
        )
    ends = [min(r["measured_us"] for r in rows), max(r["measured_us"] for r in rows)]
    for factor, dash in ((1.0, "solid"), (0.85, "dot"), (1 / 0.85, "dot")):
        figure.add_trace(
            go.Scatter(
                x=ends,
                y=[factor * end for end in ends],
                mode="lines",
                hoverinfo="skip",
                name="equal" if factor == 1 else f"x {factor:.2f}",
                line={"color": "black", "width": 1, "dash": dash},
            )
        )
    figure.update_xaxes(type="log", title="measured, us", dtick=1)
    figure.update_yaxes(type="log", title="simulated, us", dtick=1)
    figure.update_layout(
        title=f"Gates on this CPU: simulated against measured, {len(rows)} points",
        template="plotly_white",
        height=850,
    )
    return figure


def _lines(rows: Sequence[Row], column: str, title: str, heading: str, *, log: bool):
    import plotly.graph_objects as go
    from plotly.colors import qualitative
    from plotly.subplots import make_subplots

    panels = sorted({_panel(row) for row in rows}, key=lambda panel: (panel[0], panel[1:]))
    names = [f"{device}, H {hidden:,}, {tokens:,} tokens" for device, hidden, tokens in panels]
    figure = make_subplots(
        rows=-(-len(panels) // 2), cols=min(len(panels), 2), subplot_titles=names
    )
    colors = dict(zip(_lines_of(rows), qualitative.Dark24, strict=False))
    shown: set[str] = set()
    for number, panel in enumerate(panels):
        at = {"row": number // 2 + 1, "col": number % 2 + 1}
        for name in _lines_of(rows):
            part = [row for row in rows if _panel(row) == panel and _line(row) == name]
            if not part:
                continue
            x = [row["num_experts"] for row in part]
            figure.add_trace(
                go.Scatter(
                    x=x,
                    y=[row[column] for row in part],
                    mode="lines+markers",
                    name=name,
                    legendgroup=name,
                    showlegend=name not in shown,
                    marker={"size": 4},
                    line={"color": colors[name], "dash": _DASHES[part[0]["kind"]]},
                    text=[row["gate"] for row in part],
                    hovertemplate=(
                        f"%{{text}}<br>%{{x:,}} experts: %{{y:.3g}} {title}<extra></extra>"
                    ),
                ),
                **at,
            )
            shown.add(name)
            if log and any(row.get("measured_us") for row in part):
                figure.add_trace(
                    go.Scatter(
                        x=x,
                        y=[row["measured_us"] for row in part],
                        mode="markers",
                        name=f"{name}, measured",
                        legendgroup=name,
                        showlegend=False,
                        marker={"symbol": "x", "size": 8, "color": colors[name]},
                        hovertemplate="measured %{y:.0f} us<extra></extra>",
                    ),
                    **at,
                )
    figure.update_xaxes(type="log", title="experts")
    figure.update_yaxes(
        title=title, type="log" if log else "linear", rangemode="normal" if log else "tozero"
    )
    figure.update_layout(title=heading, template="plotly_white", height=400 * -(-len(panels) // 2))
    return figure


def _panel(row: Row) -> tuple[str, int, int]:
    return row["device"], row["hidden_size"], row["tokens"]


def _line(row: Row) -> str:
    """Return the name of a row's line: the kind of gate, and for product keys also heads and width,
    which do not change with the number of experts.
    """
    return row["gate"] if row["kind"] == "product_key" else row["kind"]


def _lines_of(rows: Sequence[Row]) -> list[str]:
    return sorted({_line(row) for row in rows})


def _kinds(rows: Sequence[Row]) -> list[str]:
    return sorted({row["kind"] for row in rows})
