"""Draw what experts in the memory of the host cost, by the share that stays on the device."""

from collections.abc import Mapping, Sequence
from typing import Any


def offload_lines(rows: Sequence[Mapping[str, Any]], title: str):
    """Draw layer time by resident share: a panel per device (across) and tokens (down), a line per
    form and recall of the experts fetched ahead; a point that does not fit in memory is open.

    Args:
        rows: Rows with ``cluster``, ``num_tokens_per_device``, ``form``, ``resident_fraction``,
            ``layer_time_us``, ``peak_memory_gib`` and ``fits``.
        title: Title of the page.

    Returns:
        plotly Figure.
    """
    import plotly.graph_objects as go
    from plotly.colors import qualitative
    from plotly.subplots import make_subplots

    devices, tokens, forms = (
        list(dict.fromkeys(row[key] for row in rows))
        for key in ("cluster", "num_tokens_per_device", "form")
    )
    figure = make_subplots(
        rows=max(len(tokens), 1),
        cols=max(len(devices), 1),
        subplot_titles=[f"{d}, {t} tokens" for t in tokens for d in devices] or None,
    )
    for number, (count, device) in enumerate((t, d) for t in tokens for d in devices):
        for place, form in enumerate(forms):
            own = [
                row
                for row in rows
                if (row["cluster"], row["num_tokens_per_device"], row["form"])
                == (device, count, form)
            ]
            figure.add_trace(
                go.Scatter(
                    x=[row["resident_fraction"] for row in own],
                    y=[row["layer_time_us"] for row in own],
                    name=form,
                    legendgroup=form,
                    showlegend=number == 0,
                    mode="lines+markers",
                    line={"color": qualitative.Dark24[place % 24]},
                    marker={"symbol": ["circle" if row["fits"] else "circle-open" for row in own]},
                    text=[f"{row['peak_memory_gib']:.0f} GiB" for row in own],
                    hovertemplate=f"{form}<br>%{{x}} resident<br>%{{y:,.0f}} us<br>%{{text}}"
                    "<extra></extra>",
                ),
                row=number // len(devices) + 1,
                col=number % len(devices) + 1,
            )
    figure.update_xaxes(title="share of experts on the device")
    figure.update_yaxes(type="log", title="layer, us")
    figure.update_layout(title=title, template="plotly_white", height=120 + 330 * len(tokens))
    return figure
