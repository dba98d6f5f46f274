"""Derive from choices and placement who sends how many tokens to whom, and what every device
computes.

The exchange decides how many copies of a token travel, so three counts are kept: a copy for each
device that holds any of its experts, for each choice, and for each domain it touches. Partial
results for a token are added up where its copy went, so equally many vectors return.

Traffic is drawn: matrices over pairs of devices, as here, or expected: a product, see
`moesim.lowering.expected`.

Shape legend: S sources, D devices, W expert-parallel ranks, L slots of a rank, G domains, T tokens,
K choices.
"""

from dataclasses import dataclass, replace

import numpy as np

from moesim.design.candidate import Parallelism
from moesim.errors import ConfigError
from moesim.lowering.counting import count_copies
from moesim.lowering.expected import ExpectedTraffic
from moesim.placement import Placement, turn_of_choice
from moesim.routing import Routing
from moesim.routing.capacity import places

Array = np.ndarray


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Traffic:
    """Copies that move between devices, and rows that each device computes.

    Attributes:
        num_tokens_S: ndarray of shape (S,): tokens of each source.
        copies_SD: ndarray of shape (S, D): tokens of each source with an expert on each device,
            local ones included.
        choices_SD: ndarray of shape (S, D): choices of each source that lie on each device.
        domains_SG: ndarray of shape (S, G): tokens of each source with an expert in each domain.
        counts_DL: ndarray of shape (D, L): rows of each expert slot; 0 where a rank has fewer than
            L slots.
        dropped_fraction: Share of all choices that exceed an expert's capacity and are dropped.
    """

    num_tokens_S: Array
    copies_SD: Array
    choices_SD: Array
    domains_SG: Array
    counts_DL: Array
    dropped_fraction: float

    @property
    def tokens_D(self) -> Array:
        """Distinct tokens on each device: ndarray of shape (D,)."""
        return self.copies_SD.sum(axis=0)

    @property
    def sent_copies_S(self) -> Array:
        """Copies of each source's tokens, local ones included: ndarray of shape (S,)."""
        return self.copies_SD.sum(axis=1)

    @property
    def num_tokens(self) -> float:
        """The tokens of all sources."""
        return float(self.num_tokens_S.sum())

    @property
    def num_copies(self) -> float:
        """Copies of all tokens."""
        return float(self.copies_SD.sum())

    @property
    def num_domain_copies(self) -> float:
        """Copies of all tokens, if each domain received a token once."""
        return float(self.domains_SG.sum())

    @property
    def num_kept(self) -> float:
        """Copies of all tokens that stay in their source's own domain, one for each token."""
        sources, domains = self.domains_SG.shape
        return float(
            self.domains_SG[np.arange(sources), np.arange(sources) * domains // sources].sum()
        )

    @property
    def load_imbalance(self) -> float:
        """Rows of the busiest device over the mean of all devices."""
        rows = self.counts_DL.sum(axis=1)
        return float(rows.max() / rows.mean())


#: traffic as matrices of pairs, or as a product
AnyTraffic = Traffic | ExpectedTraffic


def _within_capacity(
    routing: Routing, capacity_factor: float | None, num_left: int
) -> Array | None:
    """Return which choices find room, in token order: ndarray of shape (T, K), bool; None without a
    capacity.
    """
    if capacity_factor is None:
        return None
    # an expert takes choices in token order until its capacity is full
    ids = routing.expert_ids_TK
    return turn_of_choice(ids, routing.num_experts) < places(capacity_factor, ids.size, num_left)


def spread_tokens(
    routing: Routing,
    placement: Placement,
    parallelism: Parallelism,
    capacity_factor: float | None = None,
    *,
    devices_per_domain: int | None = None,
    num_left: int | None = None,
) -> Traffic:
    """Send every choice to its slot and count the traffic.

    Args:
        routing: The choices of all tokens.
        placement: The expert slots on ``parallelism.ep`` ranks.
        parallelism: The parallelism; each rank is ``tp`` consecutive devices.
        capacity_factor: Capacity of an expert over the mean load; None drops nothing.
        devices_per_domain: Consecutive devices of a domain; by default all of them.
        num_left: Number of experts that are not pruned, over which the mean load is taken; by
            default all.
    """
    ranks, tp = parallelism.ep, parallelism.tp
    slot_TK = placement.slot_of_choice(routing.expert_ids_TK)
    keep_TK = _within_capacity(routing, capacity_factor, num_left or routing.num_experts)
    devices_per_domain = devices_per_domain or ranks * tp
    # ranks are numbered through, so a domain is a run of consecutive ranks
    domain_W = np.arange(ranks) * tp // devices_per_domain
    num_domains = -(-ranks * tp // devices_per_domain)
    # dropped choices have slot -1
    slots = slot_TK if keep_TK is None else np.where(keep_TK, slot_TK, -1)
    copies_SW, choices_SW, domains_SG, counts_P = count_copies(
        slots,
        placement.rank_of_slot_P.astype(np.int64),
        routing.num_tokens_S,
        domain_W,
        ranks,
        num_domains,
    )
    return Traffic(
        num_tokens_S=routing.num_tokens_S,
        # each of the devices of a rank gets a copy of the rank's tokens
        copies_SD=np.repeat(copies_SW, tp, axis=1),
        choices_SD=np.repeat(choices_SW, tp, axis=1),
        domains_SG=domains_SG,
        counts_DL=np.repeat(placement.by_rank(counts_P), tp, axis=0),
        dropped_fraction=0.0 if keep_TK is None else 1.0 - float(keep_TK.mean()),
    )


def settled(
    routing: Routing, placement: Placement, tp: int, capacity_factor: float | None
) -> tuple[Routing, Placement]:
    """Assign choices to slots, for a placement whose tokens prefer near replicas.

    Args:
        routing: The choices of all tokens.
        placement: The expert slots.
        tp: Devices of a rank.
        capacity_factor: Capacity of an expert over the mean load; None for none.

    Returns:
        The routing with slots instead of experts, and the placement with each slot as an expert of
        its own; both unchanged where replicas take turns.

    Raises:
        ConfigError: There is a capacity, which is per expert and not per slot.
    """
    if not placement.nearest_within:
        return routing, placement
    if capacity_factor is not None:
        raise ConfigError(
            f"placement: nearest replicas take no capacity_factor, got {capacity_factor:g}"
        )
    # the slots become the experts, so that spreading them later changes nothing
    slot_TK = placement.nearest_slot_of_choice(routing.expert_ids_TK, routing.source_T() // tp)
    slots = placement.num_slots
    return (
        replace(routing, expert_ids_TK=slot_TK, num_experts=slots),
        Placement(
            rank_of_slot_P=placement.rank_of_slot_P,
            expert_of_slot_P=np.arange(slots),
            num_ranks=placement.num_ranks,
            num_experts=slots,
        ),
    )


def padded(
    traffic: Traffic,
    placement: Placement,
    tp: int,
    capacity: int,
    devices_per_domain: int,
    left_E: np.ndarray | None = None,
) -> Traffic:
    """Return the traffic of experts whose whole capacity is filled, with zeros where there is no
    choice.

    Every source sends an equal share of each expert's capacity, which its replicas share.

    Args:
        traffic: Traffic of the choices.
        placement: The expert slots.
        tp: Devices of a rank.
        capacity: Rows that an expert has room for.
        devices_per_domain: Consecutive devices of a domain.
        left_E: ndarray of shape (E,), bool: whether each expert is left after pruning; None for
            all.
    """
    # replicas of an expert share its capacity
    copies_E = np.bincount(placement.expert_of_slot_P, minlength=placement.num_experts)
    # a slot computes its share of the capacity, rounded up to whole rows
    rows_P = -(-capacity // copies_E[placement.expert_of_slot_P])
    if left_E is not None:
        rows_P = rows_P * left_E[placement.expert_of_slot_P]
    sources = len(traffic.num_tokens_S)
    # rounded up for every source, since each sends whole rows
    sent_W = np.bincount(
        placement.rank_of_slot_P, weights=-(-rows_P // sources), minlength=placement.num_ranks
    )
    sent_SD = np.broadcast_to(np.repeat(sent_W.astype(np.int64), tp), traffic.copies_SD.shape)
    domain_W = np.arange(placement.num_ranks) * tp // devices_per_domain
    sent_G = np.bincount(domain_W, weights=sent_W, minlength=traffic.domains_SG.shape[1]).astype(
        np.int64
    )
    return replace(
        traffic,
        copies_SD=sent_SD,
        choices_SD=sent_SD,
        domains_SG=np.broadcast_to(sent_G, traffic.domains_SG.shape),
        counts_DL=np.repeat(placement.by_rank(rows_P), tp, axis=0),
    )
