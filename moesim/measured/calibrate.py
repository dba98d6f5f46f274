"""Fit the kernel cost model's few parameters to measured rows, and write the calibration file.

Only rows of the groups in ``hw_profiles/silicon/fit_groups.csv`` are used; every other row of the package stays for
scoring. The fit is robust (soft-L1 on log error); the scores and the P10 and P90 in the file come from cross
validation that leaves out whole shapes.
"""

import csv
from dataclasses import dataclass, replace
from importlib.resources import files

import numpy as np

from moesim.costs.calibration import Calibration, load_calibration
from moesim.costs.gpu import WaveKernels
from moesim.hardware import load_profile
from moesim.measured import silicon
from moesim.measured.rows import RowDraws, draw_rows
from moesim.measured.scores import error_scores

#: first guess and bounds of every parameter; what they mean is in `moesim.costs.gpu`
BOUNDS = {
    "mma_efficiency": (0.95, 0.5, 1.0),
    "iteration_overhead_cycles": (146.0, 0.0, 600.0),
    "block_scale_iteration_cycles": (300.0, 0.0, 1200.0),
    "tile_overhead_cycles": (250.0, 0.0, 5000.0),
    "load_latency_cycles": (1300.0, 200.0, 4000.0),
    "warm_latency_saving": (0.5, 0.0, 0.9),
    "weight_bandwidth_efficiency": (0.95, 0.4, 1.0),
    "short_row_efficiency": (0.75, 0.3, 1.0),
    "activation_bandwidth_efficiency": (0.63, 0.2, 1.0),
    "warm_weight_share": (0.75, 0.0, 1.0),
    "overlap_loss": (0.25, 0.0, 1.0),
    "idle_block_cycles": (300.0, 0.0, 3000.0),
    "masked_block_cycles": (1000.0, 0.0, 10000.0),
    "kernel_launch_us": (2.8, 0.5, 10.0),
    "misaligned_factor": (1.5, 1.0, 2.0),
}
FLOOR_MS = 0.05
_FOLDS = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class FitGroup:
    """Rows of one shape on one system that are priced and fitted together."""

    system: str
    precision: str
    key: tuple[int, int, int, int]
    draws: RowDraws
    measured_s: np.ndarray


def fit_keys() -> list[dict[str, str]]:
    """The groups that may be fitted, as written in ``fit_groups.csv``."""
    with (files("moesim_hw_profiles") / "silicon" / "fit_groups.csv").open(encoding="utf-8") as handle:
        return list(csv.DictReader(handle))


def may_fit(row: dict) -> bool:
    """Whether a measured row belongs to the groups that may be fitted."""
    return any(
        group["device"] == row["system"] and group["dataset"] == row["dataset"]
        and group["kernel_source"] == row["kernel_source"] and group["moe_dtype"] == row["moe_dtype"]
        and all(int(group[c]) == row[c] for c in ("hidden_size", "inter_size", "topk", "num_experts"))
        and (group["ep"] == "any" or int(group["ep"]) == row["moe_ep_size"])
        for group in fit_keys()
    )


def collect(rows_per_group: int, seed: int = 0) -> list[FitGroup]:
    """Read and draw the rows that may be fitted, at most ``rows_per_group`` of each group, none under 50 us.

    Raises:
        MeasurementError: The extra ``silicon`` is not installed.
    """
    groups = []
    for item in fit_keys():
        table = silicon.load_rows(item["device"], item["dataset"])
        chosen = table[(table["kernel_source"] == item["kernel_source"]) & (table["moe_dtype"] == item["moe_dtype"])
                       & (table["latency_ms"] >= FLOOR_MS)]
        for column in ("hidden_size", "inter_size", "topk", "num_experts"):
            chosen = chosen[chosen[column] == int(item[column])]
        if item["ep"] != "any":
            chosen = chosen[chosen["moe_ep_size"] == int(item["ep"])]
        if len(chosen) > rows_per_group:
            chosen = chosen.sample(rows_per_group, random_state=seed)
        profile = load_profile(item["device"])
        key = tuple(int(item[c]) for c in ("hidden_size", "inter_size", "topk", "num_experts"))
        groups.append(FitGroup(system=item["device"], precision=item["moe_dtype"], key=key,  # type: ignore[arg-type]
                               draws=draw_rows(chosen.to_dict("records"), profile),
                               measured_s=chosen["latency_ms"].to_numpy() * 1e-3))
    return groups


def predict(group: FitGroup, parameters: dict[str, float]) -> np.ndarray:
    """Predicted seconds of a group's rows."""
    profile = load_profile(group.system)
    calibration = Calibration(name="", parameters=parameters, residuals={}, level="calibrated", digest="")
    return group.draws.price(WaveKernels(profile=profile, calibration=calibration))


def fit(groups: list[FitGroup], fixed: dict[str, float] | None = None) -> dict[str, float]:
    """Fit all parameters not ``fixed`` to the groups; every group weighs alike."""
    from scipy.optimize import least_squares

    fixed = fixed or {}
    free = [name for name in BOUNDS if name not in fixed]
    scale = np.array([BOUNDS[name][0] for name in free])

    def residuals(x: np.ndarray) -> np.ndarray:
        parameters = {**fixed, **dict(zip(free, x * scale, strict=True))}
        return np.concatenate([np.log(predict(g, parameters) / g.measured_s) / np.sqrt(len(g.measured_s))
                               for g in groups])

    per_row = 1.0 / np.sqrt(np.mean([len(g.measured_s) for g in groups]))
    solution = least_squares(residuals, np.ones(len(free)), loss="soft_l1", f_scale=0.1 * per_row,
                             bounds=(np.array([BOUNDS[n][1] for n in free]) / scale,
                                     np.array([BOUNDS[n][2] for n in free]) / scale), diff_step=1e-3)
    return {**fixed, **dict(zip(free, (solution.x * scale).tolist(), strict=True))}


def cross_validate(groups: list[FitGroup]) -> list[tuple[FitGroup, np.ndarray]]:
    """Predictions of every group by a fit that saw none of its shape: leaves out whole shapes, five folds."""
    shapes = sorted({g.key for g in groups})
    out = []
    for fold in range(_FOLDS):
        held = set(shapes[fold::_FOLDS])
        parameters = fit([g for g in groups if g.key not in held])
        out += [(g, predict(g, parameters)) for g in groups if g.key in held]
    return out


def summary(predictions: list[tuple[FitGroup, np.ndarray]]) -> tuple[dict, dict]:
    """Scores and residual quantiles by system and precision, of cross-validated predictions."""
    scores, residuals = {}, {}
    classes = sorted({(g.system, g.precision) for g, _ in predictions})
    for system, precision in classes:
        rows = [(p, g.measured_s) for g, p in predictions if (g.system, g.precision) == (system, precision)]
        predicted, measured = (np.concatenate(part) for part in zip(*rows, strict=True))
        scores[f"{system}.{precision}"] = error_scores(predicted, measured)
    for precision in sorted({c[1] for c in classes}):
        ratio = np.concatenate([g.measured_s / p for g, p in predictions if g.precision == precision])
        low, high = np.percentile(ratio, [10, 90])
        residuals[precision] = {"low": float(low), "high": float(high), "rows": len(ratio)}
    return scores, residuals


def recalibrated(name: str, device: str, parameters: dict[str, float]) -> Calibration:
    """A calibration with other parameters, for a what-if."""
    return replace(load_calibration(name, device), parameters=parameters)
