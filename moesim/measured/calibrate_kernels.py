"""Fit the kernel cost model's parameters to measured rows: ``moesim calibrate kernels``.

One file per framework, since sglang's and vLLM's kernels differ in more than their tiles (and vLLM's benchmark
includes the router's top-k): the simulator prices with sglang's, ``triton-moe``; ``triton-moe-vllm`` predicts vLLM's rows.
Only rows of the groups in ``hw_profiles/silicon/fit_groups.csv`` (A100 and H100) are used, none under 50 us; every
other row of the package stays for scoring. The fit is robust; the scores and the P10 and P90 that become intervals
come from cross validation that leaves out whole shapes. Refitting draws the same rows again and gives the same file.
"""

import csv
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path

import numpy as np

from moesim.costs.calibration import Calibration
from moesim.costs.gpu import WaveKernels
from moesim.errors import UnknownNameError
from moesim.hardware import load_profile
from moesim.measured import silicon
from moesim.measured.fitting import Bounds, robust_fit, write_calibration
from moesim.measured.rows import RowDraws, draw_rows
from moesim.measured.scores import error_scores

#: what they mean is in `moesim.costs.gpu`
BOUNDS: Bounds = {
    "mma_efficiency": (0.9, 0.5, 1.0),
    "iteration_overhead_cycles": (146.0, 1.0, 600.0),
    "block_scale_iteration_cycles": (300.0, 1.0, 1200.0),
    "tile_overhead_cycles": (250.0, 1.0, 5000.0),
    "load_latency_cycles": (1300.0, 200.0, 4000.0),
    "warm_latency_saving": (0.5, 0.01, 0.9),
    "weight_bandwidth_efficiency": (0.95, 0.4, 1.0),
    "short_row_efficiency": (0.75, 0.3, 1.0),
    "activation_bandwidth_efficiency": (0.63, 0.2, 1.0),
    "warm_weight_share": (0.75, 0.01, 1.0),
    "overlap_loss": (0.25, 0.01, 1.0),
    "idle_block_cycles": (300.0, 1.0, 3000.0),
    "masked_block_cycles": (100.0, 1.0, 10000.0),
    "kernel_launch_cycles": (5000.0, 500.0, 20000.0),
    "misaligned_factor": (2.0, 1.0, 6.0),
}
FLOOR_MS = 0.05
FRAMEWORKS = ("sglang", "vllm")
SHAPE = ("hidden_size", "inter_size", "topk", "num_experts")
_GROUP = ("system", "dataset", "kernel_source", "moe_dtype", *SHAPE)
_FOLDS, _ROWS_PER_GROUP, _SEED = 5, 200, 0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FitGroup:
    """Measured rows of one shape on one system, drawn and ready to be priced.

    Attributes:
        system: Such as ``h100_sxm``.
        precision: ``bfloat16`` or ``fp8_block``.
        shape: (hidden, width, top_k, experts).
        draws: Their histograms.
        spread: ndarray of shape (rows,), bool: whether the row has EP > 1.
        measured_s: ndarray of shape (rows,).
    """

    system: str
    precision: str
    shape: tuple[int, ...]
    draws: RowDraws
    spread: np.ndarray
    measured_s: np.ndarray


@cache
def fit_groups() -> dict[tuple, str]:
    """(system, dataset, kernel, precision, *shape) -> which moe_ep_size may be fitted: ``any`` or a number."""
    with (files("moesim_hw_profiles") / "silicon" / "fit_groups.csv").open(encoding="utf-8") as handle:
        return {tuple(int(row[c]) if c in SHAPE else row[c] for c in _GROUP): row["ep"] for row in csv.DictReader(handle)}


def may_fit(row: dict) -> bool:
    """Whether a measured row belongs to the groups that may be fitted."""
    ep = fit_groups().get(tuple(row[c] for c in _GROUP))
    return ep is not None and (ep == "any" or int(ep) == row["moe_ep_size"])


