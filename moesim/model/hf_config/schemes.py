"""The number formats of quantization methods, as recipes that `Precision.named` reads."""

from typing import Any

from moesim.model.precision import Precision

_FP8, _BF16 = "float8_e4m3", "bfloat16"


def recipe(weights: str, tokens: str = _BF16, block: int = 128) -> str:
    """Return the name of formats for weights and tokens; narrow tokens travel as they are used."""
    return Precision(weights=weights, activations=tokens, dispatch=tokens, scale_block=block).name


#: algorithm of NVIDIA's Model Optimizer -> recipe
MODELOPT = {
    "NVFP4": "nvfp4",
    "NVFP4_AWQ": "nvfp4",
    "W4A16_NVFP4": "nvfp4_a16",
    "NVFP4_W4A16": "nvfp4_a16",
    "MXFP4": "mxfp4",
    "W4A8_MXFP4_FP8": "mxfp4_a8",
    "MXFP8": recipe(_FP8, _FP8, 32),
    "FP8": "fp8_tensor",
    "FP8_PER_CHANNEL_PER_TOKEN": "fp8_tensor",
    "FP8_PB_WO": "fp8",
    "FP8_PB_REAL": "fp8",
    "FP8_BLOCK_SCALES": "fp8",
    "INT4_AWQ": "int4",
    "W4A16_AWQ": "int4",
    "W4A16": "int4",
    "W4A8_AWQ": recipe("int4", _FP8, 0),
    "W8A8_SQ_PER_CHANNEL": "int8",
    "INT8_SQ": "int8",
    "W8A16": recipe("int8"),
}
#: method with one format -> recipe
METHODS = {
    "mxfp4": "mxfp4",
    "mxfp8": recipe(_FP8, _FP8, 32),
    "fbgemm_fp8": "fp8_tensor",
    "modelopt_fp4": "nvfp4",
    "nvfp4": "nvfp4",
    "petit_nvfp4": "nvfp4",
    "w4afp8": recipe("int4", _FP8, 0),
    "w8a8_int8": "int8",
    "w8a8_fp8": "fp8_tensor",
    "blockwise_int8": "int8",
    "w4a16": "int4",
}
#: (type, bits) of tokens -> recipe of 4-bit integer weights
_INT4 = {("float", 8): recipe("int4", _FP8, 0), ("int", 8): recipe("int4", "int8")}


def of_group(weights: dict[str, Any], tokens: Any) -> str | None:
    """Return the recipe of a group of compressed-tensors or Model Optimizer; None if none is.

    Args:
        weights: Table of the weights, with ``type``, ``num_bits``, ``strategy``, ``group_size``.
        tokens: The same of the activations; None if they are not quantized.
    """
    form = weights.get("type"), weights.get("num_bits")
    size, block = weights.get("group_size"), weights.get("strategy") == "block"
    bits: tuple[Any, Any] = ("", 0)
    if isinstance(tokens, dict):
        bits = str(tokens.get("type")), tokens.get("num_bits")
    if form == ("float", 4):
        if size == 32:
            return "mxfp4_a8" if bits == ("float", 8) else "mxfp4"
        return "nvfp4" if bits == ("float", 4) else "nvfp4_a16"
    if form == ("float", 8):
        scale = 128 if block else 32 if size == 32 else 0
        return recipe(_FP8, _FP8 if bits[1] else _BF16, scale)
    if form == ("int", 4):
        return next((name for form, name in _INT4.items() if form == bits), "int4")
    if form == ("int", 8):
        return "int8" if bits[1] else recipe("int8")
    return None


def of_integers(bits: Any, kind: str) -> str | None:
    """Return the recipe of GPTQ, AWQ and AutoRound; None if none is.

    Args:
        bits: Bits of a weight.
        kind: AutoRound's ``data_type``; ``int`` for the others.
    """
    if kind.startswith(("mx_fp", "mxfp")):
        return "mxfp4" if bits == 4 else METHODS["mxfp8"]
    if kind.startswith(("nv_fp", "nvfp")):
        return "nvfp4"
    return {4: "int4", 8: recipe("int8")}.get(bits) if isinstance(bits, int) else None


def of_quark(weight: dict[str, Any], inputs: Any) -> str | None:
    """Return the recipe of AMD's Quark; None if none is.

    Args:
        weight: Table of the weights, with ``dtype`` and ``group_size``.
        inputs: The same of the activations; None if they are not quantized.
    """
    dtype, size = str(weight.get("dtype")), weight.get("group_size")
    if dtype in ("fp4", "mxfp4"):
        return "mxfp4" if size in (None, 32) else "nvfp4"
    if dtype.startswith("fp8"):
        return recipe(_FP8, _FP8 if inputs else _BF16, 32 if size == 32 else 0)
    return {"int4": "int4", "uint4": "int4", "int8": "int8" if inputs else recipe("int8")}.get(
        dtype
    )
