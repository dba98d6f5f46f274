"""Name the formats of libraries that are priced as a whole, and read the parameters of one from a
calibration.

A calibration of the model ``fused`` holds parameters ``FORMAT_smGENERATION_NAME``, one set for each
format and generation (ten times the compute capability) that was fitted. A device takes those of
its own generation, or of the one nearest to it with the same major compute capability.
"""

import re
from functools import lru_cache

from moesim.costs.calibration import Calibration, generation_of
from moesim.costs.devices.fused_model import BOUNDS, RULES, TileRule
from moesim.errors import ConfigError
from moesim.hardware import Profile
from moesim.model import Precision

#: format as measured rows name it -> recipe
FORMATS = {
    "bfloat16": Precision.named("bf16"),
    "fp8": Precision.named("fp8_tensor"),
    "fp8_block": Precision.named("fp8"),
    "nvfp4": Precision.named("nvfp4"),
    "int4_wo": Precision.named("int4"),
    "w4a16_mxfp4": Precision.named("mxfp4"),
    "w4a8_mxfp4_mxfp8": Precision.named("mxfp4_a8"),
}
_FITTED = re.compile(r"(.+)_sm(\d+)_start_us")


def format_named(fmt: str, weight_bytes: float, *, block_scaled: bool) -> str:
    """Return the name of a format in measured rows.

    Args:
        fmt: Format of the products; float16 counts as bfloat16, which is as wide and as fast.
        weight_bytes: Bytes of one weight, scales included.
        block_scaled: Whether the GEMMs apply a scale after every block of the depth.

    Raises:
        ConfigError: No measured rows have it.
    """
    fmt = "bfloat16" if fmt == "float16" else fmt
    for name, precision in FORMATS.items():
        same = (precision.activations, precision.block_scaled) == (fmt, block_scaled)
        if same and abs(precision.weight_bytes - weight_bytes) < 1e-6:
            return name
    raise ConfigError(
        f"precision: expected one of {', '.join(p.name for p in FORMATS.values())}, which other "
        f"libraries were measured in, got products in {fmt} of weights of {weight_bytes:g} bytes"
    )


def formats_of(calibration: Calibration) -> dict[str, list[int]]:
    """Return the formats that a library's calibration has parameters of, and the generations they
    were fitted on (ten times the compute capability).
    """
    found: dict[str, list[int]] = {}
    for name in calibration.parameters:
        if fitted := _FITTED.fullmatch(name):
            found.setdefault(fitted[1], []).append(int(fitted[2]))
    return found


def serves(calibration: Calibration, dtype: str, profile: Profile) -> bool:
    """Return whether a library's calibration prices a format on a device: whether it was fitted on
    a device of the same major compute capability, or says that it also serves that one.

    Args:
        calibration: A library's calibration, of `load_calibration`.
        dtype: Format of the rows, one of `FORMATS`.
        profile: The device.
    """
    return bool(_near(calibration, dtype, profile))


def _near(calibration: Calibration, dtype: str, profile: Profile) -> list[int]:
    """Return the fitted generations that serve a device, nearest first: those of its own major
    compute capability, otherwise all if the format also serves it.
    """
    own, fitted = generation_of(profile), formats_of(calibration).get(dtype, [])
    same = [one for one in fitted if one // 10 == own // 10]
    if not same and own // 10 in calibration.also_serves.get(dtype, ()):
        same = fitted
    return sorted(same, key=lambda one: abs(one - own))


# a search asks for the same few formats with every design
@lru_cache(maxsize=512)
def format_parameters(
    calibration: Calibration, dtype: str, profile: Profile
) -> tuple[TileRule, dict[str, float]]:
    """Return the rule of tiles and the parameters of one format, those of the device's generation
    or of the one nearest to it among those of the same major compute capability.

    Raises:
        ConfigError: The calibration does not serve this format on this device (`serves`); the
            message lists the formats and generations that it has.
    """
    near = _near(calibration, dtype, profile)
    if not near:
        fitted = formats_of(calibration)
        known = "; ".join(
            f"{name} on {' or '.join(f'sm_{one}' for one in fitted[name])}" for name in fitted
        )
        raise ConfigError(
            f"{calibration.name}: expected {known}, got {dtype} on {profile.name} "
            f"(sm_{generation_of(profile)})"
        )
    values = {name: calibration[f"{dtype}_sm{near[0]}_{name}"] for name in (*RULES, *BOUNDS)}
    return TileRule.of(values), {name: values[name] for name in BOUNDS}
