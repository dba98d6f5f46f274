"""Experts that are full: which choices are served, go to another expert, or are dropped.

An expert has ``capacity`` places; choices take them in token order. With ``reroute`` a choice that
finds none goes to an expert with room that its token does not use yet, in turn over all experts (of
a gate with groups: of the groups the token uses already), so that no limit is broken; only where
none has room is it dropped. Padding fills the places that are left with rows of zeros, which are
computed (and travel) like others.

For every token, served + dropped = its choices; re-routed ones are among the served.

Shape legend: T tokens, K choices, E experts.
"""

import math
from dataclasses import dataclass, replace

import numpy as np

from moesim.errors import require
from moesim.model.gate import Gate
from moesim.routing.sampler import Routing


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Served:
    """What became of every choice.

    Attributes:
        expert_ids_TK: ndarray of shape (T, K), int32: where each choice went; a dropped one keeps
            its expert.
        served_TK: ndarray of shape (T, K), bool.
        rerouted_TK: ndarray of shape (T, K), bool: served, by another expert.
        capacity: Places of an expert.
        num_left: Experts that have places.
    """

    expert_ids_TK: np.ndarray
    served_TK: np.ndarray
    rerouted_TK: np.ndarray
    capacity: int
    num_left: int

    @property
    def num_served(self) -> int:
        """Choices that an expert computes."""
        return int(self.served_TK.sum())

    @property
    def num_dropped(self) -> int:
        """Choices that none does."""
        return self.served_TK.size - self.num_served

    @property
    def num_rerouted(self) -> int:
        """Choices that another expert computes than the one chosen."""
        return int(self.rerouted_TK.sum())

    @property
    def num_padded(self) -> int:
        """Places that stay empty: rows of zeros where experts are padded."""
        return self.capacity * self.num_left - self.num_served


def places(capacity_factor: float, num_choices: int, num_left: int) -> int:
    """Places of an expert: its share of all choices, times the capacity factor, rounded up.

    Raises:
        ConfigError: A factor that is no number > 0.
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
    """Give every choice a place, in token order.

    Args:
        ids_TK: ndarray of shape (T, K): experts that tokens chose.
        num_experts: E.
        capacity: Places of an expert, at least 1.
        reroute: Whether a choice whose expert is full goes elsewhere.
        gate: Its groups limit where to; by default none do.
        left_E: ndarray of shape (E,), bool: experts that are not pruned; None for all.

    Raises:
        ConfigError: A capacity below 1.
    """
    from moesim.routing.places import fill

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
    """A routing whose overflow goes to experts with room; what finds none stays where it was, over
    capacity.

    Args:
        routing: Choices.
        capacity_factor: Places of an expert over its share of the choices.
        gate: Groups that tokens are limited to.
        left_E: As `serve`.
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
