"""Load published models by name: the MoE layer and the dense part around it."""

from dataclasses import dataclass, replace
from functools import cache
from importlib.resources import files

from pydantic import Field, RootModel

from moesim.errors import UnknownNameError
from moesim.files import toml
from moesim.files.toml import Strict
from moesim.model.gate import Gate
from moesim.model.layer import DensePart, MoELayer
from moesim.model.precision import Precision

_KV_BYTES_PER_ELEMENT = 2.0


class Attention(Strict):
    """The sizes of an attention block; those from ``q_rank`` on are for multi-head latent
    attention.
    """

    num_heads: int = Field(ge=1)
    head_size: int = Field(ge=1)
    num_kv_heads: int = Field(default=0, ge=0)
    blocks_per_layer: float = 1.0
    #: set for multi-head latent attention (DeepSeek-V2, arXiv 2405.04434)
    q_rank: int = 0
    kv_rank: int = 0
    rope_size: int = 0
    #: width of the values of a head, if it is not head_size
    value_size: int = 0

    def params(self, hidden: int) -> int:
        """Return the number of weights of the attention of one layer."""
        heads = self.num_heads * self.head_size
        if self.kv_rank:
            values = self.num_heads * (self.value_size or self.head_size)
            query = (self.q_rank or hidden) * self.num_heads * (self.head_size + self.rope_size)
            key_value = hidden * (self.kv_rank + self.rope_size) + self.kv_rank * (heads + values)
            return hidden * self.q_rank + query + key_value + values * hidden
        return int(
            self.blocks_per_layer
            * (2 * hidden * heads + 2 * hidden * self.num_kv_heads * self.head_size)
        )

    def kv_bytes(self) -> float:
        """Return the bytes that a token adds to the cache of one layer, in bf16."""
        if self.kv_rank:
            return (self.kv_rank + self.rope_size) * _KV_BYTES_PER_ELEMENT
        return 2.0 * self.num_kv_heads * self.head_size * _KV_BYTES_PER_ELEMENT


class _Preset(Strict):
    source: str
    hidden_size: int
    expert_intermediate_size: int
    num_experts: int
    top_k: int
    num_shared_experts: int = 0
    capacity_factor: float | None = None
    gated: bool = True
    gate: str = "flat"
    score: str = "softmax"
    num_layers: int
    num_moe_layers: int
    vocab_size: int
    dense_intermediate_size: int
    tied_embeddings: bool = False
    #: recipe of the published weights, and whether attention and dense layers have it, too
    published_as: str = "bf16"
    dense_quantized: bool = False
    attention: Attention


class _Presets(RootModel[dict[str, _Preset]]):
    pass


@dataclass(frozen=True, slots=True, kw_only=True)
class Preset:
    """A published model.

    Attributes:
        name: Name of the preset.
        layer: One MoE layer of the model.
        dense_part: The rest of the model.
        source: The source of the sizes.
        published_as: Recipe of the format in which the weights are published.
    """

    name: str
    layer: MoELayer
    dense_part: DensePart
    source: str
    published_as: str


@cache
def _file() -> dict[str, _Preset]:
    text = (files("moesim.model") / "presets.toml").read_text(encoding="utf-8")
    return toml.parse(text, _Presets, "presets.toml").root


def preset_names() -> list[str]:
    """Return the names of all presets."""
    return sorted(_file())


def load_preset(name: str, precision: Precision | None = None) -> Preset:
    """Load a published model.

    Args:
        name: Name of the preset, such as ``mixtral-8x7b``.
        precision: Number formats of the layer; bf16 throughout by default.

    Raises:
        UnknownNameError: The preset does not exist; the text lists the near matches.
    """
    presets = _file()
    if name not in presets:
        raise UnknownNameError("preset", name, presets)
    p = presets[name]
    gate = replace(Gate.parse(p.gate), score=p.score)  # type: ignore[arg-type]
    layer = MoELayer(
        hidden_size=p.hidden_size,
        expert_intermediate_size=p.expert_intermediate_size,
        num_experts=p.num_experts,
        top_k=p.top_k,
        num_shared_experts=p.num_shared_experts,
        capacity_factor=p.capacity_factor,
        gated=p.gated,
        gate=gate,
        precision=precision or Precision(),
    )
    dense = DensePart(
        num_layers=p.num_layers,
        num_moe_layers=p.num_moe_layers,
        hidden_size=p.hidden_size,
        vocab_size=p.vocab_size,
        attention_params_per_layer=p.attention.params(p.hidden_size),
        kv_bytes_per_token_per_layer=p.attention.kv_bytes(),
        dense_intermediate_size=p.dense_intermediate_size,
        tied_embeddings=p.tied_embeddings,
        weight_bytes=Precision.named(p.published_as if p.dense_quantized else "bf16").weight_bytes,
    )
    return Preset(
        name=name,
        layer=layer,
        dense_part=dense,
        source=p.source,
        published_as=p.published_as,
    )
