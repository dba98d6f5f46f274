"""What is asked of the simulator: a candidate design, and the work it is given."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from moesim.design import identity
from moesim.design.schedule import Schedule
from moesim.errors import require, require_int
from moesim.model import DensePart, MoELayer
from moesim.model.widths import short_text
from moesim.routing.distributions import RoutingSpec

Phase = Literal["prefill", "decode"]
#: what a label names in any case, or by the text of a schedule
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
#: column -> its word in a label; others are told as ``column=value``
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
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Parallelism:
    """How one MoE layer is spread over devices: ``ep`` ranks of whole experts, each over ``tp``
    devices.

    Attention is data-parallel: every device has tokens of its own. A rank's ``tp`` devices each
    hold 1 / tp of the width of the rank's experts, receive the same tokens, and return partial
    sums.

    Attributes:
        ep: Expert-parallel ranks.
        tp: Devices of a rank.

    Raises:
        ConfigError: A degree below 1.
    """

    ep: int = 1
    tp: int = 1

    def __post_init__(self) -> None:
        for name in ("ep", "tp"):
            require_int(f"parallelism.{name}", getattr(self, name), 1)

    @property
    def num_devices(self) -> int:
        """Devices the layer is spread over."""
        return self.ep * self.tp


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """One design: a layer, how it is spread, and where its experts sit.

    Attributes:
        layer: The MoE layer.
        parallelism: Degrees.
        placement: Strategy with its number, see `moesim.placement.strategies`; ``/nearest`` after
            it lets tokens prefer the replicas of their own node.
        num_replicas: Expert slots beyond one per expert.
        dense_part: Rest of the model; None leaves memory unchecked.
        schedule: Exchange, micro-batches and order.
    """

    layer: MoELayer
    parallelism: Parallelism = field(default_factory=Parallelism)
    placement: str = "contiguous"
    num_replicas: int = 0
    dense_part: DensePart | None = None
    schedule: Schedule = field(default_factory=Schedule)

    @property
    def label(self) -> str:
        """Short name, another for each design: its sizes, then whatever is not the usual."""
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
            words.append(f"L{dense.num_layers}#{identity.digest(identity.table(dense), 6)}")
        return " ".join(word for word in words if word)

    @property
    def key(self) -> str:
        """Hash over every field: equal for equal designs, in every process."""
        return identity.digest(self.to_dict())

    def to_dict(self) -> dict[str, Any]:
        """Every field as a flat table of plain values: a row of a CSV file, or JSON."""
        return identity.table(self)

    @classmethod
    def from_dict(cls, row: Mapping[str, Any]) -> "Candidate":
        """The design that a table holds, as `to_dict` made it or as text from a file; other columns
        are passed over.

        Raises:
            ConfigError: A column is missing or holds something else, or the values do not go
                together.
        """
        return identity.read(cls, row)


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """The tokens one forward pass of a layer is given.

    Attributes:
        num_tokens_per_device: Tokens on each device.
        phase: What the tokens are, ``prefill`` or ``decode``: part of the workload's name. A
            layer's price depends on how many there are, and nothing else.
        routing: Distribution of load, such as ``uniform``, ``zipf:0.8``, ``power_law:1.2``.
        kv_tokens_per_device: Tokens whose keys and values each device holds; by default those of
            the batch.
        seed: Seed of the routing.

    Raises:
        ConfigError: A count below 1, or a routing of another form.
    """

    num_tokens_per_device: int
    phase: Phase = "prefill"
    routing: str = "uniform"
    kv_tokens_per_device: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        require_int("workload.num_tokens_per_device", self.num_tokens_per_device, 1)
        require(
            self.phase in ("prefill", "decode"), "workload.phase", "prefill or decode", self.phase
        )
        if self.kv_tokens_per_device is not None:
            require_int("workload.kv_tokens_per_device", self.kv_tokens_per_device, 0)
        require_int("workload.seed", self.seed, 0)
        RoutingSpec.parse(self.routing)

    @property
    def kv_tokens(self) -> int:
        """Tokens in each device's KV cache."""
        return (
            self.num_tokens_per_device
            if self.kv_tokens_per_device is None
            else self.kv_tokens_per_device
        )

    @property
    def label(self) -> str:
        """Short name, another for each workload: tokens per device, then whatever is not the usual.
        """
        return " ".join(
            [
                f"{self.num_tokens_per_device} tokens",
                *identity.unusual(self, _WORDS, frozenset(("num_tokens_per_device",))),
            ]
        )

    @property
    def key(self) -> str:
        """Hash over every field: equal for equal workloads, in every process."""
        return identity.digest(self.to_dict())

    def to_dict(self) -> dict[str, Any]:
        """Every field as a flat table of plain values: a row of a CSV file, or JSON."""
        return identity.table(self)

    @classmethod
    def from_dict(cls, row: Mapping[str, Any]) -> "Workload":
        """The workload that a table holds, as `to_dict` made it or as text from a file.

        Raises:
            ConfigError: A column is missing or holds something else.
        """
        return identity.read(cls, row)


#: columns of a design and of a workload, in order
DESIGN_COLUMNS = tuple(leaf.column for leaf in identity.leaves(Candidate))
WORKLOAD_COLUMNS = tuple(leaf.column for leaf in identity.leaves(Workload))
