"""The number format in which a file publishes its experts, and that of its other weights.

What counts is what a ``quantization_config`` says of *experts*; see
`moesim.model.hf_config.quantization`.
"""

from dataclasses import dataclass
from typing import Any

from moesim.model.hf_config.keys import Keys
from moesim.model.hf_config.modules import EXPERT_NAMES, OUTPUT_NAMES, QUERY_NAMES
from moesim.model.hf_config.quantization import Quantization
from moesim.model.precision import Precision

#: bytes of a weight that is not quantized
_PLAIN_BYTES = 2.0
_DTYPES = {"bfloat16": "bf16", "float16": "fp16"}
#: expert_dtype -> recipe, of files whose other weights have another format (DeepSeek-V4)
_EXPERT_DTYPES = {"fp4": "mxfp4", "mxfp4": "mxfp4", "nvfp4": "nvfp4", "fp8": "fp8", "bf16": "bf16"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Formats:
    """The formats of a published file.

    Attributes:
        experts: Recipe of the experts, as `Precision.named` reads it.
        dense_bytes: Bytes of a weight of attention and dense layers.
    """

    experts: str
    dense_bytes: float


def read_formats(keys: Keys, moe_layers: int) -> Formats:
    """Return the formats of a file; what is assumed goes to the notes of the keys.

    Args:
        keys: The keys of the file.
        moe_layers: Number of layers with experts.

    Raises:
        ConfigError: The quantization is none of those known, and the reading is strict.
    """
    found = keys.stated("torch_dtype") or keys.stated("dtype")
    plain = _DTYPES.get(str(found[1]).removeprefix("torch.") if found else "bfloat16")
    if plain is None:
        keys.notes.append(f"{found and found[0]} {found and found[1]}: bf16 assumed")
        plain = "bf16"
    config = _quantization(keys)
    quantized = Quantization(keys, config, moe_layers) if config else None
    experts = quantized.recipe(EXPERT_NAMES, "moe_") if quantized else None
    if keys.has("expert_dtype"):
        dtype = keys.word("expert_dtype", default="")
        known = ", ".join(_EXPERT_DTYPES)
        keys.require(dtype in _EXPERT_DTYPES, "expert_dtype", f"one of {known}", dtype)
        experts = _EXPERT_DTYPES[dtype]
    dense = None
    if quantized is not None:
        # makers often leave one projection of attention out: quantized if one of the large two is
        dense = quantized.recipe(OUTPUT_NAMES, "") or quantized.recipe(QUERY_NAMES, "")
    return Formats(
        experts=experts or plain,
        dense_bytes=Precision.named(dense).weight_bytes if dense else _PLAIN_BYTES,
    )


def _quantization(keys: Keys) -> dict[str, Any] | None:
    """Return the table of the quantization, under one set of names."""
    keys.has("quantization")  # MLX writes its table under both names
    found = keys.stated("quantization_config") or keys.stated("compression_config")
    if found is not None and found[1]:
        keys.require(isinstance(found[1], dict), found[0], "a table", found[1])
        table: dict[str, Any] = found[1]
        return table
    mlx = keys.stated("quantization")
    if mlx is not None and isinstance(mlx[1], dict):
        return dict(mlx[1])
    mistral = keys.stated("mistral_quantization")
    if mistral is not None and isinstance(mistral[1], dict):
        inner = mistral[1]
        if str(inner.get("qformat_weight", "")).startswith("fp8"):
            return {"quant_method": "fp8", "activation_scheme": "static"}
        return {"quant_method": "compressed-tensors", **inner}
    return None
