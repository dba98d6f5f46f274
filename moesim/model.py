"""What is simulated: one MoE layer, its gate, its number formats, and the dense part of the model around it.

Sizes only. FLOPs and bytes of a *kernel* are counted in `moesim.costs`; here is what follows from the architecture
alone: parameters, bytes of weights, bytes of KV cache.
"""

import math
from dataclasses import dataclass, field
from typing import Literal

from moesim.errors import ConfigError
from moesim.precision import Precision, require, require_int

GateKind = Literal["flat", "group_limited", "two_level"]
Score = Literal["softmax", "sigmoid"]
#: formats a gate multiplies in: coarser ones change which experts are chosen
GATE_FORMATS = ("float32", "bfloat16", "float16", "float8_e4m3")


@dataclass(frozen=True, slots=True, kw_only=True)
class Gate:
    """How tokens choose experts.

    Attributes:
        kind: ``flat`` scores every expert. ``group_limited`` scores every expert, keeps the best
            ``num_limited_groups`` of ``num_expert_groups`` groups, chooses inside them (DeepSeek-V3, arXiv
            2412.19437). ``two_level`` scores the groups first and the experts of the kept groups only (hierarchical
            MoE, Shazeer et al. 2017, arXiv 1701.06538).
        num_expert_groups: Groups of consecutive experts; 1 for a flat gate.
        num_limited_groups: Groups a token may use.
        score: How logits become weights.
        precision: Format of the gate's GEMM; its logits are float32.

    Raises:
        ConfigError: More kept groups than groups, or groups on a flat gate.
    """

    kind: GateKind = "flat"
    num_expert_groups: int = 1
    num_limited_groups: int = 1
    score: Score = "softmax"
    precision: str = "bfloat16"

    def __post_init__(self) -> None:
        require(self.kind in ("flat", "group_limited", "two_level"), "gate.kind",
                "one of flat, group_limited, two_level", self.kind)
        require(self.score in ("softmax", "sigmoid"), "gate.score", "softmax or sigmoid", self.score)
        require(self.precision in GATE_FORMATS, "gate.precision", f"one of {', '.join(GATE_FORMATS)}", self.precision)
        require_int("gate.num_expert_groups", self.num_expert_groups, 1)
        require(1 <= self.num_limited_groups <= self.num_expert_groups, "gate.num_limited_groups",
                f"between 1 and num_expert_groups = {self.num_expert_groups}", self.num_limited_groups)
        if self.kind == "flat":
            require(self.num_expert_groups == 1, "gate.num_expert_groups", "1 for a flat gate", self.num_expert_groups)

    @classmethod
    def parse(cls, text: str) -> "Gate":
        """Read ``"flat"``, ``"group_limited:8:4"`` or ``"two_level:16:4"`` (groups, then groups kept).

        Raises:
            ConfigError: Not of that form.
        """
        kind, *numbers = text.split(":")
        if kind == "flat" and not numbers:
            return cls()
        if len(numbers) != 2 or not all(n.isascii() and n.isdigit() for n in numbers):
            raise ConfigError(f"gate: expected 'flat' or 'KIND:GROUPS:KEPT' such as 'group_limited:8:4', got {text!r}")
        return cls(kind=kind, num_expert_groups=int(numbers[0]), num_limited_groups=int(numbers[1]))  # type: ignore[arg-type]

    def __str__(self) -> str:
        if self.kind == "flat":
            return "flat"
        return f"{self.kind}:{self.num_expert_groups}:{self.num_limited_groups}"


