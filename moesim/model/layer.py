"""One MoE layer, the object of a simulation.

This module holds only sizes that follow from the architecture: parameters, bytes of weights, bytes
of KV cache. `moesim.costs` counts the FLOPs and bytes of a *kernel*.
"""

from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from moesim.errors import require, require_int
from moesim.files.showing import changed
from moesim.limits import MOST_EXPERTS, MOST_WIDTH
from moesim.model.gate import Gate
from moesim.model.precision import Precision
from moesim.model.widths import checked_widths, width_text

__all__ = ["Gate", "MoELayer", "Precision"]


@dataclass(frozen=True, slots=True, kw_only=True)
class MoELayer:
    """One Mixture-of-Experts feed-forward layer.

    Attributes:
        hidden_size: Width H of a token.
        expert_intermediate_size: Width I of every expert, or one width per expert (heterogeneous
            experts, HMoE, arXiv 2408.10681). An expert of width 0 is pruned: it is never chosen and
            has no weights, but keeps its index.
        num_experts: Number of routed experts E.
        top_k: Number of experts that a token uses.
        num_shared_experts: Number of experts that every token uses, each `shared_width` wide and
            computed on the device that holds the token.
        capacity_factor: Capacity of an expert, in tokens, over the mean load; None keeps every
            token (dropless).
        overflow: What happens to a choice whose expert is full: ``drop``, or ``reroute`` to an
            expert with room.
        padded: Whether unused capacity is filled with rows of zeros that are sent and computed
            (Switch, GShard).
        gated: Whether experts are SwiGLU (two up projections) instead of plain two-matrix experts.
        precision: The number formats of the layer.
        gate: The gate that chooses the experts.

    Raises:
        ConfigError: top_k exceeds the unpruned experts, the gate cannot choose among the experts
            (groups do not divide them, kept groups have fewer than top_k, or their number is not a
            square), the number of widths is not the number of experts, or a size is below 1.
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

    def __repr__(self) -> str:
        return changed(self)

    def __post_init__(self) -> None:
        require_int("layer.hidden_size", self.hidden_size, 1, MOST_WIDTH)
        for name in ("num_experts", "top_k"):
            require_int(f"layer.{name}", getattr(self, name), 1, MOST_EXPERTS)
        widths = checked_widths(self.expert_intermediate_size, self.num_experts)
        object.__setattr__(self, "expert_intermediate_size", widths)
        require_int("layer.num_shared_experts", self.num_shared_experts, 0, MOST_EXPERTS)
        require(
            self.top_k <= self.num_experts,
            "layer.top_k",
            f"at most num_experts = {self.num_experts}",
            self.top_k,
        )
        require(
            self.capacity_factor is None or 0 < self.capacity_factor <= MOST_EXPERTS,
            "layer.capacity_factor",
            f"a number > 0 and <= {MOST_EXPERTS}, or None",
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
        """Check that enough unpruned experts remain: at least ``top_k`` overall, and enough in
        every group that a token may use.
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
        """Whether the layer lists one width per expert."""
        return not isinstance(self.expert_intermediate_size, int)

    @property
    def widths_differ(self) -> bool:
        """Whether experts that are not pruned have different widths."""
        widths = self.expert_intermediate_size
        return not isinstance(widths, int) and len(set(widths) - {0}) > 1

    @property
    def has_pruned(self) -> bool:
        """Whether any expert has width 0."""
        return self.uneven and 0 in self.expert_intermediate_size  # type: ignore[operator]

    @property
    def widths_key(self) -> tuple[int, ...] | None:
        """The widths if they differ or some are 0, otherwise None. Routing and placement depend on
        them.
        """
        widths = self.expert_intermediate_size
        return None if isinstance(widths, int) else widths

    def width_E(self) -> np.ndarray:
        """Return the width of each routed expert, 0 if it is pruned: ndarray of shape (E,),
        int64.
        """
        return np.broadcast_to(
            np.asarray(self.expert_intermediate_size, dtype=np.int64), (self.num_experts,)
        )

    @property
    def num_left(self) -> int:
        """The number of routed experts that are not pruned."""
        return int(np.count_nonzero(self.width_E())) if self.uneven else self.num_experts

    @property
    def mean_width(self) -> float:
        """The mean width of the unpruned experts, which is the mean width a token uses if it
        chooses them equally often.
        """
        widths = self.expert_intermediate_size
        return float(widths) if isinstance(widths, int) else sum(widths) / self.num_left

    @property
    def widest(self) -> int:
        """The width of the widest expert."""
        widths = self.expert_intermediate_size
        return widths if isinstance(widths, int) else max(widths)

    @property
    def shared_width(self) -> int:
        """The width of one shared expert: that of the routed experts, or their rounded mean if they
        differ.
        """
        return round(self.mean_width)

    @property
    def num_matrices(self) -> int:
        """The number of matrices of one expert: gate, up and down (SwiGLU), or up and down."""
        return 3 if self.gated else 2

    @property
    def params_per_width(self) -> int:
        """The number of weights per unit of expert width."""
        return self.num_matrices * self.hidden_size

    @property
    def params_per_expert(self) -> int:
        """The number of weights of one expert, or of an expert of mean width if widths differ."""
        return round(self.params_per_width * self.mean_width)

    @property
    def routed_params(self) -> int:
        """The number of weights of all routed experts."""
        return self.params_per_width * int(self.width_E().sum())

    @property
    def shared_params(self) -> int:
        """The number of weights of all shared experts."""
        return self.num_shared_experts * self.params_per_width * self.shared_width

    @property
    def gate_params(self) -> int:
        """The number of weights of the gate; see `Gate.params`."""
        return self.gate.params(self.hidden_size, self.num_experts)

    @property
    def active_params(self) -> int:
        """The number of weights that one token multiplies with in this layer, gate included.

        If widths differ, this is the mean for a token that chooses the experts equally often; the
        actual number depends on its choices.
        """
        gate = self.gate.active_params(self.hidden_size, self.num_experts)
        return self.top_k * self.params_per_expert + self.shared_params + gate

    @property
    def bytes_per_expert(self) -> float:
        """The bytes of the weights of one expert, scales included, or of an expert of mean width if
        widths differ.
        """
        return self.params_per_expert * self.precision.weight_bytes

    @property
    def bytes_per_width(self) -> float:
        """The bytes of weights per unit of expert width, scales included."""
        return self.params_per_width * self.precision.weight_bytes
