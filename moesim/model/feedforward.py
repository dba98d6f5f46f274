"""The feed-forward blocks of a layer: dense, or a mixture of experts with everything around it."""

from dataclasses import dataclass, field

from moesim.errors import require, require_int
from moesim.model.gate import Gate
from moesim.model.gate_kinds import gate_kind
from moesim.model.weights import Weight, total, total_active


def block_weights(
    name: str, width: int, size: int, gated: bool, copies: int = 1, active: float | None = None
) -> list[Weight]:
    """Return the matrices of feed-forward blocks of one width on vectors of one size."""
    return [
        Weight(f"{name}.up", width * (2 if gated else 1), size, copies, active),
        Weight(f"{name}.down", size, width, copies, active),
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class DenseFeedForward:
    """A feed-forward block that every token uses.

    Attributes:
        width: Its intermediate size.
        gated: Whether it has two up projections (SwiGLU).

    Raises:
        ConfigError: The width is below 1.
    """

    width: int
    gated: bool = True

    def __post_init__(self) -> None:
        require_int("dense.width", self.width, 1)

    @property
    def kind(self) -> str:
        """What the block is, in a few words with its sizes."""
        return f"dense {self.width}{'' if self.gated else ', not gated'}"

    def weights(self, hidden_size: int) -> tuple[Weight, ...]:
        """Return the up (and gate) and the down projection."""
        return tuple(block_weights("dense", self.width, hidden_size, self.gated))

    def params(self, hidden_size: int) -> int:
        """Return the number of weights in a model of this width."""
        return total(self.weights(hidden_size))


@dataclass(frozen=True, slots=True, kw_only=True)
class MoEFeedForward:
    """A mixture of experts.

    Attributes:
        num_experts: Number of routed experts with weights.
        top_k: Number of experts that a token chooses, zero-computation experts included.
        width: Intermediate size of an expert.
        gate: What chooses the experts.
        gated: Whether experts have two up projections (SwiGLU).
        num_shared_experts: Number of experts that every token uses.
        shared_width: Intermediate size of one of them.
        has_shared_gate: Whether a gate of one output weighs the shared expert (Qwen2-MoE).
        latent_size: Width of the space that routed experts work in; None for that of the model.
        num_zero_experts: Number of experts that the gate may choose and that compute nothing
            (LongCat-Flash, arXiv 2509.01322).
        other_experts: Experts of other modalities that no text token uses, as (number, width).

    Raises:
        ConfigError: A size is below its minimum, or the gate cannot choose among the experts.
    """

    num_experts: int
    top_k: int
    width: int
    gate: Gate = field(default_factory=Gate)
    gated: bool = True
    num_shared_experts: int = 0
    shared_width: int = 0
    has_shared_gate: bool = False
    latent_size: int | None = None
    num_zero_experts: int = 0
    other_experts: tuple[tuple[int, int], ...] = ()

    def __post_init__(self) -> None:
        for name in ("num_experts", "top_k", "width"):
            require_int(f"moe.{name}", getattr(self, name), 1)
        for name in ("num_shared_experts", "shared_width", "num_zero_experts"):
            require_int(f"moe.{name}", getattr(self, name), 0)
        most = self.num_experts + self.num_zero_experts
        require(self.top_k <= most, "layer.top_k", f"at most num_experts = {most}", self.top_k)
        require(
            bool(self.num_shared_experts) == bool(self.shared_width),
            "moe.shared_width",
            f"a width exactly if there are shared experts, here {self.num_shared_experts}",
            self.shared_width,
        )
        self.gate.check_experts(most, self.top_k)

    @property
    def computed_experts(self) -> float:
        """The mean number of experts that compute something for a token, if all are chosen equally
        often.
        """
        return self.top_k * self.num_experts / (self.num_experts + self.num_zero_experts)

    @property
    def kind(self) -> str:
        """What the block is, in a few words with its sizes."""
        words = [f"MoE {self.num_experts} x {self.width}, top {self.top_k}, {self.gate}"]
        if self.num_shared_experts:
            words.append(f"{self.num_shared_experts} shared x {self.shared_width}")
        if self.num_zero_experts:
            words.append(f"{self.num_zero_experts} zero experts")
        if self.latent_size:
            words.append(f"latent {self.latent_size}")
        if not self.gated:
            words.append("not gated")
        return ", ".join([*words, *(f"{n} x {w} for other inputs" for n, w in self.other_experts)])

    def expert_weights(self, hidden_size: int) -> tuple[Weight, ...]:
        """Return the matrices of the routed experts, those of other modalities included."""
        size, active = self.latent_size or hidden_size, self.computed_experts
        found = block_weights("experts", self.width, size, self.gated, self.num_experts, active)
        for number, width in self.other_experts:
            found += block_weights("other_experts", width, size, self.gated, number, 0)
        return tuple(found)

    def weights(self, hidden_size: int) -> tuple[Weight, ...]:
        """Return the matrices of gate, routed experts, shared experts and latent projections."""
        choices = self.num_experts + self.num_zero_experts
        found = [
            self._gate_weight(hidden_size, choices),
            *self.expert_weights(hidden_size),
            *(Weight("other_gate", n, hidden_size, 1, 0) for n, _ in self.other_experts),
        ]
        if self.num_shared_experts:
            found += block_weights(
                "shared", self.shared_width, hidden_size, self.gated, self.num_shared_experts
            )
        if self.has_shared_gate:
            found.append(Weight("shared_gate", 1, hidden_size))
        if self.latent_size:
            found.append(Weight("latent.down", self.latent_size, hidden_size))
            found.append(Weight("latent.up", hidden_size, self.latent_size))
        return tuple(found)

    def _gate_weight(self, hidden_size: int, choices: int) -> Weight:
        """Return the gate: a key of each expert, or what its kind has instead, in one matrix."""
        kind = gate_kind(self.gate.kind)
        params = kind.params(self.gate, hidden_size, choices)
        if params == choices * hidden_size:
            return Weight("gate", choices, hidden_size)
        active = (kind.active_params or kind.params)(self.gate, hidden_size, choices)
        return Weight("gate", params, 1, 1, active / params)

    def params(self, hidden_size: int) -> int:
        """Return the number of weights in a model of this width."""
        return total(self.weights(hidden_size))

    def active_params(self, hidden_size: int) -> float:
        """Return the number of weights that one token multiplies with."""
        return total_active(self.weights(hidden_size))
