"""Read a model's architecture and formats from its configuration."""

from dataclasses import dataclass
from pathlib import Path

from moesim.errors import ConfigError
from moesim.limits import MOST_LAYERS
from moesim.model.feedforward import DenseFeedForward
from moesim.model.hf_config import words
from moesim.model.hf_config.attention import read_mixer
from moesim.model.hf_config.blocks import (
    dense_width_stated,
    has_dense_beside,
    read_dense,
    read_moe,
)
from moesim.model.hf_config.families import Family, family_of
from moesim.model.hf_config.files import read_keys
from moesim.model.hf_config.formats import Formats, read_formats
from moesim.model.hf_config.ignored import judge
from moesim.model.hf_config.keys import Keys
from moesim.model.hf_config.layout import layout
from moesim.model.hf_config.sizes import EXPERTS
from moesim.model.spec import LayerKind, ModelSpec
from moesim.model.weights import Weight

#: names of the number of layers that predict further tokens
_FURTHER = (
    "num_nextn_predict_layers",
    "mtp_num_hidden_layers",
    "num_mtp_layers",
    "num_mtp_modules",
)
_LAYERS = ("num_hidden_layers", "n_layers", "num_layers")


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """What a configuration says.

    Attributes:
        spec: The architecture.
        formats: The number formats.
        dense_width: Width of dense layers where one is stated apart from the experts'.
        notes: The assumptions that were made, in words.
    """

    spec: ModelSpec
    formats: Formats
    dense_width: int | None
    notes: tuple[str, ...]


def read(path: Path, lenient: bool = False) -> Reading:
    """Read a configuration file.

    Args:
        path: A ``config.json`` or ``params.json``.
        lenient: Whether keys that contradict or are not understood become notes.

    Raises:
        ConfigError: The file cannot be read, is no Mixture-of-Experts model that decodes, lacks a
            size, contradicts itself, or has a key that changes sizes and is not understood.
    """
    data = read_keys(path)
    kind, family = family_of(data)
    if data.get("is_encoder_decoder") and not (family and family.refused):
        raise ConfigError(
            f"{path}: model_type: expected a decoder-only model, got {kind or '(none)'}, which has "
            "an encoder, too"
        )
    if family is not None and family.refused:
        raise ConfigError(f"{path}: model_type: {family.refused}")
    data = {k: v for k, v in data.items() if family is None or k not in family.unused}
    keys = Keys(str(path), data, family.implied if family else {}, lenient)
    if not keys.has(*EXPERTS):
        raise ConfigError(
            f"{path}: expected a Mixture-of-Experts model, with one of {', '.join(EXPERTS)}, got "
            f"model_type {kind or '(none)'} without"
        )
    if family is None:
        keys.notes.append(
            f"model_type {kind or '(none)'} is not known: read by the keys of the other classes"
        )
        keys.notes += _assumed(keys)
    try:
        spec = _spec(keys, family or Family())
        formats = read_formats(keys, spec.num_moe_layers)
        width = dense_width_stated(keys.at(0))
    except ConfigError as error:
        if str(error).startswith(str(path)):
            raise
        raise ConfigError(f"{path}: {error}") from None
    judge(keys)
    if any(keys.given.get(name) for name in _FURTHER):
        keys.notes.append("layers for multi-token prediction are not counted")
    return Reading(
        spec=spec, formats=formats, dense_width=width, notes=tuple(dict.fromkeys(keys.notes))
    )


def _assumed(keys: Keys) -> list[str]:
    """Return what is assumed of a class that is not known where its file does not say."""
    found = []
    if not any("scor" in name or "router_activation" in name for name in keys.given):
        found.append("scoring_func is not stated: softmax assumed")
    if not keys.has("tie_word_embeddings"):
        found.append("tie_word_embeddings is not stated: an output head of its own")
    return found


