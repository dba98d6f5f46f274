"""The scoreboard: predicted against measured kernels, fitted and not fitted apart, beside a plain roofline."""

from typing import Any

import numpy as np

from moesim.errors import MeasurementError
from moesim.hardware import Profile, load_profile
from moesim.measured import silicon
from moesim.measured.calibrate_kernels import FLOOR_MS, may_fit
from moesim.measured.rows import PRECISION, RowDraws, draw_rows, row_kernels
from moesim.measured.scores import error_scores
from moesim.measured.silicon_source import DATASETS

_SEED = 1


def roofline_s(draws: RowDraws, profile: Profile) -> np.ndarray:
    """A plain roofline of each row, no efficiencies: the larger of FLOPs over peak and bytes over bandwidth."""
    shape, load = draws.shape, draws.load
    per_row = (shape.num_up + 1) * shape.hidden * shape.width
    flops = 2.0 * load.rows_D * per_row / profile.peak(shape.fmt)
    moved = load.active_D * per_row * shape.weight_bytes
    moved = moved + load.rows_D * (2 * shape.hidden * shape.input_bytes + (shape.num_up + 1) * shape.width * 2.0)
    solo = np.maximum(flops, moved / profile.hbm_bandwidth_bytes_per_s)
    return np.bincount(draws.row_of_draw, weights=solo) / np.bincount(draws.row_of_draw)


def scoreboard(system: str, limit: int) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Score all datasets of a system.

    Args:
        system: Such as ``h100_sxm``.
        limit: Rows per dataset, format, EP class and fit class, drawn with a fixed seed; 0 for all.

    Returns:
        Score rows, and every scored row with its prediction in ms.

    Raises:
        MeasurementError: The extra is not installed, or no data of that system is known here.
    """
    profile = load_profile(system)
    if profile.name not in DATASETS:
        raise MeasurementError(f"measured rows: known for {', '.join(DATASETS)}, not for {profile.name}")
    scores, out = [], []
    for dataset in DATASETS[profile.name]:
        kernels = row_kernels(dataset, profile)
        table = silicon.load_rows(profile.name.replace("-", "_"), dataset)
        table = table[(table["latency_ms"] >= FLOOR_MS) & table["moe_dtype"].isin(PRECISION)]
        table = table.assign(fitted=[may_fit(r) for r in table.to_dict("records")],
                             ep=np.where(table["moe_ep_size"] > 1, "EP>1", "EP=1"))
        for (dtype, ep, fitted), part in table.groupby(["moe_dtype", "ep", "fitted"]):
            chosen = part.sample(limit, random_state=_SEED) if 0 < limit < len(part) else part
            draws = draw_rows(chosen.to_dict("records"), profile)
            predicted, measured = draws.price(kernels) * 1e3, chosen["latency_ms"].to_numpy()
            roofline = error_scores(roofline_s(draws, profile) * 1e3, measured)
            scores.append({"dataset": dataset, "precision": dtype, "ep": ep, "may be fitted": bool(fitted),
                           **error_scores(predicted, measured), "roofline mape": roofline["mape"]})
            out += [row | {"predicted_latency_ms": p, "evidence": "simulated", "calibration": kernels.calibration.level}
                    for row, p in zip(chosen.to_dict("records"), predicted, strict=True)]
    return scores, out
