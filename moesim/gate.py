"""How tokens choose experts: the kinds of gates, and the sizes each needs."""

import math
from dataclasses import dataclass
from typing import Literal, get_args

from moesim.errors import ConfigError
from moesim.precision import require, require_int

GateKind = Literal["flat", "group_limited", "two_level", "product_key"]
Score = Literal["softmax", "sigmoid"]
#: formats a gate multiplies in: coarser ones change which experts are chosen
GATE_FORMATS = ("float32", "bfloat16", "float16", "float8_e4m3")
_GROUPED = ("group_limited", "two_level")


@dataclass(frozen=True, slots=True, kw_only=True)
class Gate:
    """How tokens choose experts.

    Attributes:
        kind: ``flat`` scores every expert. ``group_limited`` scores every expert, keeps the best
            ``num_limited_groups`` of ``num_expert_groups`` groups, chooses inside them (DeepSeek-V3, arXiv
            2412.19437). ``two_level`` scores the groups first and the experts of the kept groups only (hierarchical
            MoE, Shazeer et al. 2017, arXiv 1701.06538). ``product_key`` gives expert (i, j) of a square grid the sum
            of a row's and a column's score, so that the best k of sqrt(E) rows and the best k of sqrt(E) columns hold
            the best k of all E experts (Lample et al. 2019, arXiv 1907.05242; PEER, He 2024, arXiv 2407.04153).
        num_expert_groups: Groups of consecutive experts; 1 for a gate without groups.
        num_limited_groups: Groups a token may use.
        query_heads: Queries a product-key gate projects a token to; each retrieves an equal share of its top_k (the
            best of all heads' finds where top_k is no multiple). All heads share the keys. PEER's main model: 8.
        query_size: Width of a query, half of it for each set of keys; PEER's: 256.
        score: How logits become weights.
        precision: Format of the gate's GEMMs; its logits are float32.

    Raises:
        ConfigError: More kept groups than groups, groups on a gate without them, or a query of an odd width.
    """

    kind: GateKind = "flat"
    num_expert_groups: int = 1
    num_limited_groups: int = 1
    query_heads: int = 8
    query_size: int = 256
    score: Score = "softmax"
    precision: str = "bfloat16"

    def __post_init__(self) -> None:
        require(self.kind in get_args(GateKind), "gate.kind", f"one of {', '.join(get_args(GateKind))}", self.kind)
        require(self.score in get_args(Score), "gate.score", "softmax or sigmoid", self.score)
        require(self.precision in GATE_FORMATS, "gate.precision", f"one of {', '.join(GATE_FORMATS)}", self.precision)
        for name in ("num_expert_groups", "query_heads", "query_size"):
            require_int(f"gate.{name}", getattr(self, name), 1)
        require(self.query_size % 2 == 0, "gate.query_size", "an even number", self.query_size)
        require(1 <= self.num_limited_groups <= self.num_expert_groups, "gate.num_limited_groups",
                f"between 1 and num_expert_groups = {self.num_expert_groups}", self.num_limited_groups)
        if self.kind not in _GROUPED:
            require(self.num_expert_groups == 1, "gate.num_expert_groups", f"1 for a {self.kind} gate",
                    self.num_expert_groups)

    @classmethod
    def parse(cls, text: str) -> "Gate":
        """Read a gate.

        Args:
            text: ``flat``; ``group_limited:8:4`` or ``two_level:16:4`` (groups, then groups kept); ``product_key`` or
                ``product_key:8:256`` (heads, then width of a query).

        Raises:
            ConfigError: Not of that form.
        """
        kind, *numbers = text.split(":")
        if kind in ("flat", "product_key") and not numbers:
            return cls(kind=kind)  # type: ignore[arg-type]
        if len(numbers) != 2 or not all(n.isascii() and n.isdigit() for n in numbers):
            raise ConfigError("gate: expected 'flat', 'product_key' or 'KIND:GROUPS:KEPT' such as 'group_limited:8:4', "
                              f"got {text!r}")
        one, two = map(int, numbers)
        if kind == "product_key":
            return cls(kind="product_key", query_heads=one, query_size=two)
        return cls(kind=kind, num_expert_groups=one, num_limited_groups=two)  # type: ignore[arg-type]

    def __str__(self) -> str:
        if self.kind == "flat":
            return "flat"
        if self.kind == "product_key":
            return f"{self.kind}:{self.query_heads}:{self.query_size}"
        return f"{self.kind}:{self.num_expert_groups}:{self.num_limited_groups}"

    def check_experts(self, num_experts: int, top_k: int) -> None:
        """Refuse a number of experts this gate cannot choose among.

        Raises:
            ConfigError: Experts that do not divide into groups or make no square, or too few of them in kept groups.
        """
        if self.kind == "product_key":
            require(math.isqrt(num_experts) ** 2 == num_experts, "layer.num_experts",
                    "a perfect square for a product_key gate", num_experts)
        groups, kept = self.num_expert_groups, self.num_limited_groups
        require(num_experts % groups == 0, "layer.gate.num_expert_groups", f"a divisor of num_experts = {num_experts}",
                groups)
        require(kept * (num_experts // groups) >= top_k, "layer.gate.num_limited_groups",
                f"enough groups of {num_experts // groups} experts for top_k = {top_k}", kept)

    def params(self, hidden_size: int, num_experts: int) -> int:
        """Weights: H x E; H x groups more for two levels; for product keys both sets of keys and the projection.

        Product keys: sqrt(E) x query_size for the two sets of sqrt(E) keys of half a query each, which all heads
        share (arXiv 2407.04153), and H x heads x query_size for the queries.
        """
        if self.kind == "product_key":
            return (math.isqrt(num_experts) + hidden_size * self.query_heads) * self.query_size
        coarse = self.num_expert_groups if self.kind == "two_level" else 0
        return hidden_size * (num_experts + coarse)

    def active_params(self, hidden_size: int, num_experts: int) -> int:
        """Weights one token multiplies with: those of the kept groups only for two levels, else all."""
        if self.kind != "two_level":
            return self.params(hidden_size, num_experts)
        per_group = num_experts // self.num_expert_groups
        return hidden_size * (self.num_expert_groups + self.num_limited_groups * per_group)
