"""Fit the tile model's parameters to timed tiles, and predict them.

Times are medians of CUDA graphs that hold one kernel, replayed with L2 overwritten before each:
what a replay adds to the kernel itself is a parameter of its own (``replay_us``), which no layer is
charged.
"""

import numpy as np

from moesim.costs.calibration import Calibration
from moesim.costs.devices.tile_model import TileModel
from moesim.costs.devices.tile_work import FORMS
from moesim.costs.libraries import OWN_KERNELS
from moesim.hardware import Profile
from moesim.measured.fitting import Bounds, robust_fit
from moesim.measured.tiles.rows import TimedTiles
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
#: columns that tell one layer from another
SHAPE = ("hidden_size", "expert_intermediate_size", "num_experts", "top_k")


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
            name=OWN_KERNELS, parameters=parameters, residuals={}, level="calibrated", digest=""
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
    shapes = [tuple(row[name] for name in SHAPE) for row in table.rows]
    out = np.empty(len(shapes))
    for shape in sorted(set(shapes)):
        held = np.array([one == shape for one in shapes])
        rest = TimedTiles.of([r for r, h in zip(table.rows, held, strict=True) if not h])
        one = TimedTiles.of([r for r, h in zip(table.rows, held, strict=True) if h])
        out[held] = predicted_us_R(one, profile, fit(rest, profile))
    return out
