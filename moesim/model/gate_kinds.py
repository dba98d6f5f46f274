"""Kinds of gates: what distinguishes one from another, one record for each.

A record says which numbers its text takes, which counts of experts it can choose among, how many
weights it has and what it costs. Nothing else in moesim lists kinds. A new one is a record here, or
anywhere else with `add_gate_kind`; its price is the name of one that `moesim.costs.phases.gate`
has, or a function of one's own.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from moesim.errors import ConfigError, UnknownNameError, require


class Sizes(Protocol):
    """The numbers of a gate: a part of `moesim.model.gate.Gate`."""

    @property
    def num_expert_groups(self) -> int:
        """Groups of experts."""
        ...

    @property
    def num_limited_groups(self) -> int:
        """Groups that a token may use."""
        ...

    @property
    def query_heads(self) -> int:
        """Queries that a token is projected to."""
        ...

    @property
    def query_size(self) -> int:
        """Width of a query."""
        ...


def _any_experts(gate: Sizes, num_experts: int) -> None:
    """Any number of experts will do."""


def _square(gate: Sizes, num_experts: int) -> None:
    require(
        math.isqrt(num_experts) ** 2 == num_experts,
        "layer.num_experts",
        "a perfect square for a product_key gate",
        num_experts,
    )


def _key_of_each(gate: Sizes, hidden_size: int, num_experts: int) -> int:
    return hidden_size * num_experts


def _keys_of_two_levels(gate: Sizes, hidden_size: int, num_experts: int) -> int:
    return hidden_size * (num_experts + gate.num_expert_groups)


def _keys_of_kept_groups(gate: Sizes, hidden_size: int, num_experts: int) -> int:
    per_group = num_experts // gate.num_expert_groups
    return hidden_size * (gate.num_expert_groups + gate.num_limited_groups * per_group)


def _product_keys(gate: Sizes, hidden_size: int, num_experts: int) -> int:
    """Two sets of sqrt(E) keys of half a query each, which all heads share (arXiv 2407.04153), and
    the projection.
    """
    return (math.isqrt(num_experts) + hidden_size * gate.query_heads) * gate.query_size


@dataclass(frozen=True, slots=True, kw_only=True)
class GateKind:
    """One kind of gate.

    Attributes:
        name: The name that gates use as text.
        about: What it does, in a line.
        price: What a decision costs: a name of `moesim.costs.phases.gate.PRICES`, or a function of
            (primitives of a device, layer, ndarray of shape (D,): tokens that decide) that returns
            a `moesim.costs.phase.PhaseCost`.
        numbers: The two fields whose numbers stand after its name in text, such as
            ``two_level:16:4``; none for none.
        needs_numbers: Whether text must name them.
        grouped: Whether it has groups of experts.
        any_selection: Whether it can select by other ways than the top k.
        local_routers: Whether each group may score its own experts, where the group lives.
        check_experts: Refuses a number of experts that it cannot choose among.
        params: Weights, of (gate, width of a token, number of experts).
        active_params: Weights that one token multiplies with; None where all are.
        loss_known: Whether a difference in loss is known for it; others are told as unknown.
    """

    name: str
    about: str
    price: str | Callable[[Any, Any, Any], Any]
    numbers: tuple[str, ...] = ()
    needs_numbers: bool = False
    grouped: bool = False
    any_selection: bool = False
    local_routers: bool = False
    check_experts: Callable[[Any, int], None] = _any_experts
    params: Callable[[Any, int, int], int] = _key_of_each
    active_params: Callable[[Any, int, int], int] | None = None
    loss_known: bool = False


GATE_KINDS: dict[str, GateKind] = {}


def add_gate_kind(kind: GateKind) -> GateKind:
    """Make a kind of gate known by its name, and return it.

    Raises:
        ConfigError: Another kind has that name.
    """
    known = GATE_KINDS.get(kind.name, kind)
    if known != kind:
        raise ConfigError(
            f"gate kind {kind.name!r}: expected a new name, got that of {known.about!r}"
        )
    GATE_KINDS[kind.name] = kind
    return kind


def gate_kind(name: str) -> GateKind:
    """The kind of a name.

    Raises:
        UnknownNameError: Nobody added one; with the near matches.
    """
    if name not in GATE_KINDS:
        raise UnknownNameError("gate kind", name, GATE_KINDS)
    return GATE_KINDS[name]


_GROUPS = ("num_expert_groups", "num_limited_groups")
add_gate_kind(
    GateKind(
        name="flat", about="scores every expert", price="flat", any_selection=True, loss_known=True
    )
)
add_gate_kind(
    GateKind(
        name="group_limited",
        about="scores every expert, keeps the best groups, chooses inside them (DeepSeek-V3, arXiv "
        "2412.19437)",
        price="group_limited",
        numbers=_GROUPS,
        needs_numbers=True,
        grouped=True,
        loss_known=True,
    )
)
add_gate_kind(
    GateKind(
        name="two_level",
        about="scores the groups first and the experts of the kept groups only (hierarchical "
        "MoE, Shazeer et al. 2017, arXiv 1701.06538)",
        price="two_level",
        numbers=_GROUPS,
        needs_numbers=True,
        grouped=True,
        local_routers=True,
        params=_keys_of_two_levels,
        active_params=_keys_of_kept_groups,
        loss_known=True,
    )
)
add_gate_kind(
    GateKind(
        name="product_key",
        about="gives expert (i, j) of a square grid the sum of a row's and a column's score, so "
        "that the best k of sqrt(E) rows and the best k of sqrt(E) columns hold the best k "
        "of all E experts (Lample et al. 2019, arXiv 1907.05242; PEER, He 2024, arXiv "
        "2407.04153)",
        price="product_key",
        numbers=("query_heads", "query_size"),
        check_experts=_square,
        params=_product_keys,
        loss_known=True,
    )
)
