"""Choose the formats in which a model is served: those it is published in."""

from moesim.errors import ConfigError
from moesim.hardware import Profile
from moesim.model.hf_config import Model
from moesim.model.precision import RECIPES, Precision

#: recipe of weights -> format of dense GEMMs (`moesim.costs.dense.gemm.FORMATS`)
DENSE_FORMATS = {
    "bf16": "bfloat16",
    "fp16": "bfloat16",
    "fp8": "fp8_block",
    "fp8_tensor": "fp8",
    "nvfp4": "nvfp4",
    "int4": "int4_wo",
    "mxfp4": "w4a16_mxfp4",
    "mxfp4_a8": "w4a8_mxfp4_mxfp8",
}


def dense_format_of(model: Model) -> str:
    """Return the format of a model's dense GEMMs: that of its experts where attention and dense
    layers have it, too, otherwise bfloat16.
    """
    experts = Precision.named(model.published_as)
    alike = abs(model.dense_part.weight_bytes - experts.weight_bytes) < 1e-6
    return DENSE_FORMATS.get(model.published_as, "bfloat16") if alike else "bfloat16"


def precision_on(model: Model, profile: Profile, name: str = "auto") -> str:
    """Return the recipe of a model's experts on a device.

    Args:
        model: The model.
        profile: The device.
        name: A recipe, or ``auto`` for the published one; bf16 where the device has no rate for it.

    Raises:
        ConfigError: The device has no rate for the recipe.
    """
    chosen = model.published_as if name == "auto" else name
    if Precision.named(chosen).activations in profile.peak_flops_per_s:
        return chosen
    if name == "auto":
        return "bf16"
    rates = ", ".join(profile.peak_flops_per_s)
    raise ConfigError(
        f"precision: {profile.name} has no rate for {RECIPES[name].activations}, which {name} "
        f"multiplies in: it has {rates}"
    )
