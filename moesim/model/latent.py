"""Attention over keys and values that are made from one small vector per token: MLA, and the
compressed attention of DeepSeek-V4.
"""

from dataclasses import dataclass

from moesim.errors import require_int
from moesim.model.mixers import CACHE_BYTES, Indexer, Mixer, OutputGate, gate_weights
from moesim.model.weights import Weight


@dataclass(frozen=True, slots=True, kw_only=True)
class LatentAttention(Mixer):
    """Multi-head latent attention: keys and values are made from one small vector per token
    (DeepSeek-V2, arXiv 2405.04434), which alone is cached.

    Attributes:
        num_heads: Number of heads.
        head_size: Width of a head without its rotary part.
        rope_size: Width of the rotary part, which all heads' keys share.
        value_size: Width of a head's values.
        q_rank: Rank of the queries; 0 if one matrix makes them.
        kv_rank: Width of the cached vector.
        window: Number of tokens that a query sees; None for all before it.
        output_gate: A gate on the output, see `GroupedAttention`.
        indexer: What picks the keys of a sparse attention; None for a dense one.

    Raises:
        ConfigError: A size is below its minimum.
    """

    num_heads: int
    head_size: int
    rope_size: int
    value_size: int
    kv_rank: int
    q_rank: int = 0
    window: int | None = None
    output_gate: OutputGate = "none"
    indexer: Indexer | None = None

    def __post_init__(self) -> None:
        for name in ("num_heads", "head_size", "value_size", "kv_rank"):
            require_int(f"attention.{name}", getattr(self, name), 1)
        for name in ("q_rank", "rope_size"):
            require_int(f"attention.{name}", getattr(self, name), 0)

    @property
    def kind(self) -> str:
        """What the mixer is, in a few words with its sizes."""
        name = "MLA" if self.indexer is None else "sparse MLA"
        window = f", window {self.window}" if self.window else ""
        ranks = f"ranks {self.q_rank or '-'}/{self.kv_rank}+{self.rope_size}"
        return f"{name} {self.num_heads} x {self.head_size}/{self.value_size}, {ranks}{window}"

    @property
    def kv_bytes_per_token(self) -> float:
        """The bytes of the cached vector and the rotary key, in bf16."""
        return float((self.kv_rank + self.rope_size) * CACHE_BYTES)

    @property
    def index_bytes_per_token(self) -> float:
        """The bytes that one token adds to the cache of the indexer, in bf16."""
        return self.indexer.bytes_per_token if self.indexer else 0.0

    def weights(self, hidden_size: int) -> tuple[Weight, ...]:
        """Return the projections down to the ranks and up to the heads, and the output."""
        queries, values = self.num_heads * (self.head_size + self.rope_size), self.value_size
        found = [Weight("q_up", queries, self.q_rank or hidden_size)]
        if self.q_rank:
            found.append(Weight("q_down", self.q_rank, hidden_size))
        found += [
            Weight("kv_down", self.kv_rank + self.rope_size, hidden_size),
            Weight("kv_up", self.num_heads * (self.head_size + values), self.kv_rank),
            Weight("o", hidden_size, self.num_heads * values),
        ]
        found += gate_weights(self.output_gate, self.num_heads, values, hidden_size)
        if self.indexer:
            found += self.indexer.weights(hidden_size, self.q_rank or hidden_size)
        return tuple(found)


@dataclass(frozen=True, slots=True, kw_only=True)
class CompressedAttention(Mixer):
    """The attention of DeepSeek-V4: one shared head of keys that are values, too, of which those
    outside a window are compressed, and an output of low rank by groups of heads.

    Attributes:
        num_heads: Number of query heads.
        head_size: Width of a head, and of the one key.
        q_rank: Rank of the queries.
        output_groups: Number of groups of heads with an output projection each.
        output_rank: Width that each group is projected to.
        window: Number of last tokens that are seen uncompressed.
        compress_ratio: Number of older tokens in one compressed key; 0 if none is kept.
        indexer: What picks the compressed keys to read; None to read them all.

    Raises:
        ConfigError: A size is below its minimum.
    """

    num_heads: int
    head_size: int
    q_rank: int
    output_groups: int
    output_rank: int
    window: int
    compress_ratio: int = 0
    indexer: Indexer | None = None

    def __post_init__(self) -> None:
        for name in ("num_heads", "head_size", "q_rank", "output_groups", "output_rank", "window"):
            require_int(f"attention.{name}", getattr(self, name), 1)
        require_int("attention.compress_ratio", self.compress_ratio, 0)

    @property
    def kind(self) -> str:
        """What the mixer is, in a few words with its sizes."""
        kept = f"1 key of {self.compress_ratio} tokens" if self.compress_ratio else "no older key"
        return f"compressed attention {self.num_heads} x {self.head_size}, {kept}"

    @property
    def kv_bytes_per_token(self) -> float:
        """The bytes that one token adds to the compressed keys, in bf16."""
        return self.head_size * CACHE_BYTES / self.compress_ratio if self.compress_ratio else 0.0

    @property
    def index_bytes_per_token(self) -> float:
        """The bytes that one token adds to the cache of the indexer, in bf16."""
        return self.indexer.bytes_per_token if self.indexer else 0.0

    @property
    def state_bytes_per_sequence(self) -> float:
        """The bytes of the uncompressed keys in the window, in bf16."""
        return float(self.window * self.head_size * CACHE_BYTES)

    def weights(self, hidden_size: int) -> tuple[Weight, ...]:
        """Return queries, the key, the compressor with its gate, and both output projections."""
        heads, rank = self.num_heads * self.head_size, self.output_groups * self.output_rank
        found = [
            Weight("q_down", self.q_rank, hidden_size),
            Weight("q_up", heads, self.q_rank),
            Weight("kv", self.head_size, hidden_size),
            Weight("o_down", self.output_rank, heads // self.output_groups, self.output_groups),
            Weight("o_up", hidden_size, rank),
        ]
        if self.compress_ratio:
            # with an indexer, two overlapping windows are compressed at once
            wide = self.head_size * (2 if self.indexer else 1)
            found += [Weight("compress", wide, hidden_size), Weight("gate", wide, hidden_size)]
        if self.indexer:
            found += self.indexer.weights(hidden_size, self.q_rank)
        return tuple(found)
