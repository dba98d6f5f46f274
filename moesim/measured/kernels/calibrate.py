"""Fit the kernel cost model's parameters to measured rows: ``moesim calibrate kernels``.

There is one file per framework, since sglang's and vLLM's kernels differ in more than their tiles,
and vLLM's benchmark includes the router's top-k. The simulator prices with sglang's file,
``triton-moe``; ``triton-moe-vllm`` predicts vLLM's rows. Only rows of the groups in
``hw_profiles/silicon/fit_groups.csv`` (A100 and H100) are used, none under 50 us
(`moesim.measured.kernels.groups`); every other row of the package is kept for scoring. The fit is
robust. The scores, and the P10 and P90 that become intervals, come from cross-validation that
leaves out whole shapes (`moesim.measured.kernels.residuals`); what else a price crosses is told by
`moesim.measured.kernels.crossing_costs`. Refitting draws the same rows again and gives the same
file.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from moesim.costs.calibration import Calibration, generation_of
from moesim.costs.devices.gpu import WaveKernels
from moesim.errors import UnknownNameError
from moesim.hardware import load_profile
from moesim.measured.fitting import Bounds, Fitted, few_shot_fit, robust_fit, write_calibration
from moesim.measured.kernels.groups import (
    ROWS_PER_GROUP,
    SHAPE,
    FitGroup,
    Predictions,
    collect,
    few_shot_groups,
    few_shot_rows,
    fit_groups,
)
from moesim.measured.kernels.residuals import HeldOutRow, cells_of, few_shot_spread
from moesim.measured.scores import error_scores

#: first guess and limits of the parameters, which `moesim.costs.devices.gpu` explains
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
    "overlap_loss": (0.25, 0.01, 1.0),
    "idle_block_cycles": (300.0, 1.0, 3000.0),
    "masked_block_cycles": (100.0, 1.0, 10000.0),
    "kernel_launch_cycles": (5000.0, 500.0, 20000.0),
    "misaligned_factor": (2.0, 1.0, 6.0),
    "a100_launch": (1.1, 0.5, 3.0),
}
#: parameter of the fit -> device profile, and the parameter it multiplies there: what the clock
#: rate does not explain
_DEVICE_FACTORS = {"a100_launch": ("a100-sxm", "kernel_launch_cycles")}
FRAMEWORKS = ("sglang", "vllm")
#: parameters that ten rows of a device may correct: those that differ between chips beyond their
#: spec sheets
FEW_SHOT = (
    "iteration_overhead_cycles",
    "weight_bandwidth_efficiency",
    "activation_bandwidth_efficiency",
    "kernel_launch_cycles",
)
_FOLDS = 5
#: rows of a device that few-shot mode knows
FEW = 10


def predict(group: FitGroup, parameters: dict[str, float]) -> np.ndarray:
    """Return the predicted seconds of a group's rows: ndarray of shape (rows,)."""
    profile = load_profile(group.system)
    own = dict(parameters)
    for name, (device, scaled) in _DEVICE_FACTORS.items():
        if device == profile.name:
            own[scaled] *= own.get(name, 1.0)
    calibration = Calibration(name="", parameters=own, residuals={}, level="calibrated", digest="")
    return group.draws.price(WaveKernels(profile=profile, calibration=calibration))


def fit(groups: list[FitGroup]) -> dict[str, float]:
    """Fit all parameters; every class of system, precision, and EP = 1 or more has the
    same weight.

    A device's own factors are fitted beside other devices only: its rows alone cannot tell them
    from what they multiply. Otherwise they are left out, which means 1.
    """
    systems = {load_profile(g.system).name for g in groups}
    left_out = {
        name
        for name, (device, _) in _DEVICE_FACTORS.items()
        if device not in systems or len(systems) == 1
    }
    bounds = {name: bound for name, bound in BOUNDS.items() if name not in left_out}
    labels = np.concatenate([[f"{g.system} {g.precision} {s}" for s in g.spread] for g in groups])
    _, of_row, count = np.unique(labels, return_inverse=True, return_counts=True)
    weights = (len(labels) / len(count) / count)[of_row]
    return robust_fit(lambda p: _log_errors(groups, p), bounds, weights)


def _log_errors(groups: list[FitGroup], parameters: dict[str, float]) -> np.ndarray:
    return np.concatenate([np.log(predict(g, parameters) / g.measured_s) for g in groups])