def collect(framework: str) -> list[FitGroup]:
    """Read and draw up to 200 rows of each group of a framework that may be fitted, none under 50 us.

    Raises:
        MeasurementError: The extra ``silicon`` is not installed.
    """
    groups = []
    for key, ep in fit_groups().items():
        item = dict(zip(_GROUP, key, strict=True))
        if not item["dataset"].startswith(framework):
            continue
        table = silicon.load_rows(item["system"], item["dataset"])
        table = table[table["latency_ms"] >= FLOOR_MS]
        for column in ("kernel_source", "moe_dtype", *SHAPE):
            table = table[table[column] == item[column]]
        if ep != "any":
            table = table[table["moe_ep_size"] == int(ep)]
        table = table.sample(min(_ROWS_PER_GROUP, len(table)), random_state=_SEED)
        groups.append(FitGroup(
            system=item["system"], precision=item["moe_dtype"], shape=tuple(item[c] for c in SHAPE),
            draws=draw_rows(table.to_dict("records"), load_profile(item["system"])),
            spread=table["moe_ep_size"].to_numpy() > 1, measured_s=table["latency_ms"].to_numpy() * 1e-3,
        ))
    return groups


def predict(group: FitGroup, parameters: dict[str, float]) -> np.ndarray:
    """Predicted seconds of a group's rows: ndarray of shape (rows,)."""
    calibration = Calibration(name="", parameters=parameters, residuals={}, level="calibrated", digest="")
    return group.draws.price(WaveKernels(profile=load_profile(group.system), calibration=calibration))


def fit(groups: list[FitGroup]) -> dict[str, float]:
    """Fit all parameters; every class of system, precision and EP = 1 or more weighs alike."""
    labels = np.concatenate([[f"{g.system} {g.precision} {s}" for s in g.spread] for g in groups])
    _, of_row, count = np.unique(labels, return_inverse=True, return_counts=True)
    weights = (len(labels) / len(count) / count)[of_row]

    def log_errors(parameters: dict[str, float]) -> np.ndarray:
        return np.concatenate([np.log(predict(g, parameters) / g.measured_s) for g in groups])

    return robust_fit(log_errors, BOUNDS, weights)


def cross_validate(groups: list[FitGroup]) -> list[np.ndarray]:
    """Predictions of each group by a fit that saw none of its shape (five folds over whole shapes)."""
    shapes = sorted({g.shape for g in groups})
    predictions: list[np.ndarray] = [np.empty(0)] * len(groups)
    for fold in range(_FOLDS):
        held = set(shapes[fold::_FOLDS])
        parameters = fit([g for g in groups if g.shape not in held])
        for i, group in enumerate(groups):
            if group.shape in held:
                predictions[i] = predict(group, parameters)
    return predictions


def calibrate(path: Path, framework: str = "sglang") -> dict[str, dict[str, float]]:
    """Fit, cross-validate and write a framework's calibration file; returns the cross-validated scores by class.

    Raises:
        UnknownNameError: A framework other than sglang and vllm.
        MeasurementError: The extra ``silicon`` is not installed.
    """
    if framework not in FRAMEWORKS:
        raise UnknownNameError("framework", framework, FRAMEWORKS)
    groups = collect(framework)
    predictions = cross_validate(groups)
    scores, residuals = {}, {}
    for system, precision in sorted({(g.system, g.precision) for g in groups}):
        chosen = [i for i, g in enumerate(groups) if (g.system, g.precision) == (system, precision)]
        scores[f"{system.replace('_', '-')}-{precision}"] = error_scores(
            np.concatenate([predictions[i] for i in chosen]), np.concatenate([groups[i].measured_s for i in chosen]))
    for precision in sorted({g.precision for g in groups}):
        ratio = np.concatenate([g.measured_s / p for g, p in zip(groups, predictions, strict=True)
                                if g.precision == precision])
        low, high = np.percentile(ratio, [10, 90])
        residuals[precision] = {"low": low, "high": high, "rows": len(ratio), "kind": "cross-validated by shape"}
    keys = [" ".join(str(part) for part in key) + f" ep {ep}" for key, ep in fit_groups().items()
            if key[1].startswith(framework)]
    write_calibration(
        path,
        title=f"{framework}'s Triton fused MoE kernels: waves of tiles, weight and activation streams",
        command=f"moesim calibrate kernels --framework {framework}",
        fitted_on=f"{sum(len(g.measured_s) for g in groups)} rows of {len(groups)} shape groups, at most "
                  f"{_ROWS_PER_GROUP} of each, none under 50 us",
        sources=[f"aiconfigurator-core 0.12, moe_perf.parquet: {', '.join(sorted({k[2] for k in fit_groups() if k[1].startswith(framework)}))}"],
        profiles=sorted({g.system.replace("_", "-") for g in groups}),
        parameters=fit(groups),
        device_factors={},
        residuals=residuals,
        scores=scores,
        fit_groups=keys,
    )
    return scores
