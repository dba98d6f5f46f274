"""From choices and placement to who sends how many tokens to whom, and what every device computes.

How many copies of a token travel is the exchange's choice, so all three counts are kept: one for each device that
holds any of its experts, one for each choice, one for each domain it touches. Partial results for a token are added
up where its copy went, so as many vectors return.

Shape legend: S sources, D devices, W expert-parallel ranks, L slots of a rank, G domains, T tokens, K choices.
"""

from dataclasses import dataclass

import numpy as np

from moesim.candidate import Parallelism
from moesim.lowering.counting import count_copies
from moesim.placement import Placement, turn_of_choice
from moesim.routing import Routing

Array = np.ndarray


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Traffic:
    """What moves and what is computed.

    Attributes:
        num_tokens_S: ndarray of shape (S,): tokens of each source.
        copies_SD: ndarray of shape (S, D): tokens of each source with an expert on each device, local ones included.
        choices_SD: ndarray of shape (S, D): choices of each source on each device.
        domains_SG: ndarray of shape (S, G): tokens of each source with an expert in each domain.
        counts_DL: ndarray of shape (D, L): rows of each expert slot; 0 where a rank has fewer slots.
        dropped_fraction: Choices over an expert's capacity, over all choices.
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
    def load_imbalance(self) -> float:
        """Rows of the busiest device over the mean."""
        rows = self.counts_DL.sum(axis=1)
        return float(rows.max() / rows.mean())


def _within_capacity(routing: Routing, capacity_factor: float | None, num_left: int) -> Array | None:
    """Choices that find room, in token order: ndarray of shape (T, K), bool; None if every choice does."""
    if capacity_factor is None:
        return None
    ids = routing.expert_ids_TK
    capacity = int(np.ceil(capacity_factor * ids.size / num_left))
    return turn_of_choice(ids, routing.num_experts) < capacity


def spread_tokens(routing: Routing, placement: Placement, parallelism: Parallelism,
                  capacity_factor: float | None = None, *, devices_per_domain: int | None = None,
                  num_left: int | None = None) -> Traffic:
    """Send every choice to its slot.

    Args:
        routing: Choices of all tokens.
        placement: Slots on ``parallelism.ep`` ranks.
        parallelism: Each rank is ``tp`` devices, numbered together.
        capacity_factor: Slots per expert over the mean load; None drops nothing.
        devices_per_domain: Consecutive devices of a domain; by default all of them.
        num_left: Experts that are not pruned, over which the mean load is taken; by default all.
    """
    ranks, tp = parallelism.ep, parallelism.tp
    slot_TK = placement.slot_of_choice(routing.expert_ids_TK)
    keep_TK = _within_capacity(routing, capacity_factor, num_left or routing.num_experts)
    devices_per_domain = devices_per_domain or ranks * tp
    domain_W = np.arange(ranks) * tp // devices_per_domain
    num_domains = -(-ranks * tp // devices_per_domain)
    slots = slot_TK if keep_TK is None else np.where(keep_TK, slot_TK, -1)
    copies_SW, choices_SW, domains_SG, counts_P = count_copies(
        slots, placement.device_of_slot_P.astype(np.int64), routing.num_tokens_S, domain_W, ranks, num_domains)
    return Traffic(
        num_tokens_S=routing.num_tokens_S,
        copies_SD=np.repeat(copies_SW, tp, axis=1),
        choices_SD=np.repeat(choices_SW, tp, axis=1),
        domains_SG=domains_SG,
        counts_DL=np.repeat(placement.by_rank(counts_P), tp, axis=0),
        dropped_fraction=0.0 if keep_TK is None else 1.0 - float(keep_TK.mean()),
    )
