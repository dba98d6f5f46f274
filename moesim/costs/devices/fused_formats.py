"""Name the formats of libraries that are priced as a whole, and read the parameters of one from a
calibration.

A calibration of the model ``fused`` holds parameters ``FORMAT_smGENERATION_NAME``, one set for each
format and generation (ten times the compute capability) that was fitted. A device takes those of
its own generation, or of the one nearest to it.
"""

import re

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
