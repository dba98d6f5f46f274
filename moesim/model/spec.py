"""A whole model: embedding, the kinds of layers in order, output head.

This is the one description of a model's architecture. Parameters, bytes of cache and state, and the
`MoELayer` and `DensePart` that designs are made of (`moesim.model.whole`) all follow from it.
"""

from collections import Counter
from dataclasses import dataclass
from itertools import groupby

from moesim.errors import require, require_int
from moesim.model.feedforward import DenseFeedForward, MoEFeedForward
from moesim.model.layer import MoELayer
from moesim.model.mixers import Mixer
from moesim.model.precision import Precision
from moesim.model.weights import Weight, total, total_active


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerKind:
    """One kind of layer: a mixer, then a feed-forward; each may be missing.

    Attributes:
        mixer: What lets tokens see each other; None for a layer that is a feed-forward only.
        cross: A second attention, over the output of an encoder; None in a decoder-only model.
        dense: The dense feed-forward; with ``moe``, both run side by side and are added.
        moe: The experts.
        extra: Weights of the layer beside these, such as hyper-connections.
    """

    mixer: Mixer | None = None
    cross: Mixer | None = None
    dense: DenseFeedForward | None = None
    moe: MoEFeedForward | None = None
    extra: tuple[Weight, ...] = ()

    @property
    def name(self) -> str:
        """The kind in a few words with its sizes."""
        parts = [part.kind for part in self.mixers]
        both = [part.kind for part in (self.dense, self.moe) if part is not None]
        return "; ".join([*parts, " beside ".join(both)] if both else parts)

    @property
    def mixers(self) -> tuple[Mixer, ...]:
        """The attention, and that over an encoder's output, as far as they are there."""
        return tuple(part for part in (self.mixer, self.cross) if part is not None)

    def mixer_weights(self, hidden_size: int) -> tuple[Weight, ...]:
        """Return the weights of both mixers."""
        found = (part.weights(hidden_size) for part in self.mixers)
        return tuple(weight for weights in found for weight in weights)

    def weights(self, hidden_size: int) -> tuple[Weight, ...]:
        """Return all weights of a layer of this kind."""
        both = (part.weights(hidden_size) for part in (self.dense, self.moe) if part is not None)
        return (
            *self.mixer_weights(hidden_size),
            *(weight for weights in both for weight in weights),
            *self.extra,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    """A model's architecture.

    Attributes:
        hidden_size: Width of a token.
        vocab_size: Number of rows of the embedding and of the output head.
        tied_embeddings: Whether the output head shares the embedding.
        blocks: The kind of every block, in order.
        blocks_per_layer: Number of blocks that the model's makers count as one layer: 2 in
            LongCat-Flash, otherwise 1.
        extra: Weights beside embedding, layers and head, such as embeddings per layer.

    Raises:
        ConfigError: A size is below 1, there is no block, or the blocks are no whole layers.
    """

    hidden_size: int
    vocab_size: int
    tied_embeddings: bool
    blocks: tuple[LayerKind, ...]
    blocks_per_layer: int = 1
    extra: tuple[Weight, ...] = ()

    def __post_init__(self) -> None:
        for name in ("hidden_size", "vocab_size", "blocks_per_layer"):
            require_int(f"model.{name}", getattr(self, name), 1)
        require(
            len(self.blocks) > 0 and len(self.blocks) % self.blocks_per_layer == 0,
            "model.blocks",
            f"a multiple of blocks_per_layer = {self.blocks_per_layer}, at least one layer",
            len(self.blocks),
        )

    @property
    def num_layers(self) -> int:
        """The number of layers, as the model's makers count them."""
        return len(self.blocks) // self.blocks_per_layer

    @property
    def num_moe_layers(self) -> int:
        """The number of blocks with experts."""
        return sum(block.moe is not None for block in self.blocks)

    @property
    def kinds(self) -> dict[LayerKind, int]:
        """Each kind of block with the number of them, in order of their first."""
        return dict(Counter(self.blocks))

    @property
    def runs(self) -> list[tuple[LayerKind, int]]:
        """The blocks in order, as (kind, number of consecutive blocks of it)."""
        return [(kind, len(list(run))) for kind, run in groupby(self.blocks)]

    @property
    def embedding_weights(self) -> tuple[Weight, ...]:
        """The embedding, and the output head if it has weights of its own."""
        found = Weight("embedding", self.vocab_size, self.hidden_size)
        head = Weight("head", self.vocab_size, self.hidden_size)
        return (found,) if self.tied_embeddings else (found, head)

    @property
    def total_params(self) -> int:
        """The number of weights, without biases and norms."""
        layers = (n * total(kind.weights(self.hidden_size)) for kind, n in self.kinds.items())
        return total(self.embedding_weights) + total(self.extra) + sum(layers)

    @property
    def active_params(self) -> int:
        """The number of weights that one token uses, embedding and head included."""
        layers = (
            n * total_active(kind.weights(self.hidden_size)) for kind, n in self.kinds.items()
        )
        rest = total(self.embedding_weights) + total_active(self.extra)
        return round(rest + sum(layers))

    @property
    def kv_bytes_per_token(self) -> float:
        """The bytes of keys and values that one token adds in all layers, in bf16; a window is not
        deducted.
        """
        return self._kept("kv_bytes_per_token")

    @property
    def index_bytes_per_token(self) -> float:
        """The bytes that one token adds to the caches of indexers in all layers, in bf16."""
        return self._kept("index_bytes_per_token")

    @property
    def state_bytes_per_sequence(self) -> float:
        """The bytes that a sequence keeps in all layers whatever its length: recurrent states,
        inputs of convolutions.
        """
        return self._kept("state_bytes_per_sequence")

    def _kept(self, name: str) -> float:
        return sum(getattr(block.mixer, name) for block in self.blocks if block.mixer is not None)

    def routed(
        self, moe: MoEFeedForward, precision: Precision, capacity_factor: float | None = None
    ) -> MoELayer:
        """Return the routed experts of a kind of layer, with their gate; shared experts and
        projections around them are dense parts of a step.
        """
        return MoELayer(
            hidden_size=moe.latent_size or self.hidden_size,
            expert_intermediate_size=moe.width,
            num_experts=moe.num_experts,
            top_k=max(round(moe.computed_experts), 1),
            gated=moe.gated,
            gate=moe.gate,
            precision=precision,
            capacity_factor=capacity_factor,
        )

    @property
    def moe(self) -> MoEFeedForward | None:
        """The most frequent mixture of experts; the first of equally frequent ones."""
        found = Counter(block.moe for block in self.blocks if block.moe is not None)
        return found.most_common(1)[0][0] if found else None
