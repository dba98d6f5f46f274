"""Predict measured rows of a library's kernels: a price for each, and its interval."""

from typing import Any

import numpy as np

from moesim.costs.calibration import load_calibration
from moesim.costs.devices.fused_formats import FORMATS, format_parameters, formats_of, serves
from moesim.hardware import Profile, load_profile
from moesim.measured.kernels import table as silicon
from moesim.measured.kernels.family_records import KernelFamily
from moesim.measured.kernels.family_rows import FamilyRows

Array = np.ndarray


#: distributions whose draws are known
DISTRIBUTIONS = r"balanced|uniform|power_law_\d+(\.\d+)?(_eplb)?"


def family_rows(system: str, dataset: str, family: KernelFamily):
    """Return the measured rows of a family in one dataset whose draws are known.

    Returns:
        DataFrame of the columns of `moesim.measured.kernels.table.COLUMNS`, those of its
        `moesim.measured.kernels.table.EXTRAS` and ``latency_ms``, of the formats that the family's
        calibration serves (`serves`) and the device computes; and the number of rows of each other
        format.
    """
    table = silicon.load_rows(system, dataset, True, family.table)
    profile = load_profile(system)
    calibration = load_calibration(family.name, profile)
    table = table[
        table["kernel_source"].map(lambda source: family.has(dataset, source, family.op_name))
        & table["distribution"].str.fullmatch(DISTRIBUTIONS)
        & (table["num_experts"] % table["moe_ep_size"] == 0)
    ]
    served = [
        dtype
        for dtype in formats_of(calibration)
        if serves(calibration, dtype, profile)
        and FORMATS[dtype].activations in profile.peak_flops_per_s
    ]
    priced = table["moe_dtype"].isin(served)
    return table[priced], table.loc[~priced, "moe_dtype"].value_counts().to_dict()


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
