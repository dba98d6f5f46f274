"""Decide, when experts are full, which choices are served, go to another expert, or are dropped.

An expert has ``capacity`` slots, which choices take in token order. With ``reroute``, a choice that
finds no slot goes to an expert with room that its token does not use yet, taking turns over all
experts (with a gate that has groups, over the groups that the token already uses), so that no limit
is broken; it is dropped only if none has room. Padding fills the remaining slots with rows of
zeros, which are computed (and sent) like other rows.

For every token, served + dropped = its choices; re-routed choices count as served.

Shape legend: T tokens, K choices, E experts.
"""

import math
from dataclasses import dataclass, replace

import numpy as np

from moesim.errors import require
from moesim.model.gate import Gate
from moesim.routing.places import fill
from moesim.routing.sampler import Routing


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Served:
    """The outcome of every choice.

    Attributes:
        expert_ids_TK: ndarray of shape (T, K), int32: the expert each choice went to; a dropped
            choice keeps its expert.
        served_TK: ndarray of shape (T, K), bool: whether an expert computes the choice.
        rerouted_TK: ndarray of shape (T, K), bool: whether a different expert than the chosen one
            computes it.
        capacity: Number of slots of an expert.
        num_left: Number of experts that have slots.
    """

    expert_ids_TK: np.ndarray
    served_TK: np.ndarray
    rerouted_TK: np.ndarray
    capacity: int
    num_left: int

    @property
    def num_served(self) -> int:
        """The number of choices that an expert computes."""
        return int(self.served_TK.sum())

    @property
    def num_dropped(self) -> int:
        """The number of choices that no expert computes."""
        return self.served_TK.size - self.num_served

    @property
    def num_rerouted(self) -> int:
        """The number of choices that a different expert than the chosen one computes."""
        return int(self.rerouted_TK.sum())

    @property
    def num_padded(self) -> int:
        """The number of empty slots, which are rows of zeros if experts are padded."""
        return self.capacity * self.num_left - self.num_served


def places(capacity_factor: float, num_choices: int, num_left: int) -> int:
    """Return the number of slots of an expert: its share of all choices times the capacity factor,
    rounded up.

    Raises:
        ConfigError: The factor is not a number > 0.
    """
    require(
        0 < capacity_factor < math.inf, "layer.capacity_factor", "a number > 0", capacity_factor
    )
    return math.ceil(capacity_factor * num_choices / num_left)


def serve(
    ids_TK: np.ndarray,
    num_experts: int,
    capacity: int,
    *,
    reroute: bool = False,
    gate: Gate | None = None,
    left_E: np.ndarray | None = None,
) -> Served:
    """Give every choice a slot, in token order.

    Args:
        ids_TK: ndarray of shape (T, K): the experts that tokens chose.
        num_experts: Number of experts E.
        capacity: Number of slots of an expert, at least 1.
        reroute: Whether a choice whose expert is full goes to another expert.
        gate: The gate whose groups limit re-routing; None for no limit.
        left_E: ndarray of shape (E,), bool: whether an expert is not pruned; None if no expert is
            pruned.

    Raises:
        ConfigError: The capacity is below 1.
    """
    require(capacity >= 1, "capacity", "at least one place an expert", capacity)
    left = np.ones(num_experts, dtype=bool) if left_E is None else left_E
    grouped = gate is not None and gate.num_limited_groups < gate.num_expert_groups
    per_group = (
        num_experts // gate.num_expert_groups if gate is not None and grouped else num_experts
    )
    out = np.array(ids_TK, dtype=np.int32)
    served, moved = fill(
        out, np.where(left, capacity, 0).astype(np.int64), reroute, per_group, grouped
    )
    return Served(
        expert_ids_TK=out,
        served_TK=served,
        rerouted_TK=moved,
        capacity=capacity,
        num_left=int(left.sum()),
    )


def rerouted(
    routing: Routing, capacity_factor: float, gate: Gate, left_E: np.ndarray | None = None
) -> Routing:
    """Return a routing whose overflow goes to experts with room; a choice that finds no room keeps
    its expert, over capacity.

    Args:
        routing: The choices of tokens.
        capacity_factor: Number of slots of an expert over its share of the choices.
        gate: The gate whose groups limit re-routing.
        left_E: ndarray of shape (E,), bool: whether an expert is not pruned; None if no expert is
            pruned.
    """
    num_left = routing.num_experts if left_E is None else int(left_E.sum())
    found = serve(
        routing.expert_ids_TK,
        routing.num_experts,
        places(capacity_factor, routing.expert_ids_TK.size, num_left),
        reroute=True,
        gate=gate,
        left_E=left_E,
    )
    return replace(routing, expert_ids_TK=found.expert_ids_TK, num_rerouted=found.num_rerouted)
