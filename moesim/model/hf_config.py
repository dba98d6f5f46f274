"""Load models by name or from a Hugging Face ``config.json``: the MoE layer and the dense part
around it.

The keys are those of the published configuration classes (Mixtral, Qwen2-MoE, Qwen3-MoE,
DeepSeek-V2 and V3, Kimi K2, GLM-4.5, OLMoE, gpt-oss, Llama 4). Another ``model_type`` is read by
the same keys if they suffice, and the notes say so. `_IMPLIED` holds values that a class implies
but its config does not state (Llama 4's shared expert, GLM's sigmoid). A selection bias
(``topk_method: noaux_tc``) belongs to training and is ignored, as it is in presets. Nothing is
downloaded.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from moesim.errors import ConfigError, UnknownNameError, require
from moesim.files import toml
from moesim.model.gate import Gate
from moesim.model.layer import DensePart, MoELayer
from moesim.model.precision import Precision
from moesim.model.presets import Attention, load_preset, preset_names
from moesim.model.quantization import dense_weight_bytes, recipe_of

#: model type -> values that its configuration class implies if the file does not state them
_IMPLIED: dict[str, dict[str, Any]] = {
    "mixtral": {},
    "qwen2_moe": {},
    "qwen3_moe": {},
    "olmoe": {},
    "gpt_oss": {},
    "deepseek_v2": {},
    "deepseek_v3": {"scoring_func": "sigmoid"},
    "kimi_k2": {"scoring_func": "sigmoid"},
    "glm4_moe": {"scoring_func": "sigmoid"},
    "llama4_text": {"scoring_func": "sigmoid", "n_shared_experts": 1},
}
_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
_TOP_K = ("num_experts_per_tok", "experts_per_token", "moe_topk", "moe_k")
_SHARED = ("n_shared_experts", "num_shared_experts", "moe_num_shared_experts")
_DTYPES = {"bfloat16": "bf16", "float16": "fp16"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """A model whose experts are to be placed.

    Attributes:
        name: Name of the preset, or of the folder or file that the model was read from.
        layer: One MoE layer of the model.
        dense_part: The rest of the model.
        source: The source of the sizes.
        published_as: Recipe of the format in which the weights are published; see
            `moesim.model.precision.RECIPES`.
        notes: The assumptions that were made, in words.
    """

    name: str
    layer: MoELayer
    dense_part: DensePart
    source: str
    published_as: str = "bf16"
    notes: tuple[str, ...] = ()

    def with_precision(self, precision: Precision) -> "Model":
        """Return the same model in another format."""
        return replace(self, layer=replace(self.layer, precision=precision))


def load_model(name: str) -> Model:
    """Load a preset or a ``config.json`` (or the folder that holds one) in its published format.

    Raises:
        UnknownNameError: The name is neither of these.
        ConfigError: The file does not exist or lacks a value that a simulation needs. The text
            names the file, the key, the expected value and the value found.
    """
    path = Path(name)
    if name.endswith(".json") or path.is_dir():
        return read_config(path / "config.json" if path.is_dir() else path)
    if name not in preset_names():
        try:
            load_preset(name)
        except UnknownNameError as error:
            raise ConfigError(f"{error} (or give the path of a config.json)") from None
    preset = load_preset(name)
    return Model(
        name=name,
        layer=replace(preset.layer, precision=Precision.named(preset.published_as)),
        dense_part=preset.dense_part,
        source=preset.source,
        published_as=preset.published_as,
    )


def read_config(path: Path) -> Model:
    """Read a model from its ``config.json``.

    Raises:
        ConfigError: The file does not exist, is not JSON or is not a Mixture-of-Experts model, or a
            key is missing or malformed.
    """
    data = toml.read_json(path)
    if not isinstance(data, dict):
        raise ConfigError(
            f"{path}: expected a JSON object with a model's configuration, got "
            f"{type(data).__name__}"
        )
    inner = data.get("text_config")
    if isinstance(inner, dict):  # the language part of a multimodal model
        data = {**data, **inner}
    return _Config(path, data).model()


class _Config:
    """The keys of one file, read strictly."""

    def __init__(self, path: Path, data: dict[str, Any]) -> None:
        self.where, self.given = str(path), data
        self.kind = str(data.get("model_type", ""))
        self.data = {
            **_IMPLIED.get(self.kind, {}),
            **{k: v for k, v in data.items() if v is not None},
        }
        self.notes: list[str] = []
        self.path = path

    def has(self, *names: str) -> bool:
        return any(name in self.data for name in names)

    def whole(self, *names: str, what: str, default: int | None = None, low: int = 1) -> int:
        """Return the integer under the first of several names that exists."""
        for name in names:
            if name in self.data:
                value = self.data[name]
                require(
                    isinstance(value, int) and not isinstance(value, bool) and value >= low,
                    f"{self.where}: {name}",
                    f"an integer >= {low}, {what}",
                    value,
                )
                return value
        if default is None:
            also = f" (or {', '.join(names[1:])})" if len(names) > 1 else ""
            raise ConfigError(
                f"{self.where}: {names[0]}{also}: expected an integer, {what}, got nothing"
            )
        return default

    def model(self) -> Model:
        if self.kind == "switch_transformers":
            raise ConfigError(
                f"{self.where}: model_type: expected a decoder-only model, got "
                "switch_transformers (the preset switch-base-128 is one)"
            )
        if not self.has(*_EXPERTS):
            raise ConfigError(
                f"{self.where}: expected a Mixture-of-Experts model, with one of "
                f"{', '.join(_EXPERTS)}, got model_type {self.kind or '(none)'} without"
            )
        if self.kind not in _IMPLIED:
            self.notes.append(
                f"model_type {self.kind or '(none)'} is not one of {', '.join(_IMPLIED)}: read by "
                "the same keys"
            )
        hidden = self.whole("hidden_size", "d_model", what="the width of a token")
        width = self.whole(
            "moe_intermediate_size", "intermediate_size", what="the width of an expert"
        )
        layers = self.whole("num_hidden_layers", what="the number of layers")
        published = self._precision()
        moe_layers = self._moe_layers(layers)
        try:
            layer = MoELayer(
                hidden_size=hidden,
                expert_intermediate_size=width,
                gate=self._gate(),
                num_experts=self.whole(*_EXPERTS, what="the number of routed experts"),
                top_k=self.whole(*_TOP_K, what="the experts of a token"),
                num_shared_experts=self._shared(width),
                precision=Precision.named(published),
            )
            dense = DensePart(
                num_layers=layers,
                num_moe_layers=moe_layers,
                hidden_size=hidden,
                vocab_size=self.whole("vocab_size", what="the number of tokens known"),
                dense_intermediate_size=self._dense_width(hidden, width, layers > moe_layers),
                tied_embeddings=self._tied(),
                weight_bytes=dense_weight_bytes(self.data.get("quantization_config")),
                **self._attention(hidden),
            )
        except ConfigError as error:
            if str(error).startswith(self.where):
                raise
            raise ConfigError(f"{self.where}: {error}") from None
        if self.data.get("num_nextn_predict_layers"):
            self.notes.append("layers for multi-token prediction are not counted")
        file = self.path.resolve()
        return Model(
            name=file.parent.name if file.name == "config.json" else file.stem,
            layer=layer,
            dense_part=dense,
            source=self.where,
            published_as=published,
            notes=tuple(self.notes),
        )

    def _moe_layers(self, layers: int) -> int:
        """Return the number of layers with experts, counted as the configuration classes do."""
        listed = self.data.get("moe_layers")
        if isinstance(listed, list) and listed:
            return len(listed)
        frequency = self.data.get("moe_layer_freq", 1)
        first = self.whole(
            "first_k_dense_replace",
            what="dense layers before the first with experts",
            default=0,
            low=0,
        )
        if isinstance(frequency, list):  # one entry per layer: whether it has experts
            require(
                len(frequency) == layers,
                f"{self.where}: moe_layer_freq",
                f"one entry for each of {layers} layers",
                frequency,
            )
            count = sum(map(bool, frequency))
        else:
            every = self.whole(
                "moe_layer_freq", what="layers from one with experts to the next", default=1
            )
            step = self.whole(
                "decoder_sparse_step",
                "interleave_moe_layer_step",
                default=1,
                what="layers from one with experts to the next",
            )
            plain = self.data.get("mlp_only_layers", [])
            require(
                isinstance(plain, list), f"{self.where}: mlp_only_layers", "a list of layers", plain
            )
            count = sum(
                i >= first and i % every == 0 and (i + 1) % step == 0 and i not in plain
                for i in range(layers)
            )
        require(count > 0, f"{self.where}: layers", f"some of {layers} layers with experts", count)
        return count

    def _gate(self) -> Gate:
        score: Any = self.data.get("scoring_func")
        if score is None:
            score = "softmax"
            if self.kind not in _IMPLIED:
                self.notes.append("scoring_func is not stated: softmax assumed")
        require(
            score in ("softmax", "sigmoid"),
            f"{self.where}: scoring_func",
            "softmax or sigmoid",
            score,
        )
        groups = self.whole("n_group", what="groups of experts", default=1)
        kept = self.whole("topk_group", what="groups a token may use", default=1)
        require(kept <= groups, f"{self.where}: topk_group", f"at most n_group = {groups}", kept)
        if kept == groups or self.data.get("topk_method") == "greedy":
            return Gate(score=score)
        return Gate(
            kind="group_limited", num_expert_groups=groups, num_limited_groups=kept, score=score
        )

    def _shared(self, width: int) -> int:
        """Return the number of shared experts, in units of the width of a routed expert."""
        if self.has(*_SHARED):
            return self.whole(*_SHARED, what="experts that every token uses", low=0)
        whole = self.whole(
            "shared_expert_intermediate_size",
            "shared_intermediate_size",
            default=0,
            low=0,
            what="the width of the shared expert",
        )
        if whole % width:
            self.notes.append(
                f"a shared expert of width {whole} counts as {max(round(whole / width), 1)} of "
                f"{width}"
            )
        return max(round(whole / width), 1) if whole else 0

    def _dense_width(self, hidden: int, width: int, needed: bool) -> int:
        """Return the width of a dense layer, or if there is none, the width that granularity is
        relative to.
        """
        name = "intermediate_size_mlp" if self.has("intermediate_size_mlp") else "intermediate_size"
        if self.has("moe_intermediate_size", "intermediate_size_mlp") and (
            needed or self.has(name)
        ):
            return self.whole(name, what="the width of a dense layer")
        if width >= 2 * hidden:
            return width
        self.notes.append("no width of a dense layer is stated: 4 x hidden_size")
        return 4 * hidden

    def _tied(self) -> bool:
        tied = self.data.get("tie_word_embeddings")
        if tied is None:
            self.notes.append("tie_word_embeddings is not stated: an output head of its own")
            return False
        require(isinstance(tied, bool), f"{self.where}: tie_word_embeddings", "true or false", tied)
        return tied

    def _attention(self, hidden: int) -> dict[str, Any]:
        heads = self.whole("num_attention_heads", what="attention heads")
        if self.has("kv_lora_rank"):
            size = self.whole(
                "qk_nope_head_dim", what="the width of a head without its rotary part"
            )
            found = Attention(
                num_heads=heads,
                head_size=size,
                q_rank=self.whole("q_lora_rank", what="a rank", default=0, low=0),
                kv_rank=self.whole("kv_lora_rank", what="the rank of keys and values"),
                rope_size=self.whole("qk_rope_head_dim", what="the rotary width of a head"),
                value_size=self.whole(
                    "v_head_dim", what="the width of a head's values", default=size
                ),
            )
        else:
            if not self.has("head_dim"):
                require(
                    hidden % heads == 0,
                    f"{self.where}: head_dim",
                    f"the width of a head, since num_attention_heads = {heads} does not divide "
                    f"{hidden}",
                    None,
                )
            found = Attention(
                num_heads=heads,
                head_size=self.whole(
                    "head_dim", what="the width of a head", default=hidden // heads
                ),
                num_kv_heads=self.whole(
                    "num_key_value_heads", what="heads of keys and values", default=heads
                ),
            )
        if "linear_attention" in self.data.get("layer_types", []):
            self.notes.append(
                "layers of linear attention are counted as full attention: weights and cache are "
                "rough"
            )
        return {
            "attention_params_per_layer": found.params(hidden),
            "kv_bytes_per_token_per_layer": found.kv_bytes(),
        }

    def _precision(self) -> str:
        stated = self.data.get("quantization_config")
        if isinstance(stated, dict):
            name = recipe_of(stated)
            if name is not None:
                return name
            method = stated.get("quant_method", "(none)")
            self.notes.append(
                f"quantization_config of {method} is none of the known ones: bf16 assumed"
            )
            return "bf16"
        dtype = self.data.get("torch_dtype", self.data.get("dtype", "bfloat16"))
        if dtype not in _DTYPES:
            self.notes.append(f"torch_dtype {dtype}: bf16 assumed")
        return _DTYPES.get(dtype, "bf16")


__all__ = ["Model", "load_model", "read_config"]
