"""Read a model's ``quantization_config``: the format of its experts, and the bytes of its other
weights.
"""

from typing import Any

from moesim.model.precision import Precision

#: keys under which methods list the modules that stay in 16 bits
_LEFT_OUT = ("modules_to_not_convert", "ignore", "exclude_modules", "ignored_layers")
_PLAIN_BYTES = 2.0


def recipe_of(config: dict[str, Any]) -> str | None:
    """Return the recipe that matches a ``quantization_config``; None if no recipe does."""
    method = config.get("quant_method")
    if method == "mxfp4":
        return "mxfp4"
    if method == "fp8":
        return "fp8" if config.get("weight_block_size") else "fp8_tensor"
    if method in ("gptq", "awq"):
        return "int4" if config.get("bits") == 4 else None
    if method == "modelopt":
        return {"NVFP4": "nvfp4", "FP8": "fp8_tensor"}.get(str(config.get("quant_algo")))
    if method == "compressed-tensors":
        groups = config.get("config_groups")
        first = next(iter(groups.values()), None) if isinstance(groups, dict) else None
        weights = first.get("weights") if isinstance(first, dict) else None
        if not isinstance(weights, dict):
            return None
        tokens = bool(first and first.get("input_activations"))
        form = weights.get("type"), weights.get("num_bits"), tokens
        if form == ("float", 8, True):
            return "fp8" if weights.get("strategy") == "block" else "fp8_tensor"
        return {("int", 4, False): "int4", ("int", 8, True): "int8"}.get(form)  # type: ignore[arg-type]
    return None


def dense_weight_bytes(config: Any) -> float:
    """Return the bytes of a weight of attention and dense layers.

    Methods quantize every linear layer except those they list. mxfp4 is a format of experts only
    (gpt-oss, arXiv 2508.10925).

    Args:
        config: The table ``quantization_config``; None or anything else for a model without one.
    """
    if not isinstance(config, dict) or config.get("quant_method") == "mxfp4":
        return _PLAIN_BYTES
    recipe = recipe_of(config)
    left = [str(name) for key in _LEFT_OUT for name in config.get(key) or ()]
    if recipe is None or any("attn" in name or "attention" in name for name in left):
        return _PLAIN_BYTES
    return Precision.named(recipe).weight_bytes


__all__ = ["dense_weight_bytes", "recipe_of"]
