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


def fronts(parts: Mapping[str, tuple[Sequence[Mapping[str, Any]], Sequence[Mapping[str, Any]]]]):
    """Loss against throughput: every trial that fits, and fronts with the intervals of both.

    Args:
        parts: Name -> (trials, Pareto front), rows as in trials.csv; those of a front with a ``group``, whose members
            intervals do not tell apart.

    Returns:
        plotly Figure.
    """
    import plotly.graph_objects as go

    figure = go.Figure()
    # many trials: drawn on the graphics card, without intervals
    for number, (name, (trials, _)) in enumerate(parts.items()):
        figure.add_trace(go.Scattergl(
            x=[t["layer_tokens_per_s_per_device"] for t in trials], y=[t["loss"] for t in trials], mode="markers",
            name=f"{name}: trials that fit" if len(parts) > 1 else "trials that fit", hoverinfo="skip",
            marker={"size": 4, "opacity": 0.3, "color": _COLORS[number] if len(parts) > 1 else "#9aa3ad"}))
    for number, (name, (_, front)) in enumerate(parts.items()):
        tokens = [t["layer_tokens_per_s_per_device"] for t in front]
        slower, faster = ([t["layer_time_us"] / t[f"layer_time_{end}_us"] for t in front] for end in ("high", "low"))
        colors: Any = _COLORS[number]
        if len(parts) == 1:
            colors = [_COLORS[t["group"] % len(_COLORS)] for t in front]
        figure.add_trace(go.Scatter(
            x=tokens, y=[t["loss"] for t in front], mode="markers",
            name=f"{name}: front" if len(parts) > 1 else "front",
            marker={"size": 9, "color": colors, "line": {"width": 1, "color": "white"}},
            error_x={"type": "data", "symmetric": False, "thickness": 1, "width": 0, "color": "rgba(60,60,60,0.35)",
                     "array": [x * (f - 1) for x, f in zip(tokens, faster, strict=True)],
                     "arrayminus": [x * (1 - f) for x, f in zip(tokens, slower, strict=True)]},
            error_y={"type": "data", "symmetric": False, "thickness": 1, "width": 0, "color": "rgba(60,60,60,0.35)",
                     "array": [t["loss_high"] - t["loss"] for t in front],
                     "arrayminus": [t["loss"] - t["loss_low"] for t in front]},
            text=[f"{t['candidate']}<br>{t['cluster']}<br>group {t['group']}" for t in front],
            hovertemplate="%{text}<br>%{x:,.0f} tokens/s/device, loss %{y:.4f}<extra></extra>"))
    figure.update_xaxes(title="tokens per second and device, one MoE layer", type="log", exponentformat="none",
                        dtick="D2")
    figure.update_yaxes(title="loss, nats (estimate with its interval)")
    title = next(iter(parts)) if len(parts) == 1 else " against ".join(parts)
    figure.update_layout(title=f"{title}: Pareto front, coloured by what intervals tell apart" if len(parts) == 1
                         else title, template="plotly_white", height=750, legend={"orientation": "h", "y": -0.12})
    return figure
