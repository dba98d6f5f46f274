"""What is asked of the simulator: a candidate design, and the work it is given."""

from dataclasses import dataclass, field
from typing import Literal

from moesim.model import DensePart, MoELayer
from moesim.precision import require, require_int
from moesim.routing.distributions import RoutingSpec
from moesim.schedule import Schedule
from moesim.widths import short_text

Phase = Literal["prefill", "decode"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Parallelism:
    """How one MoE layer is spread over devices: ``ep`` ranks of whole experts, each over ``tp`` devices.

    Attention is data-parallel: every device has tokens of its own. A rank's ``tp`` devices each hold 1 / tp of the
    width of the rank's experts, receive the same tokens, and return partial sums.

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
        placement: Strategy with its number, see `moesim.placement.strategies`; ``/nearest`` after it lets tokens
            prefer the replicas of their own node.
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
        """Short name: experts, top-k, width, format, gate, layout, placement, and a schedule that is not the usual."""
        layer, spread = self.layer, self.parallelism
        place = self.placement + (f"+{self.num_replicas}" if self.num_replicas else "")
        width = short_text(layer.expert_intermediate_size)
        return (f"E{layer.num_experts} k{layer.top_k} I{width} {layer.precision.name} "
                f"{layer.gate} ep{spread.ep}tp{spread.tp} {place} {self.schedule}").rstrip()


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """The tokens one forward pass of a layer is given.

    Attributes:
        num_tokens_per_device: Tokens on each device.
        phase: What the tokens are, ``prefill`` or ``decode``: part of the workload's name. A layer's price depends on
            how many there are, and nothing else.
        routing: Distribution of load, such as ``uniform``, ``zipf:0.8``, ``power_law:1.2``.
        kv_tokens_per_device: Tokens whose keys and values each device holds; by default those of the batch.
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
        require(self.phase in ("prefill", "decode"), "workload.phase", "prefill or decode", self.phase)
        if self.kv_tokens_per_device is not None:
            require_int("workload.kv_tokens_per_device", self.kv_tokens_per_device, 0)
        require_int("workload.seed", self.seed, 0)
        RoutingSpec.parse(self.routing)

    @property
    def kv_tokens(self) -> int:
        """Tokens in each device's KV cache."""
        return self.num_tokens_per_device if self.kv_tokens_per_device is None else self.kv_tokens_per_device
