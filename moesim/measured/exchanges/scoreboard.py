"""Score predicted against measured exchanges, without the rows that were fitted."""

from typing import Any

import numpy as np

from moesim.measured.exchanges.batches import is_short
from moesim.measured.exchanges.predict import predict_comm_rows
from moesim.measured.exchanges.table import (
    COLUMNS,
    MEASURED,
    load_comm_rows,
    may_fit,
    quantities,
    systems,
    was_shot,
)
from moesim.measured.scores import error_scores

#: share of a file's rows that must equal another's before it counts as a copy
_COPY = 0.9


def measured_comm_rows():
    """Return all rows of all families and systems in one DataFrame.

    The column ``fitted`` is also true where a row copies another system's row.

    Raises:
        MeasurementError: The extra ``silicon`` is not installed.
    """
    import pandas as pd

    tables = []
    for family in COLUMNS:
        found = [t for name in systems() if len(t := load_comm_rows(family, name))]
        rows = pd.concat(found, ignore_index=True)
        fitted = may_fit(rows) | (was_shot(rows) if family == "nccl" else False)
        tables.append(rows.assign(fitted=fitted | _copied(family, rows)))
    return pd.concat(tables, ignore_index=True)


def _copied(family: str, rows) -> np.ndarray:
    """Return the rows that repeat an earlier system's file to the last digit: H200's DeepEP of
    sglang 0.5.6.post2 is H100's.
    """
    figures = ["dataset", *COLUMNS[family], *MEASURED[family]]
    copied = rows.duplicated(figures)
    whole = copied.groupby([rows["system"], rows["dataset"]]).transform("mean") > _COPY
    return (copied & whole).to_numpy()


def _subclass(family: str, rows) -> np.ndarray:
    """Return the class within its family in which each row is scored: ndarray of str, shape
    (rows,).
    """
    if family == "nccl":
        return np.where(
            is_short(rows), rows["op_name"] + " < 64 KiB", rows["op_name"] + " >= 64 KiB"
        )
    if family == "nvl72_alltoall":
        return ("EP" + rows["moe_ep_size"].astype(int).astype(str)).to_numpy()
    per_node = np.array([systems()[name].ranks_per_node for name in rows["system"]])
    rare = np.where(rows["num_topk"].isin([1, 2, 22]), " top-k 1, 2, 22", "")
    ranks = (rows["node_num"].astype(int) * per_node).astype(str)
    return ("EP" + ranks + np.where(rows["system"] == "h100_sxm", rare, "")).to_numpy(dtype=object)


def comm_scores(rows, predictions: dict[str, np.ndarray]) -> list[dict[str, Any]]:
    """Return the errors by family, quantity, system and class, of rows that have measured columns.

    Args:
        rows: DataFrame with the families' columns, index 0 to N - 1; rows whose ``fitted`` is true
            are left out.
        predictions: Predicted columns, from `moesim.measured.exchanges.predict.predict_comm_rows`.

    Returns:
        One row per class: rows, median, mape, p90 and bias in percent, and the percentage inside
        the 80 % interval.
    """
    import pandas as pd

    table = []
    for family, measured in MEASURED.items():
        for quantity, (column, us) in zip(quantities(family), measured.items(), strict=True):
            if column not in rows:
                continue
            values = pd.to_numeric(rows[column], errors="coerce").to_numpy(dtype=np.float64) * us
            scored = (rows["family"] == family).to_numpy() & (values > 0) & np.isfinite(values)
            if "fitted" in rows:
                scored &= ~rows["fitted"].to_numpy(dtype=bool)
            at = np.flatnonzero(scored)
            if not len(at):
                continue
            part, name = rows.iloc[at], f"{quantity}_us" if quantity else "us"
            keys = part["system"].to_numpy(dtype=str), _subclass(family, part).astype(str)
            for system, label in sorted(set(zip(*keys, strict=True))):
                where = at[(keys[0] == system) & (keys[1] == label)]
                real = values[where]
                inside = (real >= predictions[f"low_{name}"][where]) & (
                    real <= predictions[f"high_{name}"][where]
                )
                table.append(
                    {
                        "family": family,
                        "quantity": quantity or "-",
                        "system": system,
                        "class": label,
                        **error_scores(predictions[f"predicted_{name}"][where], real),
                        "inside": 100.0 * float(inside.mean()),
                        "calibration": predictions["calibration"][where[0]],
                    }
                )
    return table


def scoreboard(mode: str) -> list[dict[str, Any]]:
    """Score every row of the package that was not fitted.

    Args:
        mode: ``calibrated`` (few-shot factors where there are any) or ``spec``.
    """
    rows = measured_comm_rows()
    return comm_scores(rows, predict_comm_rows(rows, few_shot=mode == "calibrated"))