def cross_validate(groups: list[FitGroup]) -> Predictions:
    """Predict each group by a fit that saw no rows of its shape (five folds over whole shapes)."""
    shapes = sorted({g.shape for g in groups})
    out: Predictions = []
    for fold in range(_FOLDS):
        held = set(shapes[fold::_FOLDS])
        parameters = fit([g for g in groups if g.shape not in held])
        out += [(g, predict(g, parameters)) for g in groups if g.shape in held]
    return out


def few_shot_factors(rows: list[FitGroup], parameters: dict[str, float]) -> dict[str, float]:
    """Fit the factors of one device to a few of its rows."""
    return few_shot_fit(lambda p: _log_errors(rows, p), parameters, FEW_SHOT)


def few_shot_left_out(
    rows: FitGroup, shapes: Sequence[tuple[int, ...]], parameters: dict[str, float]
) -> np.ndarray:
    """Return log(measured / predicted) of each of a device's few rows, by factors of those of other
    shapes.

    Args:
        rows: The rows.
        shapes: Shape of each row.
        parameters: The parameters that the factors multiply.

    Returns:
        ndarray of shape (rows,).
    """
    errors = np.empty(len(shapes))
    for shape in set(shapes):
        held = np.array([one == shape for one in shapes])
        factors = few_shot_factors([rows.only(~held)], parameters)
        scaled = parameters | {n: parameters[n] * f for n, f in factors.items()}
        errors[held] = -_log_errors([rows.only(held)], scaled)
    return errors


def _few_shot_spread(system: str, rows: FitGroup, parameters: dict[str, float]) -> float:
    shapes = [tuple(r[c] for c in SHAPE) for r in few_shot_rows() if r["system"] == system]
    return few_shot_spread(few_shot_left_out(rows, shapes, parameters))


def _cells(held_out: Predictions) -> list[dict]:
    return cells_of(
        (
            HeldOutRow(g.system, g.dataset, g.precision, 2 if spread else 1, g.shape, ratio)
            for g, p in held_out
            for spread, ratio in zip(g.spread, g.measured_s / p, strict=True)
        )
    )


def calibrate(path: Path, framework: str = "sglang") -> dict[str, dict[str, float]]:
    """Fit, cross-validate and write a framework's calibration file, and return the cross-validated
    scores by class.

    Args:
        path: The file to write.
        framework: ``sglang`` or ``vllm``.

    Raises:
        UnknownNameError: The framework is neither sglang nor vllm.
        MeasurementError: The extra ``silicon`` is not installed.
    """
    if framework not in FRAMEWORKS:
        raise UnknownNameError("framework", framework, FRAMEWORKS)
    groups = collect(framework)
    held_out = cross_validate(groups)
    fitted = fit(groups)
    profiles = sorted({g.system.replace("_", "-") for g in groups})
    parameters = {name: value for name, value in fitted.items() if name not in _DEVICE_FACTORS}
    known = few_shot_groups() if framework == FRAMEWORKS[0] else {}
    few = {system.replace("_", "-"): few_shot_factors([g], fitted) for system, g in known.items()}
    scores = {}
    for system, precision in sorted({(g.system, g.precision) for g in groups}):
        chosen = [(g, p) for g, p in held_out if (g.system, g.precision) == (system, precision)]
        scores[f"{system.replace('_', '-')}-{precision}"] = error_scores(
            np.concatenate([p for _, p in chosen]),
            np.concatenate([g.measured_s for g, _ in chosen]),
        )
    own = {key: ep for key, ep in fit_groups().items() if key[1].startswith(framework)}
    found = Fitted(
        title=(
            f"{framework}'s Triton fused MoE kernels: waves of tiles, weight and activation streams"
        ),
        fitted_on=f"{sum(len(g.measured_s) for g in groups)} rows of {len(groups)} shape groups, "
        f"at most {ROWS_PER_GROUP} of each, none under 50 us; few-shot factors: ten rows of "
        "the device each",
        sources=[
            (
                "aiconfigurator-core 0.12, moe_perf.parquet: "
                f"{', '.join(sorted({key[2] for key in own}))}"
            )
        ],
        profiles=profiles,
        generations=sorted({generation_of(load_profile(p)) for p in profiles}),
        parameters=parameters,
        device_factors={
            device: {scaled: fitted[name]}
            for name, (device, scaled) in _DEVICE_FACTORS.items()
            if name in fitted
        },
        few_shot_factors=few,
        cells=_cells(held_out),
        few_shot_spreads={
            system.replace("_", "-"): _few_shot_spread(system, g, fitted)
            for system, g in known.items()
        },
        scores=scores,
        fit_groups=[" ".join(str(part) for part in key) + f" ep {ep}" for key, ep in own.items()],
    )
    write_calibration(path, found, f"moesim calibrate kernels --framework {framework}")
    return scores
