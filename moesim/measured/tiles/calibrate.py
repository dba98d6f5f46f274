"""Fit the tile model to timed tiles: ``moesim calibrate tiles``.

The shipped rows are this project's own: both grouped GEMMs of four layers, timed on one H100 with
some 40 tiles each, and trials of wide products. They are medians of CUDA graphs that hold one
kernel, replayed with L2 overwritten before each: what a replay adds to the kernel itself is a
parameter of its own (``replay_us``), which no layer is charged. The fit is robust, a pure function
of the rows, and therefore reproducible. Scores and intervals come from fits that saw no row of a
layer's shape.
"""

from importlib.resources import files
from pathlib import Path

import numpy as np

from moesim.costs.calibration import Calibration
from moesim.costs.devices.tile_model import FORMS, TileModel
from moesim.errors import ConfigError
from moesim.hardware import Profile
from moesim.hardware.drivers import profile_of_driver
from moesim.measured.fitting import Bounds, Fitted, robust_fit, write_calibration
from moesim.measured.scores import error_scores
from moesim.measured.tiles.rows import TimedTiles, read_all
from moesim.units import US

#: first guess and limits of the fitted parameters, which `moesim.costs.devices.tile_model` explains
BOUNDS: Bounds = {
    "mma_efficiency": (0.9, 0.6, 0.95),
    "mma_sync_efficiency": (0.35, 0.2, 0.7),
    "shared_factor": (1.2, 0.5, 3.0),
    "narrow_warp_factor": (2.3, 1.0, 5.0),
    "box_row_cycles": (1.8, 0.2, 6.0),
    "l2_bytes_per_cycle": (37.0, 20.0, 64.0),
    "l2_short_share": (0.8, 0.4, 1.0),
    "load_latency_cycles": (200.0, 50.0, 2000.0),
    "tile_cycles": (370.0, 10.0, 4000.0),
    "store_cycles": (9.0, 0.1, 100.0),
    "overlap_power": (2.8, 1.2, 4.0),
    "dram_efficiency": (0.92, 0.8, 0.95),
    "dram_64_pointers": (0.68, 0.4, 1.0),
    "dram_64_descriptors": (0.91, 0.4, 1.0),
    "dram_128_pointers": (0.93, 0.6, 1.0),
    "dram_128_descriptors": (0.93, 0.6, 1.0),
    "dram_256": (0.99, 0.7, 1.0),
    "l2_reuse_pointers": (2.1, 0.3, 8.0),
    "l2_reuse_power_pointers": (3.0, 0.7, 4.0),
    "l2_reuse_descriptors": (3.4, 0.3, 8.0),
    "l2_reuse_power_descriptors": (2.1, 0.7, 4.0),
    "replay_us": (10.0, 1.0, 14.0),
    **{f"step_cycles_{form}": (100.0, 5.0, 1000.0) for form in FORMS},
    **{f"input_factor_{form}": (0.9, 0.5, 2.0) for form in FORMS},
}
#: prices of kernels that no shipped row times: what each is assumed to take, and why it is said in
#: `moesim.costs.devices.tile_kernels`
ASSUMED = {
    "kernel_gap_us": 0.35,
    "kernel_start_us": 1.3,
    "stream_efficiency": 0.8,
    "plan_ns_per_row": 0.06,
    "route_cycles_per_logit": 4.0,
    "route_round_us": 0.25,
    "logits_efficiency": 0.5,
    "scale_cycles": 1.0,
}
NAME = "moesim-triton"
_ROWS = ("tiles_h100.csv",)
_SHAPE = ("hidden_size", "expert_intermediate_size", "num_experts", "top_k")


def shipped_rows() -> list[Path]:
    """Return the files of the shipped rows."""
    return [Path(str(files("moesim_hw_profiles"))) / "silicon" / name for name in _ROWS]


def predicted_us_R(
    table: TimedTiles, profile: Profile, parameters: dict[str, float] | Calibration
) -> np.ndarray:
    """Return what each row's replay is predicted to take, in microseconds: ndarray of shape (R,).

    Args:
        table: Rows of one device.
        profile: The device.
        parameters: Fitted parameters, or a calibration that has them.
    """
    calibration = (
        parameters
        if isinstance(parameters, Calibration)
        else Calibration(
            name=NAME, parameters=parameters, residuals={}, level="calibrated", digest=""
        )
    )
    model = TileModel(profile=profile, calibration=calibration)
    return model.price(table.work, "bfloat16").solo_s_D() / US + calibration["replay_us"]


