"""Find the configuration of a language model in a file or folder.

A model that also sees or hears keeps the language part in a table of its own, sometimes two deep
(Qwen3-Omni). A ``params.json`` of Mistral is renamed to the keys of Hugging Face's classes. Nothing
is downloaded.
"""

from pathlib import Path
from typing import Any

from moesim.errors import ConfigError
from moesim.files.texts import read_json

#: tables that hold the language part, outermost first
_LANGUAGE = (
    "thinker_config",
    "text_config",
    "language_config",
    "llm_config",
    "language_model_config",
    "lm_config",
    "language_model",
)
#: tables whose keys belong to the configuration itself, and the prefix that their keys take
_PARTS = {"attn_config": "attn_", "ffn_config": "", "moe_config": ""}
#: keys of the outer table that say something of the language part if it does not say it
_OUTER = (
    "quantization_config",
    "compression_config",
    "tie_word_embeddings",
    "torch_dtype",
    "dtype",
    "architectures",
)
#: key of Mistral's params.json -> key of Hugging Face's classes
_MISTRAL = {
    "dim": "hidden_size",
    "n_layers": "num_hidden_layers",
    "hidden_dim": "intermediate_size",
    "n_heads": "num_attention_heads",
    "n_kv_heads": "num_key_value_heads",
    "tied_embeddings": "tie_word_embeddings",
    "expert_hidden_dim": "moe_intermediate_size",
    "num_shared_experts": "n_shared_experts",
    "num_expert_groups": "n_group",
    "num_expert_groups_per_tok": "topk_group",
    "routed_scale": "routed_scaling_factor",
    "quantization": "mistral_quantization",
}


def find_config(path: Path) -> Path:
    """Return the configuration that a path means: itself, or the one in a folder.

    Raises:
        ConfigError: The folder holds none.
    """
    if not path.is_dir():
        return path
    for name in ("config.json", "params.json"):
        if (path / name).is_file():
            return path / name
    raise ConfigError(f"{path}: expected a folder with a config.json or params.json, got none")


def read_keys(path: Path) -> dict[str, Any]:
    """Return the keys of the language model in a configuration file.

    Raises:
        ConfigError: The file cannot be read, is not JSON or no object.
    """
    data = _flat(_language(_object(path), str(path)), str(path))
    beside = path.parent / "hf_quant_config.json"
    if beside.is_file():
        data["quantization_config"] = _quantization(data.get("quantization_config"), beside)
    return data


def _quantization(inside: Any, beside: Path) -> Any:
    """Return what a configuration says of its quantization, or the file beside it.

    Raises:
        ConfigError: Both say it and name another algorithm, or the file is malformed.
    """
    stated = _object(beside)
    outside = stated.get("quantization", stated)
    if not isinstance(outside, dict):
        raise ConfigError(f"{beside}: quantization: expected a table, got {outside!r}")
    if not inside:
        return {"quant_method": "modelopt", **outside}
    own = inside.get("quant_algo") if isinstance(inside, dict) else None
    other = outside.get("quant_algo")
    if own is not None and other is not None and own != other:
        raise ConfigError(
            f"{beside}: quant_algo: expected {own}, that of config.json beside it, got {other}"
        )
    return inside


def _object(path: Path) -> dict[str, Any]:
    data = read_json(path)
    if not isinstance(data, dict):
        raise ConfigError(
            f"{path}: expected a JSON object with a model's configuration, got "
            f"{type(data).__name__}"
        )
    return data


def _language(data: dict[str, Any], where: str) -> dict[str, Any]:
    """Return the innermost table of the language part, with what the outer ones say of it."""
    for name in _LANGUAGE:
        inner = data.get(name)
        if not isinstance(inner, dict) or not inner:
            continue
        # a null inside does not erase what the outer table says
        said = (*_OUTER, *(key for key, value in inner.items() if value is None))
        kept = {key: data[key] for key in said if data.get(key) is not None}
        if "model_type" not in inner and "model_type" in data:
            kept["model_type"] = data["model_type"]
        found = {key: value for key, value in inner.items() if value is not None}
        # the class of the whole model, not that of its language part, makes the output head
        if "tie_word_embeddings" in kept:
            found.pop("tie_word_embeddings", None)
        return _language({**kept, **found}, where)
    return dict(data)


def _flat(data: dict[str, Any], where: str) -> dict[str, Any]:
    """Return the keys with those of inner tables beside them, under Hugging Face's names."""
    parts = _PARTS
    if "dim" in data and "n_layers" in data and "model_type" not in data:
        parts = {"moe": "", "moe_config": ""}
        data = {"model_type": "mistral_params", **data}
    for name, prefix in parts.items():
        inner = data.get(name)
        if not isinstance(inner, dict):
            continue
        own = {prefix + key: value for key, value in inner.items() if key != "model_type"}
        data = {key: value for key, value in data.items() if key != name} | own
    if data.get("model_type") != "mistral_params":
        return data
    renamed: dict[str, Any] = {}
    for key, value in data.items():
        new = _MISTRAL.get(key, key)
        if new in data and new != key and data[new] != value:
            raise ConfigError(
                f"{where}: {key}: expected {data[new]!r}, that of {new}, got {value!r}"
            )
        renamed[new] = value
    return renamed
