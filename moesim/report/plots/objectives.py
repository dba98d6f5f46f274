"""Draw two objectives of a search, for a look in a notebook; `moesim report` draws the rest."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from moesim.report.columns import column_of

if TYPE_CHECKING:
    import plotly.graph_objects as go

#: colors that people with any color vision tell apart (Okabe and Ito 2008)
_CLOUD, _FRONT = "#9AA3AD", "#0072B2"


def objective_points(
    rows: Sequence[Mapping[str, Any]], front: Sequence[Mapping[str, Any]], x: str, y: str
) -> "go.Figure":
    """Draw trials and their front as points.

    Args:
        rows: Rows of the trials that fit.
        front: Rows of those that no other beats.
        x: Column along x.
        y: Column along y.

    Returns:
        plotly Figure.
    """
    import plotly.graph_objects as go

    figure = go.Figure()
    for name, part, color, size in (
        ("trials that fit", rows, _CLOUD, 5),
        ("front", front, _FRONT, 9),
    ):
        kept = [row for row in part if row.get(x) is not None and row.get(y) is not None]
        figure.add_trace(
            go.Scatter(
                x=[row[x] for row in kept],
                y=[row[y] for row in kept],
                text=[str(row.get("candidate") or row.get("design") or "") for row in kept],
                mode="markers",
                name=name,
                marker={"color": color, "size": size},
            )
        )
    figure.update_layout(
        template="plotly_white", xaxis_title=_labelled(x), yaxis_title=_labelled(y)
    )
    return figure


def _labelled(name: str) -> str:
    known = column_of(name)
    return f"{name}, {known.unit}" if known and known.unit else name
