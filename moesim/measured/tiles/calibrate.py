"""Write the calibration of this project's kernels: ``moesim calibrate tiles``.

The shipped rows are this project's own: both grouped GEMMs of four layers, timed on one H100 with
some 40 tiles each, and trials of wide products. The fit is robust, a pure function of the rows, and
therefore reproducible. Scores and intervals come from fits that saw no row of a layer's shape.
"""

from importlib.resources import files
from pathlib import Path

import numpy as np

from moesim.costs.calibration import generation_of
from moesim.costs.devices.tile_work import FORMS
from moesim.costs.libraries import OWN_KERNELS
from moesim.errors import ConfigError
from moesim.hardware.drivers import profile_of_driver
from moesim.measured.fitting import Fitted, write_calibration
from moesim.measured.scores import error_scores
from moesim.measured.tiles.fit import SHAPE, fit, held_out_us_R
from moesim.measured.tiles.rows import read_all

#: prices of kernels that no shipped row times: what each is assumed to take, and why it is said in
#: `moesim.costs.devices.tile_kernels`
ASSUMED = {
    "kernel_gap_us": 0.35,
    "kernel_start_us": 1.3,
    "stream_efficiency": 0.8,
    "plan_ns_per_row": 0.15,
    "route_cycles_per_logit": 4.0,
    "route_round_us": 0.25,
    "logits_efficiency": 0.6,
    "scale_cycles": 1.0,
}
#: what measured over predicted may be beyond the GEMMs' spread: plan, combine and launches are
#: assumed, and the rows of wide products are those of a trial, whose weights lay in other order
_WIDENED = 1.08
_ROWS = ("tiles_h100.csv",)


def shipped_rows() -> list[Path]:
    """Return the files of the shipped rows."""
    return [Path(str(files("moesim_hw_profiles"))) / "silicon" / name for name in _ROWS]


_SOURCE = (
    "own measurement, 2026-11-27: H100 80GB HBM3, driver 580.159.04, torch 2.11.0, Triton 3.6.0, "
    "CUDA graphs with L2 overwritten"
)


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
    shapes = sorted({tuple(row[name] for name in SHAPE) for row in table.rows})
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
    spread = {
        "device": profile.name,
        "generation": generation_of(profile),
        "version": OWN_KERNELS,
        "format": "bfloat16",
        "low": float(low) / _WIDENED,
        "high": float(high) * _WIDENED,
        "kind": "cross-validated by shape, widened for what no row times",
        "rows": int(near.sum()),
    }
    found = Fitted(
        title="This project's Triton kernels: tiles over SMs, L2 and memory",
        fitted_on=f"{len(measured)} tiles of {len(shapes)} layers, timed on {devices[0]}",
        sources=[_SOURCE if paths is None else ", ".join(map(str, paths))],
        profiles=[profile.name],
        generations=[generation_of(profile)],
        parameters=parameters | ASSUMED,
        cells=[spread | {"ep": ep} for ep in ("ep1", "epn")],
        scores={name.replace(" ", "-"): one for name, one in scores.items()},
        fit_groups=[" ".join(map(str, shape)) for shape in shapes],
        model="tiles",
    )
    write_calibration(out, found, "moesim calibrate tiles")
    return scores
