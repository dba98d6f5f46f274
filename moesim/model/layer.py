"""What is simulated: one MoE layer, and the dense part of the model around it.

Sizes only. FLOPs and bytes of a *kernel* are counted in `moesim.costs`; here is what follows from
the architecture alone: parameters, bytes of weights, bytes of KV cache.
"""

import math
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from moesim.errors import require, require_int
from moesim.model.gate import Gate
from moesim.model.precision import Precision
from moesim.model.widths import checked_widths, width_text

__all__ = ["DensePart", "Gate", "MoELayer", "Precision"]


@dataclass(frozen=True, slots=True, kw_only=True)
class MoELayer:
    """One Mixture-of-Experts feed-forward layer.

    Attributes:
        hidden_size: Width H of a token.
        expert_intermediate_size: Width I of every expert, or one width for each (heterogeneous
            experts, HMoE, arXiv 2408.10681). An expert of width 0 is pruned: never chosen, without
            weights; its number stays.
        num_experts: Routed experts E.
        top_k: Experts a token uses.
        num_shared_experts: Experts every token uses, each `shared_width` wide, computed where the
            token lives.
        capacity_factor: Slots per expert over the mean load; None keeps every token (dropless).
        overflow: What becomes of a choice whose expert is full: ``drop``, or ``reroute`` to one
            with room.
        padded: Whether slots that stay empty are rows of zeros that travel and are computed
            (Switch, GShard).
        gated: SwiGLU (two up projections) or a plain two-matrix expert.
        precision: Number formats.
        gate: How experts are chosen.

    Raises:
        ConfigError: top_k > experts that are left, experts the gate cannot choose among (groups
            that do not divide them, kept groups with fewer than top_k, no square number), widths of
            another number, or a size below 1.
    """

    hidden_size: int
    expert_intermediate_size: int | tuple[int, ...]
    num_experts: int
    top_k: int
    num_shared_experts: int = 0
    capacity_factor: float | None = None
    overflow: Literal["drop", "reroute"] = "drop"
    padded: bool = False
    gated: bool = True
    precision: Precision = field(default_factory=Precision)
    gate: Gate = field(default_factory=Gate)

    def __post_init__(self) -> None:
        for name in ("hidden_size", "num_experts", "top_k"):
            require_int(f"layer.{name}", getattr(self, name), 1)
        widths = checked_widths(self.expert_intermediate_size, self.num_experts)
        object.__setattr__(self, "expert_intermediate_size", widths)
        require_int("layer.num_shared_experts", self.num_shared_experts, 0)
        require(
            self.top_k <= self.num_experts,
            "layer.top_k",
            f"at most num_experts = {self.num_experts}",
            self.top_k,
        )
        require(
            self.capacity_factor is None or 0 < self.capacity_factor < math.inf,
            "layer.capacity_factor",
            "a number > 0 or None",
            self.capacity_factor,
        )
        require(
            self.overflow in ("drop", "reroute"), "layer.overflow", "drop or reroute", self.overflow
        )
        if self.capacity_factor is None:
            require(
                self.overflow == "drop" and not self.padded,
                "layer.capacity_factor",
                "a number > 0, since overflow is re-routed or slots are padded",
                None,
            )
        self.gate.check_experts(self.num_experts, self.top_k)
        if self.has_pruned:
            self._check_pruned()

    def _check_pruned(self) -> None:
        """Whoever is left must do: top_k of them, and as many in each group that has any as one
        token takes there.
        """
        left = self.width_E() > 0
        require(
            self.top_k <= left.sum(),
            "layer.top_k",
            f"at most the {left.sum()} experts that are not pruned",
            self.top_k,
        )
        kept = min(self.gate.num_limited_groups, self.top_k)
        left_G = left.reshape(self.gate.num_expert_groups, -1).sum(axis=1)
        of_each = -(-self.top_k // kept)
        require(
            (left_G[left_G > 0] >= of_each).all() and (left_G > 0).sum() >= kept,
            "layer.expert_intermediate_size",
            f"none or at least {of_each} experts left in each of the gate's {len(left_G)} groups, "
            f"{kept} of them with some",
            width_text(self.expert_intermediate_size),
        )

    @property
    def uneven(self) -> bool:
        """Whether widths are given one by one."""
        return not isinstance(self.expert_intermediate_size, int)

    @property
    def has_pruned(self) -> bool:
        """Whether an expert has width 0."""
        return self.uneven and 0 in self.expert_intermediate_size  # type: ignore[operator]

    @property
    def widths_key(self) -> tuple[int, ...] | None:
        """Widths if they differ or some are 0, else None: what routing and placement depend on."""
        widths = self.expert_intermediate_size
        return None if isinstance(widths, int) else widths

    def width_E(self) -> np.ndarray:
        """Width of each routed expert, 0 where it is pruned: ndarray of shape (E,), int64."""
        return np.broadcast_to(
            np.asarray(self.expert_intermediate_size, dtype=np.int64), (self.num_experts,)
        )

    @property
    def num_left(self) -> int:
        """Routed experts that are not pruned."""
        return int(np.count_nonzero(self.width_E())) if self.uneven else self.num_experts

    @property
    def mean_width(self) -> float:
        """Mean width of the experts that are left: what a token meets if it chooses them equally
        often.
        """
        widths = self.expert_intermediate_size
        return float(widths) if isinstance(widths, int) else sum(widths) / self.num_left

    @property
    def widest(self) -> int:
        """Width of the widest expert."""
        widths = self.expert_intermediate_size
        return widths if isinstance(widths, int) else max(widths)

    @property
    def shared_width(self) -> int:
        """Width of one shared expert: that of the routed ones; their mean, rounded, where they
        differ.
        """
        return round(self.mean_width)

    @property
    def num_matrices(self) -> int:
        """Weight matrices of one expert: gate, up and down (SwiGLU), or up and down."""
        return 3 if self.gated else 2

    @property
    def params_per_width(self) -> int:
        """Weights for each unit of an expert's width."""
        return self.num_matrices * self.hidden_size

    @property
    def params_per_expert(self) -> int:
        """Weights of one expert; of one of mean width where they differ."""
        return round(self.params_per_width * self.mean_width)

    @property
    def routed_params(self) -> int:
        """Weights of all routed experts."""
        return self.params_per_width * int(self.width_E().sum())

    @property
    def shared_params(self) -> int:
        """Weights of all shared experts."""
        return self.num_shared_experts * self.params_per_width * self.shared_width

    @property
    def gate_params(self) -> int:
        """Weights of the gate: see `Gate.params`."""
        return self.gate.params(self.hidden_size, self.num_experts)

    @property
    def active_params(self) -> int:
        """Weights one token multiplies with in this layer, gate included.

        Where widths differ, those of a token that chooses the experts equally often; which it
        chooses decides.
        """
        gate = self.gate.active_params(self.hidden_size, self.num_experts)
        return self.top_k * self.params_per_expert + self.shared_params + gate

    @property
    def bytes_per_expert(self) -> float:
        """Bytes of one expert's weights, scales included; of one of mean width where they differ.
        """
        return self.params_per_expert * self.precision.weight_bytes

    @property
    def bytes_per_width(self) -> float:
        """Bytes of an expert's weights for each unit of its width, scales included."""
        return self.params_per_width * self.precision.weight_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class DensePart:
    """Everything of the model but the routed experts: what loss and memory need to know.

    Attributes:
        num_layers: Transformer layers; ``num_moe_layers`` of them have experts, the others a dense
            feed-forward.
        num_moe_layers: Layers with experts.
        hidden_size: Width of a token.
        vocab_size: Rows of the embedding and of the output head.
        attention_params_per_layer: Weights of one attention block.
        kv_bytes_per_token_per_layer: Bytes one token leaves in one layer's KV cache.
        dense_intermediate_size: Width of a dense feed-forward here; also the width that granularity
            is relative to.
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
        """Weights outside the MoE layers' experts and gates: embeddings, attention, dense
        feed-forward layers.
        """
        embeddings = self.vocab_size * self.hidden_size * (1 if self.tied_embeddings else 2)
        dense_ffn = (
            3
            * self.hidden_size
            * self.dense_intermediate_size
            * (self.num_layers - self.num_moe_layers)
        )
        return embeddings + self.num_layers * self.attention_params_per_layer + dense_ffn

    def active_params(self, layer: MoELayer) -> int:
        """Weights one token uses in the whole model, embeddings included (the N of the joint
        scaling law).
        """
        return self.params + self.num_moe_layers * layer.active_params
