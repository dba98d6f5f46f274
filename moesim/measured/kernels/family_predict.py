"""Predict measured rows of a library's kernels: a price for each, and its interval."""

import re
from typing import Any

import numpy as np

from moesim.costs.calibration import Calibration, generation_of, load_calibration
from moesim.costs.devices.fused_model import BOUNDS, RULES, TileRule
from moesim.errors import ConfigError
from moesim.hardware import Profile, load_profile
from moesim.measured.kernels import table as silicon
from moesim.measured.kernels.family_records import FORMATS, KernelFamily
from moesim.measured.kernels.family_rows import FamilyRows

Array = np.ndarray


_FITTED = re.compile(r"(.+)_sm(\d+)_start_us")


def formats_of(calibration: Calibration) -> dict[str, list[int]]:
    """Return the formats that a library's calibration has parameters of, and the generations they
    were fitted on (ten times the compute capability).
    """
    found: dict[str, list[int]] = {}
    for name in calibration.parameters:
        if fitted := _FITTED.fullmatch(name):
            found.setdefault(fitted[1], []).append(int(fitted[2]))
    return found


def format_parameters(
    calibration: Calibration, dtype: str, profile: Profile
) -> tuple[TileRule, dict[str, float]]:
    """Return the rule of tiles and the parameters of one format, those of the device's generation
    or of the one nearest to it.

    Raises:
        ConfigError: The calibration has none of this format.
    """
    formats = formats_of(calibration)
    if dtype not in formats:
        raise ConfigError(f"{calibration.name}: expected one of {', '.join(formats)}, got {dtype}")
    near = min(formats[dtype], key=lambda fitted: abs(fitted - generation_of(profile)))
    values = {name: calibration[f"{dtype}_sm{near}_{name}"] for name in (*RULES, *BOUNDS)}
    rule = TileRule(
        least_rows=int(values["least_rows"]),
        most_rows=int(values["most_rows"]),
        row_factor=values["row_factor"],
        whole_waves=values["whole_waves"] > 0,
    )
    return rule, {name: values[name] for name in BOUNDS}


def family_rows(system: str, dataset: str, family: KernelFamily):
    """Return the measured rows of a family in one dataset that its price can be asked of: its
    formats, and loads whose draws are known.

    Returns:
        DataFrame of the columns of `moesim.measured.kernels.table.COLUMNS` and ``latency_ms``.
    """
    table = silicon.load_rows(system, dataset, every=True)
    profile = load_profile(system)
    known = [
        dtype
        for dtype in formats_of(load_calibration(family.name, profile))
        if FORMATS[dtype].activations in profile.peak_flops_per_s
    ]
    return table[
        table["kernel_source"].map(lambda source: family.has(dataset, source))
        & table["moe_dtype"].isin(known)
        & table["distribution"].str.fullmatch(r"balanced|power_law_\d+(\.\d+)?")
        & (table["num_experts"] % table["moe_ep_size"] == 0)
    ]


def predict_family(
    rows: list[dict[str, Any]], profile: Profile, family: KernelFamily
) -> dict[str, Array]:
    """Predict rows of one family that share a device and a format.

    Returns:
        ``predicted_latency_ms``, ``low_ms``, ``high_ms`` (the 80 % interval) and ``roofline_ms``,
        ndarrays of shape (N,), and ``calibration``, the level of the price for all of them.

    Raises:
        ConfigError: The family's calibration has no parameters of this format.
    """
    calibration = load_calibration(family.name, profile)
    dtype = rows[0]["moe_dtype"]
    rule, parameters = format_parameters(calibration, dtype, profile)
    drawn = FamilyRows.of(rows, profile, family)
    predicted = drawn.predicted_s(rule, parameters) * 1e3
    classes = [
        (f"{dtype}-{'epn' if row['moe_ep_size'] > 1 else 'ep1'}", str(row["dataset"]))
        for row in rows
    ]
    of_class = {one: calibration.interval(*one) for one in set(classes)}
    factors = np.array([of_class[one] for one in classes])
    return {
        "predicted_latency_ms": predicted,
        "low_ms": predicted * factors[:, 0],
        "high_ms": predicted * factors[:, 1],
        "roofline_ms": drawn.roofline_s(rule) * 1e3,
        "calibration": np.full(len(rows), calibration.level, dtype=object),
    }
