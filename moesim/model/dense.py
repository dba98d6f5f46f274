"""The dense part of a model around its MoE layers, as far as loss and memory depend on it."""

import math
from dataclasses import dataclass, replace

from moesim.errors import require, require_int
from moesim.model.layer import MoELayer

#: embeddings and output heads stay in 16 bits in every quantization
_EMBEDDING_BYTES = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class DensePart:
    """Everything in the model except the routed experts, as far as loss and memory depend on it.

    Attributes:
        num_layers: Number of transformer layers; ``num_moe_layers`` of them have experts, the
            others have a dense feed-forward block.
        num_moe_layers: Number of layers with experts.
        hidden_size: Width of a token.
        vocab_size: Number of rows of the embedding and of the output head.
        attention_params_per_layer: Number of weights of one attention block.
        kv_bytes_per_token_per_layer: Bytes that one token adds to the KV cache of one layer.
        dense_intermediate_size: Width of a dense feed-forward block of the model, which is also the
            width that granularity is relative to.
        dense_params: Number of weights outside embeddings, attention and MoE layers, if they are
            not those of a gated block of dense_intermediate_size in each layer without experts.
        idle_params: Number of the weights in this part that no token of text uses.
        tied_embeddings: Whether the output head shares the embedding.
        weight_bytes: Bytes of a weight of attention and dense layers, in the model's own
            quantization; embeddings have 2.

    Raises:
        ConfigError: A size is below its minimum.
    """

    num_layers: int
    num_moe_layers: int
    hidden_size: int
    vocab_size: int
    attention_params_per_layer: int
    kv_bytes_per_token_per_layer: float
    dense_intermediate_size: int
    tied_embeddings: bool = False
    weight_bytes: float = 2.0
    dense_params: int | None = None
    idle_params: int = 0

    def __post_init__(self) -> None:
        require(
            0 < self.weight_bytes < math.inf,
            "dense_part.weight_bytes",
            "a number > 0",
            self.weight_bytes,
        )
        for name in ("num_layers", "hidden_size", "vocab_size", "dense_intermediate_size"):
            require_int(f"dense_part.{name}", getattr(self, name), 1)
        for name in ("attention_params_per_layer", "idle_params"):
            require_int(f"dense_part.{name}", getattr(self, name), 0)
        if self.dense_params is not None:
            require_int("dense_part.dense_params", self.dense_params, 0)
        kv_bytes = self.kv_bytes_per_token_per_layer
        require(
            0 <= kv_bytes < math.inf,
            "dense_part.kv_bytes_per_token_per_layer",
            "a number >= 0",
            kv_bytes,
        )
        require(
            1 <= self.num_moe_layers <= self.num_layers,
            "dense_part.num_moe_layers",
            f"between 1 and num_layers = {self.num_layers}",
            self.num_moe_layers,
        )

    @property
    def params(self) -> int:
        """The number of weights outside the experts and gates of the MoE layers: embeddings,
        attention, dense feed-forward layers.
        """
        dense_ffn = self.dense_params
        if dense_ffn is None:
            plain = self.num_layers - self.num_moe_layers
            dense_ffn = 3 * self.hidden_size * self.dense_intermediate_size * plain
        layers = self.num_layers * self.attention_params_per_layer + dense_ffn
        return self.embedding_params + layers

    @property
    def embedding_params(self) -> int:
        """The number of weights of the embedding and of an output head of its own."""
        return self.vocab_size * self.hidden_size * (1 if self.tied_embeddings else 2)

    @property
    def num_bytes(self) -> float:
        """The bytes of the weights outside the experts and gates of the MoE layers."""
        embeddings = self.embedding_params
        return embeddings * _EMBEDDING_BYTES + (self.params - embeddings) * self.weight_bytes

    def active_params(self, layer: MoELayer) -> int:
        """Return the number of weights that one token uses in the whole model, embeddings included
        (the N of the joint scaling law).
        """
        return self.params - self.idle_params + self.num_moe_layers * layer.active_params

    def all_moe(self, num_layers: int) -> "DensePart":
        """Return the dense part of a model of this many layers that all have experts."""
        beside = None
        if self.dense_params is not None:
            beside = round(self.dense_params * num_layers / self.num_layers)
        return replace(
            self,
            num_layers=num_layers,
            num_moe_layers=num_layers,
            dense_params=beside,
            idle_params=round(self.idle_params * num_layers / self.num_layers),
        )
