"""Each kind of gate is one record that states how it differs from the others.

A record states which numbers its text takes, which numbers of experts it can choose among, how many
weights it has and what it costs. No other module of moesim lists the kinds. To add a kind, add a
record here, or call `add_gate_kind` anywhere else; its price is the name of a price in
`moesim.costs.phases.gate`, or a function of your own.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from moesim.errors import ConfigError, UnknownNameError, require


class Sizes(Protocol):
    """The sizes of a gate, a part of `moesim.model.gate.Gate`."""

    @property
    def num_expert_groups(self) -> int:
        """The number of groups of experts."""
        ...

    @property
    def num_limited_groups(self) -> int:
        """The number of groups that a token may use."""
        ...

    @property
    def query_heads(self) -> int:
        """The number of queries that a token is projected to."""
        ...

    @property
    def query_size(self) -> int:
        """The width of a query."""
        ...


def _any_experts(gate: Sizes, num_experts: int) -> None:
    """Accept any number of experts."""


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
    """Return the weights of two sets of sqrt(E) keys of half a query each, which all heads share
    (arXiv 2407.04153), and of the projection.
    """
    return (math.isqrt(num_experts) + hidden_size * gate.query_heads) * gate.query_size


def _low_rank(gate: Sizes, hidden_size: int, num_experts: int) -> int:
    return (hidden_size + num_experts) * gate.query_size


@dataclass(frozen=True, slots=True, kw_only=True)
class GateKind:
    """One kind of gate.

    Attributes:
        name: The name that the text of a gate begins with.
        about: One line that says what the gate does.
        price: The cost of a decision: a name in `moesim.costs.phases.gate.PRICES`, or a function of
            (primitives of a device, layer, ndarray of shape (D,) with the tokens that decide) that
            returns a `moesim.costs.phase.PhaseCost`.
        numbers: The two fields whose numbers follow the name in the text, such as
            ``two_level:16:4``; empty if the text has no numbers.
        needs_numbers: Whether the text must contain these numbers.
        grouped: Whether the gate has groups of experts.
        any_selection: Whether the gate can select by rules other than the top k.
        local_routers: Whether each group may score its own experts on its own devices.
        check_experts: A function that raises an error for a number of experts that the gate cannot
            choose among.
        params: A function of (gate, width of a token, number of experts) that returns the number of
            weights.
        active_params: The same function for the weights that one token multiplies with; None if it
            uses all.
        loss_known: Whether a difference in loss is known for the kind; otherwise it is reported as
            unknown.
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
    """Register a kind of gate under its name and return it.

    Raises:
        ConfigError: Another kind already has that name.
    """
    known = GATE_KINDS.get(kind.name, kind)
    if known != kind:
        raise ConfigError(
            f"gate kind {kind.name!r}: expected a new name, got that of {known.about!r}"
        )
    GATE_KINDS[kind.name] = kind
    return kind


def gate_kind(name: str) -> GateKind:
    """Return the kind with a given name.

    Raises:
        UnknownNameError: No kind has that name; the text lists the near matches.
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
add_gate_kind(
    GateKind(
        name="low_rank",
        about="projects a token to one query, and scores every expert by its key of that width: a "
        "product of two thin matrices, such as one distilled from a whole gate (X-MoE, Chi et al. "
        "2022, arXiv 2204.09179, trains such queries from the start)",
        price="low_rank",
        any_selection=True,
        params=_low_rank,
        loss_known=True,
    )
)
