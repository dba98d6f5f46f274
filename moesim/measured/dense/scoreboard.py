"""Score the prices of GEMMs and attention on measured rows: ``moesim validate dense`` and
``... attention``.

A row of a group that was fitted never scores. Rows of 20 us and more are scored apart from shorter
ones, decodes of 1,024 tokens and more apart from shorter ones, and windows apart from both. A
roofline of the same device stands beside every score.
"""

from typing import Any

import numpy as np

from moesim.measured.dense.fit import FLOOR_S
from moesim.measured.dense.predict import predict_rows
from moesim.measured.dense.price import is_windowed
from moesim.measured.dense.table import Kind, load_all
from moesim.measured.scores import error_scores
from moesim.units import US

Array = np.ndarray
#: decodes of so many tokens are scored apart
_LONG = 1024
KEYS = ("op", "system", "dataset", "format")


def scoreboard(kind: Kind, names: tuple[str, ...]) -> list[dict[str, Any]]:
    """Score all rows of the package that were not fitted.

    Args:
        kind: ``dense`` or ``attention``.
        names: Systems.

    Raises:
        MeasurementError: The extra ``silicon`` is not installed, or there are no such rows.
    """
    rows = load_all(kind, names)
    rows = rows[~rows["fitted"].to_numpy(dtype=bool)].reset_index(drop=True)
    return scores(rows, predict_rows(rows))


def scores(rows, predictions: dict[str, Array]) -> list[dict[str, Any]]:
    """Return the errors of rows that were measured, by `KEYS` and class.

    Args:
        rows: DataFrame with `KEYS`, sizes and ``seconds``, index 0 to N - 1; rows without a time
            are left out.
        predictions: Columns of `moesim.measured.dense.predict.predict_rows`.

    Returns:
        One row per class: rows, median, mape, p90 and bias in percent, the percentage inside the
        80 % interval, and the mean error of a roofline in percent.
    """
    labels = _classes(rows)
    table = []
    known = rows["seconds"].to_numpy(dtype=np.float64) > 0
    for key, part in rows[known].groupby([*KEYS, labels[known]], sort=True):
        at = part.index.to_numpy()
        real = part["seconds"].to_numpy() / US
        inside = (real >= predictions["low_us"][at]) & (real <= predictions["high_us"][at])
        roofline = error_scores(predictions["roofline_us"][at], real)
        table.append(
            {
                **dict(zip((*KEYS, "class"), key, strict=True)),
                **error_scores(predictions["predicted_us"][at], real),
                "inside": 100.0 * float(inside.mean()),
                "roofline_mape": roofline["mape"],
                "grade": predictions["grade"][at[0]],
            }
        )
    return table


def _classes(rows) -> Array:
    """Return the class in which each row is scored: ndarray of str, shape (rows,)."""
    seconds = rows["seconds"].to_numpy(dtype=np.float64)
    size = np.where(seconds >= FLOOR_S, ">= 20 us", "< 20 us")
    decode = rows["op"].str.endswith("decode").to_numpy(dtype=bool)
    if decode.any():
        length = rows["isl"].to_numpy(dtype=np.float64) + rows["step"].to_numpy(dtype=np.float64)
        long = np.where(length >= _LONG, "L >= 1024, ", "L < 1024, ")
        size = np.where(decode, np.char.add(long, size), size)
    return np.where(is_windowed(rows), np.char.add("window, ", size), size)
