"""Show where predictions of measured kernels are off: errors by token count, shape and tile.

A class is a system, a dataset, a precision, EP = 1 or more, and fitted or not. Rows of one class
therefore share a calibration.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from moesim.hardware import load_profile
from moesim.measured.kernels.draws import row_tile
from moesim.measured.kernels.scoreboard import FLOOR_MS
from moesim.measured.scores import error_scores

Row = dict[str, Any]
CLASS = ("system", "dataset", "precision", "ep", "fitted")
#: name of a table -> the column its rows are grouped by
BUCKETS = {"tokens": "num_tokens", "shape": "shape", "tile": "tile"}
RANKING_COLUMNS = (
    *("system", "dataset", "precision", "groups", "kendall_tau", "regret_percent"),
    *("regret_p90_percent", "roofline_tau", "roofline_regret_percent"),
    *("evidence", "calibration", "mode", "version"),
)
#: columns of errors and of rankings that the terminal shows, with their headings
ERRORS_SHOWN = {
    "what": "system, dataset, format",
    "mape": "MAPE %",
    "p90": "P90 %",
    "median": "median %",
    "rows": "rows",
    "bias": "bias %",
    "inside": "inside %",
    "roofline_mape": "roofline %",
    "calibration": "calibration",
}
RANKING_SHOWN = {
    "what": "system, dataset, format",
    "groups": "groups",
    "kendall_tau": "tau",
    "regret_percent": "regret %",
    "regret_p90_percent": "P90 %",
    "roofline_tau": "roofline tau",
    "roofline_regret_percent": "roofline regret %",
    "calibration": "calibration",
}


def named(rows: Iterable[Row]) -> list[Row]:
    """Return rows of errors or rankings with ``what`` in front, the name of their class."""
    return [
        {
            "what": " ".join(
                str(row[key]) for key in ("system", "dataset", "precision", "ep") if row.get(key)
            )
            + (" fitted" if row.get("fitted") == "yes" else "")
        }
        | row
        for row in rows
    ]


def described(rows):
    """Add the columns by which rows are grouped: precision, EP class, shape, and the tile that the
    model used.

    Args:
        rows: DataFrame of `moesim.measured.kernels.validate.predicted`.

    Returns:
        The DataFrame with four more columns.
    """
    records = rows.to_dict("records")
    devices = {system: load_profile(system).name for system in rows["system"].unique()}
    return rows.assign(
        precision=rows["moe_dtype"],
        ep=np.where(rows["moe_ep_size"] > 1, "EP>1", "EP=1"),
        shape=[
            f"{r['hidden_size']}x{r['inter_size']}, {r['topk']} of {r['num_experts']}"
            for r in records
        ],
        tile=[str(row_tile(r, devices[r["system"]])) for r in records],
    )


def errors_by(rows, bucket: str, common: Mapping[str, Any]) -> list[Row]:
    """Score rows of at least 50 us by class and one more column.

    Args:
        rows: DataFrame of `described` rows with predictions.
        bucket: Name of the further column.
        common: Columns that are added to every row of the table.

    Returns:
        One row per class and value; ``bias`` is the median signed error in percent.
    """
    table = []
    for key, part in rows[rows["latency_ms"] >= FLOOR_MS].groupby([*CLASS, bucket]):
        named = dict(zip((*CLASS, bucket), key, strict=True))
        predicted, measured = part["predicted_latency_ms"], part["latency_ms"]
        scores = error_scores(predicted.to_numpy(), measured.to_numpy())
        basis = {name: part[name].iloc[0] for name in ("evidence", "calibration")}
        table.append({**named, **scores, **basis, **common})
    return table


def sourced(table: Iterable[Row], rows, common: Mapping[str, Any]) -> list[Row]:
    """Add the evidence and calibration of the predictions to a table by system and dataset.

    Args:
        table: Rows with ``system`` and ``dataset``.
        rows: DataFrame of the predictions.
        common: Columns that are added to every row of the table.
    """
    first = rows.groupby(["system", "dataset"])[["evidence", "calibration"]].first()
    return [row | first.loc[(row["system"], row["dataset"])].to_dict() | common for row in table]


def unseen(table: Sequence[Row]) -> list[Row]:
    """Return the rows of a table whose class was not fitted.

    Args:
        table: Rows of `errors_by`.
    """
    return [row for row in table if not row["fitted"]]
