"""Load published models by name: the MoE layer and the dense part around it."""

from dataclasses import dataclass, replace
from functools import cache
from importlib.resources import files

from pydantic import Field, RootModel

from moesim.errors import UnknownNameError
from moesim.files import toml
from moesim.files.showing import Showable
from moesim.files.toml import Strict
from moesim.model.dense import DensePart
from moesim.model.derive import dense_part_of, layer_of
from moesim.model.feedforward import DenseFeedForward, MoEFeedForward
from moesim.model.gate import Gate
from moesim.model.latent import LatentAttention
from moesim.model.layer import MoELayer
from moesim.model.mixers import GroupedAttention, Mixer
from moesim.model.precision import Precision
from moesim.model.spec import LayerKind, ModelSpec


class _Attention(Strict):
    """The sizes of an attention block; those from ``q_rank`` on are for multi-head latent
    attention (DeepSeek-V2, arXiv 2405.04434).
    """

    num_heads: int = Field(ge=1)
    head_size: int = Field(ge=1)
    num_kv_heads: int = Field(default=0, ge=0)
    q_rank: int = 0
    kv_rank: int = 0
    rope_size: int = 0
    #: width of the values of a head, if it is not head_size
    value_size: int = 0

    def mixer(self) -> Mixer:
        """Return the attention with these sizes."""
        if self.kv_rank:
            return LatentAttention(
                num_heads=self.num_heads,
                head_size=self.head_size,
                rope_size=self.rope_size,
                value_size=self.value_size or self.head_size,
                q_rank=self.q_rank,
                kv_rank=self.kv_rank,
            )
        return GroupedAttention(
            num_heads=self.num_heads, num_kv_heads=self.num_kv_heads, head_size=self.head_size
        )


class _Preset(Strict):
    source: str
    hidden_size: int
    expert_intermediate_size: int
    num_experts: int
    top_k: int
    num_shared_experts: int = 0
    #: whether a gate of one output weighs the shared experts (Qwen2-MoE)
    has_shared_gate: bool = False
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
    #: whether half of the layers are an encoder, whose output the others attend to, too
    encoder_decoder: bool = False
    #: whether MoE layers alternate with dense ones, which otherwise come first
    alternating: bool = False
    attention: _Attention

    def spec(self) -> ModelSpec:
        """Return the whole architecture."""
        moe = MoEFeedForward(
            num_experts=self.num_experts,
            top_k=self.top_k,
            width=self.expert_intermediate_size,
            gate=replace(Gate.parse(self.gate), score=self.score),  # type: ignore[arg-type]
            gated=self.gated,
            num_shared_experts=self.num_shared_experts,
            shared_width=self.expert_intermediate_size if self.num_shared_experts else 0,
            has_shared_gate=self.has_shared_gate,
        )
        dense = DenseFeedForward(width=self.dense_intermediate_size, gated=self.gated)
        mixer, first = self.attention.mixer(), self.num_layers - self.num_moe_layers
        blocks = []
        for i in range(self.num_layers):
            sparse = i % 2 == 1 if self.alternating else i >= first
            decodes = self.encoder_decoder and 2 * i >= self.num_layers
            blocks.append(
                LayerKind(
                    mixer=mixer,
                    cross=mixer if decodes else None,
                    moe=moe if sparse else None,
                    dense=None if sparse else dense,
                )
            )
        return ModelSpec(
            hidden_size=self.hidden_size,
            vocab_size=self.vocab_size,
            tied_embeddings=self.tied_embeddings,
            blocks=tuple(blocks),
        )


class _Presets(RootModel[dict[str, _Preset]]):
    pass


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Preset(Showable):
    """A published model.

    Attributes:
        name: Name of the preset.
        spec: The whole architecture.
        layer: One MoE layer of the model.
        dense_part: The rest of the model.
        source: The source of the sizes.
        published_as: Recipe of the format in which the weights are published.
    """

    name: str
    spec: ModelSpec
    layer: MoELayer
    dense_part: DensePart
    source: str
    published_as: str

    def facts(self) -> dict[str, str]:
        """Return what people look at first, as texts."""
        return {
            "name": self.name,
            "layers": str(len(self.spec.blocks)),
            "experts": f"{self.layer.num_experts}, {self.layer.top_k} a token",
            "published as": self.published_as,
            "layer": repr(self.layer),
            "source": self.source,
        }


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
    spec = p.spec()
    layer, _ = layer_of(spec, precision or Precision())
    layer = replace(layer, capacity_factor=p.capacity_factor)
    dense = dense_part_of(
        spec,
        layer,
        p.dense_intermediate_size,
        Precision.named(p.published_as if p.dense_quantized else "bf16").weight_bytes,
    )
    return Preset(
        name=name,
        spec=spec,
        layer=layer,
        dense_part=dense,
        source=p.source,
        published_as=p.published_as,
    )
