"""Attention of every kind: the mixers that keep a cache of keys and values.

A mixer lets the tokens of a sequence see each other. Each states its own sizes, lists its weight
matrices (`Mixer.weights`), and says what it keeps for a sequence: bytes per token (keys and values)
and bytes in all (a recurrent state, see `moesim.model.recurrent`). Sizes are numbers of elements;
caches are bf16.
"""

from dataclasses import dataclass
from typing import Literal

from moesim.errors import require, require_int
from moesim.model.weights import Weight, total, total_active

#: bytes of an element of a cache of keys and values, and of a convolution's inputs
CACHE_BYTES = 2
OutputGate = Literal["none", "head", "element"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Mixer:
    """The base of all mixers; by itself it has no weights and keeps nothing."""

    @property
    def kind(self) -> str:
        """What the mixer is, in a few words with its sizes."""
        return type(self).__name__

    @property
    def kv_bytes_per_token(self) -> float:
        """The bytes of keys and values that one token adds to the cache, in bf16."""
        return 0.0

    @property
    def index_bytes_per_token(self) -> float:
        """The bytes that one token adds to the cache of an indexer, in bf16."""
        return 0.0

    @property
    def state_bytes_per_sequence(self) -> float:
        """The bytes that a sequence keeps whatever its length."""
        return 0.0

    def weights(self, hidden_size: int) -> tuple[Weight, ...]:
        """Return the weight matrices of the mixer in a model of this width."""
        return ()

    def params(self, hidden_size: int) -> int:
        """Return the number of weights in a model of this width."""
        return total(self.weights(hidden_size))

    def active_params(self, hidden_size: int) -> float:
        """Return the number of weights that one token multiplies with."""
        return total_active(self.weights(hidden_size))


@dataclass(frozen=True, slots=True, kw_only=True)
class Indexer:
    """A small attention that picks the keys a sparse attention reads (DeepSeek-V3.2, DSA).

    Attributes:
        num_heads: Number of its query heads; all share one key.
        head_size: Width of a head.
        top_k: Number of tokens (or blocks, see block_size) that it picks.
        block_size: Number of tokens that are picked together.
        compress_ratio: Number of tokens that share one of its keys.
        has_head_weights: Whether a matrix weighs the heads, as in DSA.
    """

    num_heads: int
    head_size: int
    top_k: int
    block_size: int = 1
    compress_ratio: int = 1
    has_head_weights: bool = True

    def __post_init__(self) -> None:
        for name in ("num_heads", "head_size", "top_k", "block_size", "compress_ratio"):
            require_int(f"indexer.{name}", getattr(self, name), 1)

    @property
    def bytes_per_token(self) -> float:
        """The bytes that one token adds to the indexer's cache of keys, in bf16."""
        return self.head_size * CACHE_BYTES / self.compress_ratio

    def weights(self, hidden_size: int, query_size: int) -> tuple[Weight, ...]:
        """Return its matrices; its queries are made from a vector of ``query_size``."""
        # a compressed key is made from two overlapping windows, each with a gate (DeepSeek-V4)
        keys = 4 if self.compress_ratio > 1 else 1
        found = [
            Weight("index.q", self.num_heads * self.head_size, query_size),
            Weight("index.k", keys * self.head_size, hidden_size),
        ]
        if self.has_head_weights:
            found.append(Weight("index.heads", self.num_heads, hidden_size))
        return tuple(found)


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupedAttention(Mixer):
    """Multi-head attention whose keys and values may be shared by groups of heads (GQA, arXiv
    2305.13245).

    Attributes:
        num_heads: Number of query heads that a token uses.
        num_kv_heads: Number of heads of keys and values.
        head_size: Width of a head of queries and keys.
        value_size: Width of a head of values; None for that of keys.
        window: Number of tokens that a query sees; None for all before it.
        keys_are_values: Whether one projection gives keys and values (Gemma 4).
        shares_kv: Whether the layer reads the keys and values of an earlier one and has none.
        output_gate: A gate on the output: one number per ``head``, or per ``element``.
        num_query_experts: Number of sets of query and output projections to choose from
            (mixture of attention heads, JetMoE, arXiv 2404.07413).
        top_k: Number of those sets that a token uses.
        q_rank: Rank of the queries (multi-matrix factorization, Step-3); 0 if one matrix makes
            them.
        indexer: What picks the keys of a sparse attention; None for a dense one.

    Raises:
        ConfigError: Heads do not divide into groups, or a size is below 1.
    """

    num_heads: int
    num_kv_heads: int
    head_size: int
    value_size: int | None = None
    window: int | None = None
    keys_are_values: bool = False
    shares_kv: bool = False
    output_gate: OutputGate = "none"
    num_query_experts: int = 1
    top_k: int = 1
    q_rank: int = 0
    indexer: Indexer | None = None

    def __post_init__(self) -> None:
        for name in ("num_heads", "num_kv_heads", "head_size", "num_query_experts", "top_k"):
            require_int(f"attention.{name}", getattr(self, name), 1)
        require(
            self.num_heads % self.num_kv_heads == 0,
            "attention.num_kv_heads",
            f"a divisor of num_heads = {self.num_heads}",
            self.num_kv_heads,
        )
        require(
            self.top_k <= self.num_query_experts,
            "attention.top_k",
            f"at most num_query_experts = {self.num_query_experts}",
            self.top_k,
        )

    @property
    def kind(self) -> str:
        """What the mixer is, in a few words with its sizes."""
        name = "attention" if self.indexer is None else "sparse attention"
        window = f", window {self.window}" if self.window else ""
        shared = ", keys of an earlier layer" if self.shares_kv else ""
        return f"{name} {self.num_heads}/{self.num_kv_heads} x {self.head_size}{window}{shared}"

    @property
    def _values(self) -> int:
        return self.value_size or self.head_size

    @property
    def kv_bytes_per_token(self) -> float:
        """The bytes of keys and values that one token adds, in bf16; a window is not deducted."""
        # tied keys and values still differ in the cache: only keys are rotated
        size = self.num_kv_heads * (self.head_size + self._values)
        return 0.0 if self.shares_kv else float(size * CACHE_BYTES)

    @property
    def index_bytes_per_token(self) -> float:
        """The bytes that one token adds to the cache of the indexer, in bf16."""
        return self.indexer.bytes_per_token if self.indexer else 0.0

    def weights(self, hidden_size: int) -> tuple[Weight, ...]:
        """Return q, k, v and o, and those of gate, query experts and indexer."""
        heads, experts = self.num_heads // self.top_k, self.num_query_experts
        query, output = heads * self.head_size, heads * self._values
        found = [
            Weight("q", query, self.q_rank or hidden_size, experts, self.top_k),
            Weight("o", hidden_size, output, experts, self.top_k),
        ]
        if self.q_rank:
            found.append(Weight("q_down", self.q_rank, hidden_size))
        if not self.shares_kv:
            found.append(Weight("k", self.num_kv_heads * self.head_size, hidden_size))
        if not self.shares_kv and not self.keys_are_values:
            found.append(Weight("v", self.num_kv_heads * self._values, hidden_size))
        found += gate_weights(self.output_gate, self.num_heads, self._values, hidden_size)
        if experts > 1:
            found.append(Weight("router", experts, hidden_size))
        if self.indexer:
            found += self.indexer.weights(hidden_size, hidden_size)
        return tuple(found)


def gate_weights(gate: OutputGate, heads: int, size: int, hidden_size: int) -> list[Weight]:
    """Return the matrix of a gate on the output of an attention, if there is one."""
    width = {"none": 0, "head": heads, "element": heads * size}[gate]
    return [Weight("output_gate", width, hidden_size)] if width else []