def _spec(keys: Keys, family: Family) -> ModelSpec:
    hidden = keys.whole("hidden_size", "d_model", what="the width of a token")
    _count_layers(keys, family)
    pairs = layout(keys, family)
    experts = [block for _, block in pairs if block in (words.MOE, words.HASH_MOE)]
    keys.require(
        len(experts) > 0, "layers", f"some of {len(pairs)} layers with experts", len(experts)
    )
    blocks: list[LayerKind] = []
    for number, (mixer, block) in enumerate(pairs):
        blocks += _layer(keys.at(number), family, number, mixer, block, hidden)
    vocab = keys.whole("vocab_size", what="the number of tokens known")
    streams = keys.whole("hc_mult", what="residual streams", default=1)
    return ModelSpec(
        hidden_size=hidden,
        vocab_size=vocab,
        tied_embeddings=keys.flag("tie_word_embeddings"),
        blocks=tuple(blocks),
        blocks_per_layer=family.blocks_per_layer,
        extra=(
            *_hyper("head", streams, streams, hidden),
            *_layer_embeddings(keys, vocab, hidden, len(blocks)),
        ),
    )


def _count_layers(keys: Keys, family: Family) -> None:
    """Set the number of layers, and of those that predict further tokens."""
    names = ("num_layers",) if family.blocks_per_layer > 1 else _LAYERS
    if family.blocks_per_layer > 1:
        keys.has("num_hidden_layers")  # the number of blocks, or again of layers
    if keys.has(*names):
        count = keys.whole(*names, what="the number of layers")
        keys.require(count <= MOST_LAYERS, names[0], f"at most {MOST_LAYERS} layers", count)
        keys.num_layers = count
    elif not keys.has("hybrid_override_pattern", "layers_block_type"):
        keys.whole(*names, what="the number of layers")
    stated = [keys.whole(name, what="layers", default=0, low=0) for name in _FURTHER]
    keys.num_extra = max(stated)


def _layer(
    keys: Keys, family: Family, number: int, mixer: str, block: str, hidden: int
) -> list[LayerKind]:
    """Return the blocks of one layer: one, or if the class has two a layer, both."""
    dense: DenseFeedForward | None = None
    moe = None
    if block in (words.MOE, words.HASH_MOE):
        moe = read_moe(keys, family, block)
        if has_dense_beside(keys, family):
            dense = read_dense(keys, family)
        if keys.flag("parallel_attn_mlp_res"):  # Arctic: a residual block as wide as a token
            dense = DenseFeedForward(width=hidden)
    elif block == words.DENSE:
        dense = read_dense(keys, family)
    first = LayerKind(
        mixer=read_mixer(keys, family, mixer, number, hidden),
        dense=dense,
        moe=moe,
        extra=_beside(keys, hidden),
    )
    second = LayerKind(mixer=first.mixer, dense=dense, extra=first.extra)
    return [first, *[second] * (family.blocks_per_layer - 1)]


def _beside(keys: Keys, hidden: int) -> tuple[Weight, ...]:
    """Return the weights of a layer outside mixer and feed-forward: hyper-connections around both
    (DeepSeek-V4), inputs of its own (Gemma 3n and 4).
    """
    streams = keys.whole("hc_mult", what="residual streams", default=1)
    own = keys.whole("hidden_size_per_layer_input", what="an input's width", default=0, low=0)
    found = _hyper("connections", 2 * (2 * streams + streams**2), streams, hidden)
    if own:
        found += (Weight("input_gate", own, hidden), Weight("input", hidden, own))
    return found


def _hyper(name: str, outputs: int, streams: int, hidden: int) -> tuple[Weight, ...]:
    """Return the matrix that mixes several residual streams; none for one stream."""
    return (Weight(name, outputs, streams * hidden),) if streams > 1 else ()


def _layer_embeddings(keys: Keys, vocab: int, hidden: int, layers: int) -> tuple[Weight, ...]:
    """Return the embeddings of inputs that every layer has of its own (Gemma 3n and 4)."""
    size = keys.whole("hidden_size_per_layer_input", what="an input's width", default=0, low=0)
    rows = keys.whole("vocab_size_per_layer_input", what="tokens known", default=vocab)
    if not size:
        return ()
    return (
        Weight("layer_embeddings", rows, layers * size, 1, 1 / rows),
        Weight("layer_inputs", layers * size, hidden),
    )