@dataclass(frozen=True, slots=True, kw_only=True)
class MoELayer:
    """One Mixture-of-Experts feed-forward layer.

    Attributes:
        hidden_size: Width H of a token.
        expert_intermediate_size: Width I of one expert.
        num_experts: Routed experts E.
        top_k: Experts a token uses.
        num_shared_experts: Experts every token uses, of the same width, computed where the token lives.
        capacity_factor: Slots per expert over the mean load; None keeps every token (dropless).
        gated: SwiGLU (two up projections) or a plain two-matrix expert.
        precision: Number formats.
        gate: How experts are chosen.

    Raises:
        ConfigError: top_k > num_experts, experts not divisible into the gate's groups, kept groups with fewer experts
            than top_k, or a size below 1.
    """

    hidden_size: int
    expert_intermediate_size: int
    num_experts: int
    top_k: int
    num_shared_experts: int = 0
    capacity_factor: float | None = None
    gated: bool = True
    precision: Precision = field(default_factory=Precision)
    gate: Gate = field(default_factory=Gate)

    def __post_init__(self) -> None:
        for name in ("hidden_size", "expert_intermediate_size", "num_experts", "top_k"):
            require_int(f"layer.{name}", getattr(self, name), 1)
        require_int("layer.num_shared_experts", self.num_shared_experts, 0)
        require(self.top_k <= self.num_experts, "layer.top_k", f"at most num_experts = {self.num_experts}", self.top_k)
        require(self.capacity_factor is None or 0 < self.capacity_factor < math.inf, "layer.capacity_factor",
                "a number > 0 or None", self.capacity_factor)
        groups, kept = self.gate.num_expert_groups, self.gate.num_limited_groups
        require(self.num_experts % groups == 0, "layer.gate.num_expert_groups",
                f"a divisor of num_experts = {self.num_experts}", groups)
        require(kept * (self.num_experts // groups) >= self.top_k, "layer.gate.num_limited_groups",
                f"enough groups of {self.num_experts // groups} experts for top_k = {self.top_k}", kept)

    @property
    def num_matrices(self) -> int:
        """Weight matrices of one expert: gate, up and down (SwiGLU), or up and down."""
        return 3 if self.gated else 2

    @property
    def params_per_expert(self) -> int:
        """Weights of one expert."""
        return self.num_matrices * self.hidden_size * self.expert_intermediate_size

    @property
    def gate_params(self) -> int:
        """Weights of the gate: H x E, and H x groups more for a two-level gate."""
        coarse = self.gate.num_expert_groups if self.gate.kind == "two_level" else 0
        return self.hidden_size * (self.num_experts + coarse)

    @property
    def active_params(self) -> int:
        """Weights one token multiplies with in this layer, gate included."""
        gate = self.gate_params
        if self.gate.kind == "two_level":
            per_group = self.num_experts // self.gate.num_expert_groups
            gate = self.hidden_size * (self.gate.num_expert_groups + self.gate.num_limited_groups * per_group)
        return (self.top_k + self.num_shared_experts) * self.params_per_expert + gate

    @property
    def bytes_per_expert(self) -> float:
        """Bytes of one expert's weights, scales included."""
        return self.params_per_expert * self.precision.weight_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class DensePart:
    """Everything of the model but the routed experts: what loss and memory need to know.

    Attributes:
        num_layers: Transformer layers; ``num_moe_layers`` of them have experts, the others a dense feed-forward.
        num_moe_layers: Layers with experts.
        hidden_size: Width of a token.
        vocab_size: Rows of the embedding and of the output head.
        attention_params_per_layer: Weights of one attention block.
        kv_bytes_per_token_per_layer: Bytes one token leaves in one layer's KV cache.
        dense_intermediate_size: Width of a dense feed-forward here; also the width that granularity is relative to.
        tied_embeddings: Whether the output head shares the embedding.

    Raises:
        ConfigError: A size below its minimum.
    """

    num_layers: int
    num_moe_layers: int
    hidden_size: int
    vocab_size: int
    attention_params_per_layer: int
    kv_bytes_per_token_per_layer: float
    dense_intermediate_size: int
    tied_embeddings: bool = False

    def __post_init__(self) -> None:
        for name in ("num_layers", "hidden_size", "vocab_size", "dense_intermediate_size"):
            require_int(f"dense_part.{name}", getattr(self, name), 1)
        require_int("dense_part.attention_params_per_layer", self.attention_params_per_layer, 0)
        kv_bytes = self.kv_bytes_per_token_per_layer
        require(0 <= kv_bytes < math.inf, "dense_part.kv_bytes_per_token_per_layer", "a number >= 0", kv_bytes)
        require(1 <= self.num_moe_layers <= self.num_layers, "dense_part.num_moe_layers",
                f"between 1 and num_layers = {self.num_layers}", self.num_moe_layers)

    @property
    def params(self) -> int:
        """Weights outside the MoE layers' experts and gates: embeddings, attention, dense feed-forward layers."""
        embeddings = self.vocab_size * self.hidden_size * (1 if self.tied_embeddings else 2)
        dense_ffn = 3 * self.hidden_size * self.dense_intermediate_size * (self.num_layers - self.num_moe_layers)
        return embeddings + self.num_layers * self.attention_params_per_layer + dense_ffn

    def active_params(self, layer: MoELayer) -> int:
        """Weights one token uses in the whole model, embeddings included (the N of the joint scaling law)."""
        return self.params + self.num_moe_layers * layer.active_params