def fit(table: TimedTiles, profile: Profile) -> dict[str, float]:
    """Fit all parameters of `BOUNDS` to the rows of one device."""
    log_measured = np.log(table.measured_us_R)
    return robust_fit(
        lambda p: np.log(predicted_us_R(table, profile, p)) - log_measured,
        BOUNDS,
        np.ones(len(table.rows)),
    )


def held_out_us_R(table: TimedTiles, profile: Profile) -> np.ndarray:
    """Return predictions of each row by a fit that saw no row of its layer's shape."""
    shapes = [tuple(row[name] for name in _SHAPE) for row in table.rows]
    out = np.empty(len(shapes))
    for shape in sorted(set(shapes)):
        held = np.array([one == shape for one in shapes])
        rest = TimedTiles.of([r for r, h in zip(table.rows, held, strict=True) if not h])
        one = TimedTiles.of([r for r, h in zip(table.rows, held, strict=True) if h])
        out[held] = predicted_us_R(one, profile, fit(rest, profile))
    return out


def calibrate(out: Path, paths: list[Path] | None = None) -> dict[str, dict[str, float]]:
    """Fit the model and write a calibration file.

    Args:
        out: File to write.
        paths: Tables of timed tiles of one device; by default the shipped ones.

    Returns:
        Scores on rows left out of the fit, by kind of kernel.

    Raises:
        ConfigError: A table is not valid, has rows without times or of several devices, or of fewer
            than two layers, which leave nothing to score; or the file cannot be written.
    """
    table = read_all(paths or shipped_rows())
    devices = sorted({row["device"] for row in table.rows})
    shapes = sorted({tuple(row[name] for name in _SHAPE) for row in table.rows})
    if len(devices) != 1 or len(shapes) < 2:
        raise ConfigError(
            "calibrate tiles: expected rows of one device and of two layers or more, got devices "
            f"{', '.join(devices)} and {len(shapes)} layers"
        )
    if not np.isfinite(table.measured_us_R).all() or (table.measured_us_R <= 0).any():
        raise ConfigError("calibrate tiles: expected median_us > 0 in every row")
    profile = profile_of_driver(devices[0])
    if profile is None:
        raise ConfigError(
            f"calibrate tiles: expected a GPU that a profile describes, got {devices[0]!r}"
        )
    parameters = fit(table, profile)
    held_out = held_out_us_R(table, profile)
    names = np.array([FORMS[index].replace("_", " ") for index in table.work.form_R])
    measured = table.measured_us_R
    scores = {
        name: error_scores(held_out[names == name], measured[names == name])
        for name in sorted(set(names))
    }
    # an interval is that of tiles a choice would take: predicted within a tenth of the best
    near = np.zeros(len(measured), dtype=bool)
    for group in table.groups():
        near[group] = held_out[group] <= 1.1 * held_out[group].min()
    low, high = np.percentile(measured[near] / held_out[near], (10, 90))
    spread = {"low": low, "high": high, "kind": "cross-validated by shape", "rows": int(near.sum())}
    found = Fitted(
        title="This project's Triton kernels: tiles over SMs, L2 and memory",
        fitted_on=f"{len(measured)} tiles of {len(shapes)} layers, timed on {devices[0]}",
        sources=[_SOURCE if paths is None else ", ".join(map(str, paths))],
        profiles=[profile.name],
        generations=[round(10 * (profile.compute_capability or 0))],
        parameters=parameters | ASSUMED,
        residuals={f"calibrated-bfloat16-{ep}": spread for ep in ("ep1", "epn")},
        scores={name.replace(" ", "-"): one for name, one in scores.items()},
        fit_groups=[" ".join(map(str, shape)) for shape in shapes],
        model="tiles",
    )
    write_calibration(out, found, "moesim calibrate tiles")
    return scores


_SOURCE = (
    "own measurement, 2026-11-27: H100 80GB HBM3, driver 580.159.04, torch 2.11.0, Triton 3.6.0, "
    "CUDA graphs with L2 overwritten"
)
