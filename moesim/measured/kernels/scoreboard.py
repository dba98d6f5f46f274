"""Score predicted against measured kernels, fitted and not fitted separately, next to a plain
roofline.
"""

from typing import Any

import numpy as np

from moesim.hardware import Profile
from moesim.measured.kernels.draws import RowDraws
from moesim.measured.kernels.family_records import TRITON
from moesim.measured.scores import error_scores, ranking

FLOOR_MS = 0.05
_GROUP = ("system", "dataset", "fit_family", "moe_dtype", "ep", "fitted", "short")
#: columns that candidates share if they ran under the same conditions: candidates are architecture
#: x TP x EP at one hidden size, tokens and distribution
_CONDITIONS = ("system", "dataset", "moe_dtype", "hidden_size", "num_tokens", "distribution")
_MIN_CANDIDATES = 6
_SAME = 0.05


def roofline_s(draws: RowDraws, profile: Profile) -> np.ndarray:
    """Return a plain roofline of each row without efficiencies: the larger of FLOPs over peak and
    bytes over bandwidth.
    """
    shape, load = draws.shape, draws.load
    per_row = (shape.num_up + 1) * shape.hidden * shape.width
    flops = 2.0 * load.rows_D * per_row / profile.peak(shape.fmt)
    moved = load.active_D * per_row * shape.weight_bytes
    moved = moved + load.rows_D * (
        2 * shape.hidden * shape.input_bytes + (shape.num_up + 1) * shape.width * 2.0
    )
    solo = np.maximum(flops, moved / profile.hbm_bandwidth_bytes_per_s)
    return np.bincount(draws.row_of_draw, weights=solo) / np.bincount(draws.row_of_draw)


def error_table(rows) -> list[dict[str, Any]]:
    """Return the errors by system, dataset, precision, EP = 1 or more, fitted or not, and under 50
    us or not.

    Args:
        rows: DataFrame of predicted rows with ``latency_ms`` and ``fitted``.

    Returns:
        One row per class, with the share of measurements inside the 80 % interval.
    """
    rows = rows.assign(
        fit_family=rows.get("fit_family", TRITON),
        ep=np.where(rows["moe_ep_size"] > 1, "EP>1", "EP=1"),
        short=rows["latency_ms"] < FLOOR_MS,
    )
    table = []
    for key, part in rows.groupby(list(_GROUP)):
        measured = part["latency_ms"].to_numpy()
        named = dict(zip(_GROUP, key, strict=True))
        inside = (measured >= part["low_ms"]) & (measured <= part["high_ms"])
        table.append(
            {
                "system": named["system"],
                "dataset": named["dataset"],
                "family": named["fit_family"],
                "precision": named["moe_dtype"],
                "ep": named["ep"],
                "us": "< 50" if named["short"] else ">= 50",
                "fitted": bool(named["fitted"]),
                **error_scores(part["predicted_latency_ms"].to_numpy(), measured),
                "inside": 100.0 * float(inside.mean()),
                "roofline_mape": error_scores(part["roofline_ms"].to_numpy(), measured)["mape"],
                "calibration": part["calibration"].iloc[0],
            }
        )
    return table


def ranking_table(rows) -> list[dict[str, Any]]:
    """Return how well candidates are ranked under equal conditions, by system, dataset and
    precision, next to the roofline.

    Candidates are architecture x TP x EP at one hidden size, token count and distribution; groups
    have at least six. Pairs closer than 5 % are ties and are ignored. Regret is in GPU-seconds:
    latency x TP x EP of the predicted best over that of the measured best.
    """
    rows = rows[rows["latency_ms"] >= FLOOR_MS]
    found: dict[tuple, list[tuple[float, ...]]] = {}
    for key, part in rows.groupby(list(_CONDITIONS)):
        if len(part) < _MIN_CANDIDATES:
            continue
        devices = (part["moe_tp_size"] * part["moe_ep_size"]).to_numpy()
        measured = part["latency_ms"].to_numpy()
        row: list[float] = []
        for column in ("predicted_latency_ms", "roofline_ms"):
            predicted = part[column].to_numpy()
            cost = ranking(predicted * devices, measured * devices)
            assert cost is not None
            row += [_tau(predicted, measured), cost["regret"]]
        found.setdefault(key[:3], []).append(tuple(row))
    table = []
    for (system, dataset, precision), values in sorted(found.items()):
        array = np.array(values)
        table.append(
            {
                "system": system,
                "dataset": dataset,
                "precision": precision,
                "groups": len(array),
                "kendall_tau": _mean(array[:, 0]),
                "regret_percent": 100 * float(array[:, 1].mean()),
                "regret_p90_percent": 100 * float(np.percentile(array[:, 1], 90)),
                "roofline_tau": _mean(array[:, 2]),
                "roofline_regret_percent": 100 * float(array[:, 3].mean()),
            }
        )
    return table


def _mean(values: np.ndarray) -> float | None:
    """Return the mean of the known values; None if there are none."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else None


def _tau(predicted: np.ndarray, measured: np.ndarray) -> float:
    """Return Kendall's tau over pairs measured more than 5 % apart; NaN if there are none."""
    i, j = np.triu_indices(len(measured), 1)
    apart = np.abs(np.log(measured[i] / measured[j])) > np.log1p(_SAME)
    agree = np.sign(predicted[i] - predicted[j]) * np.sign(measured[i] - measured[j])
    return float(agree[apart].mean()) if apart.any() else float("nan")
