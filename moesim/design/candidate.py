"""The input of the simulator: a candidate design, and the workload that it is given."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from moesim.design import identity
from moesim.design.offload import Offload
from moesim.design.schedule import Schedule
from moesim.errors import require, require_int
from moesim.files.showing import changed
from moesim.hardware.libraries import AUTO, check_choice
from moesim.limits import MOST_DEVICES, MOST_EXPERTS
from moesim.model import DensePart, MoELayer
from moesim.model.compression import Compression
from moesim.model.widths import short_text
from moesim.routing.distributions import RoutingSpec

Phase = Literal["prefill", "decode"]
#: tokens of context of a sequence that is decoded, unless they are given (assumed)
USUAL_CONTEXT = 4096
#: columns that a label always contains, or contains as the text of the schedule
_NAMED = frozenset(
    (
        "num_experts",
        "top_k",
        "expert_intermediate_size",
        "precision",
        "gate",
        "ep",
        "tp",
        "placement",
        "num_replicas",
        "exchange",
        "num_comm_sms",
        "num_micro_batches",
        "hidden_size",
        "dense_part",
    )
)
_NAMED_PAIRS = _NAMED | {"schedule_granularity", "send_order", "send_window"}
#: column -> its word in a label; other columns appear as ``column=value``
_WORDS = {
    "capacity_factor": "cf{}",
    "overflow": "{}",
    "padded": "padded",
    "num_shared_experts": "shared{}",
    "gated": "ungated",
    "phase": "{}",
    "routing": "{}",
    "seed": "seed{}",
    "kv_tokens_per_device": "kv{}",
    "kernels_asked": "{}",
    "cold_fraction": "cold{}",
    "cold_format": "{}",
    "cold_rank_fraction": "rank{}",
    "pruned_fraction": "pruned{}",
    "resident_fraction": "resident{}",
    "prefetch_recall": "ahead{}",
}

#: more tokens than the memory of any device holds
_MOST_TOKENS = 1 << 40


@dataclass(frozen=True, slots=True, kw_only=True)
class Parallelism:
    """How one MoE layer is spread over devices: ``ep`` ranks hold whole experts, and each rank has
    ``tp`` devices.

    Attention is data-parallel: every device has its own tokens. Each of the ``tp`` devices of a
    rank holds 1 / tp of the width of the rank's experts, receives the same tokens, and returns
    partial sums.

    Attributes:
        ep: Number of expert-parallel ranks.
        tp: Number of devices of a rank.

    Raises:
        ConfigError: A degree is below 1.
    """

    ep: int = 1
    tp: int = 1

    def __post_init__(self) -> None:
        for name in ("ep", "tp"):
            require_int(f"parallelism.{name}", getattr(self, name), 1, MOST_DEVICES)

    @property
    def num_devices(self) -> int:
        """The number of devices that the layer is spread over."""
        return self.ep * self.tp


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """One design: a layer, its parallelism, and the placement of its experts.

    Attributes:
        layer: The MoE layer.
        parallelism: The degrees of parallelism.
        placement: A strategy with its number; see `moesim.placement.strategies`. The suffix
            ``/nearest`` lets tokens prefer the replicas of their own node.
        num_replicas: Number of expert slots beyond one per expert.
        dense_part: The rest of the model; None leaves memory unchecked.
        schedule: The exchange, the micro-batches and their order.
        kernels: The library whose kernels run the experts: ``auto`` (the fastest that a serving
            engine launches for the design), ``auto:ENGINE`` (``sglang``, ``vllm`` or ``trtllm``),
            or the name of a library of `moesim.hardware.libraries`.
        compression: How routed experts are compressed; by default none is.
        offload: Which routed experts lie in the memory of the host; by default none does.

    Raises:
        UnknownNameError: There is no such library or engine.
    """

    layer: MoELayer
    parallelism: Parallelism = field(default_factory=Parallelism)
    placement: str = "contiguous"
    num_replicas: int = 0
    dense_part: DensePart | None = None
    schedule: Schedule = field(default_factory=Schedule)
    kernels: str = field(default=AUTO, metadata={identity.COLUMN: "kernels_asked"})
    compression: Compression = field(default_factory=Compression)
    offload: Offload = field(default_factory=Offload)

    def __repr__(self) -> str:
        return changed(self)

    def __post_init__(self) -> None:
        check_choice(self.kernels)
        require_int("placement.num_replicas", self.num_replicas, 0, MOST_EXPERTS)

    @property
    def is_plain(self) -> bool:
        """Whether every expert has the layer's form and stays on its device."""
        return self.compression.is_nothing and self.offload.is_nothing

    @property
    def cut_block(self) -> str:
        """Why an engine may refuse to load the experts' parts, see `Precision.cut_block`; "" if
        none is known to.
        """
        layer, engine = self.layer, self.kernels.partition(":")[2]
        return layer.precision.cut_block(layer.widest, self.parallelism.tp, engine)

    @property
    def label(self) -> str:
        """A short name, different for every design: its sizes, then every value that is not the
        default.
        """
        layer, spread, dense = self.layer, self.parallelism, self.dense_part
        place = self.placement + (f"+{self.num_replicas}" if self.num_replicas else "")
        width = short_text(layer.expert_intermediate_size)
        words = [
            f"E{layer.num_experts} k{layer.top_k} I{width} {layer.precision.name}",
            f"{layer.gate} ep{spread.ep}tp{spread.tp} {place}",
            str(self.schedule),
        ]
        words += identity.unusual(
            self, _WORDS, _NAMED_PAIRS if self.schedule.granularity == "pair" else _NAMED
        )
        words.append(f"H{layer.hidden_size}")
        if dense is not None:
            words.append(f"L{dense.num_layers}#{identity.digest_of(dense, 6)}")
        return " ".join(word for word in words if word)

    @property
    def key(self) -> str:
        """The hash over every field, equal for equal designs in every process."""
        return identity.digest_of(self)

    def to_dict(self) -> dict[str, Any]:
        """Return every field as a flat table of plain values, for a CSV row or for JSON."""
        return identity.table(self)

    @classmethod
    def from_dict(cls, row: Mapping[str, Any]) -> "Candidate":
        """Return the design in a table that `to_dict` made or that was read as text from a file;
        other columns are ignored.

        Raises:
            ConfigError: A column is missing or cannot be read, or the values contradict each other.
        """
        return identity.read(cls, row)


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """The tokens of one forward pass of a layer.

    Attributes:
        num_tokens_per_device: Number of tokens on each device.
        phase: The kind of tokens, ``prefill`` or ``decode``, which is part of the name of the
            workload. The price of a layer depends only on the number of tokens.
        routing: Distribution of the load, such as ``uniform``, ``zipf:0.8``, ``power_law:1.2``.
        kv_tokens_per_device: Number of tokens whose keys and values each device holds; by default
            the tokens of the batch, and for decoding, where each token of the batch is a sequence,
            `USUAL_CONTEXT` times as many.
        seed: Seed of the routing.

    Raises:
        ConfigError: A count is below 1, or the routing cannot be read.
    """

    num_tokens_per_device: int
    phase: Phase = "prefill"
    routing: str = "uniform"
    kv_tokens_per_device: int | None = None
    seed: int = 0

    def __repr__(self) -> str:
        return changed(self)

    def __post_init__(self) -> None:
        require_int("workload.num_tokens_per_device", self.num_tokens_per_device, 1, _MOST_TOKENS)
        require(
            self.phase in ("prefill", "decode"), "workload.phase", "prefill or decode", self.phase
        )
        if self.kv_tokens_per_device is not None:
            require_int("workload.kv_tokens_per_device", self.kv_tokens_per_device, 0)
        require_int("workload.seed", self.seed, 0)
        RoutingSpec.parse(self.routing)

    @property
    def kv_tokens(self) -> int:
        """The number of tokens in the KV cache of each device."""
        if self.kv_tokens_per_device is not None:
            return self.kv_tokens_per_device
        context = USUAL_CONTEXT if self.phase == "decode" else 1
        return self.num_tokens_per_device * context

    @property
    def label(self) -> str:
        """A short name, different for every workload: the tokens per device, then every value that
        is not the default.
        """
        return " ".join(
            [
                f"{self.num_tokens_per_device} tokens",
                *identity.unusual(self, _WORDS, frozenset(("num_tokens_per_device",))),
            ]
        )

    @property
    def key(self) -> str:
        """The hash over every field, equal for equal workloads in every process."""
        return identity.digest_of(self)

    def to_dict(self) -> dict[str, Any]:
        """Return every field as a flat table of plain values, for a CSV row or for JSON."""
        return identity.table(self)

    @classmethod
    def from_dict(cls, row: Mapping[str, Any]) -> "Workload":
        """Return the workload in a table that `to_dict` made or that was read as text from a file.

        Raises:
            ConfigError: A column is missing or cannot be read.
        """
        return identity.read(cls, row)


#: columns of a design and of a workload, in order
DESIGN_COLUMNS = tuple(leaf.column for leaf in identity.leaves(Candidate))
WORKLOAD_COLUMNS = tuple(leaf.column for leaf in identity.leaves(Workload))
