"""From choices and placement to who sends how many tokens to whom, and what every device computes.

A token is sent once to each device that holds at least one of its experts (as DeepEP does), however many of its
experts sit there; the partial results for a token are added up on that device, so one vector returns.

Shape legend: S sources, D devices, W expert-parallel ranks, L slots of a rank, T tokens, K choices.
"""

from dataclasses import dataclass

import numpy as np

from moesim.candidate import Parallelism
from moesim.placement import Placement, turn_of_choice
from moesim.routing import Routing


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Traffic:
    """What moves and what is computed.

    Attributes:
        copies_SD: ndarray of shape (S, D): token copies from each source to each device, local ones included.
        counts_DL: ndarray of shape (D, L): rows of each expert slot; 0 where a rank has fewer slots.
        dropped_fraction: Choices over an expert's capacity, over all choices.
    """

    copies_SD: np.ndarray
    counts_DL: np.ndarray
    dropped_fraction: float

    @property
    def tokens_D(self) -> np.ndarray:
        """Distinct tokens on each device: ndarray of shape (D,)."""
        return self.copies_SD.sum(axis=0)

    @property
    def load_imbalance(self) -> float:
        """Rows of the busiest device over the mean."""
        rows = self.counts_DL.sum(axis=1)
        return float(rows.max() / rows.mean())


def _within_capacity(routing: Routing, capacity_factor: float | None) -> np.ndarray | None:
    """Choices that find room, in token order: ndarray of shape (T, K), bool; None if every choice does."""
    if capacity_factor is None:
        return None
    ids = routing.expert_ids_TK
    capacity = int(np.ceil(capacity_factor * ids.size / routing.num_experts))
    return turn_of_choice(ids, routing.num_experts) < capacity


def spread_tokens(routing: Routing, placement: Placement, parallelism: Parallelism,
                  capacity_factor: float | None = None) -> Traffic:
    """Send every choice to its slot.

    Args:
        routing: Choices of all tokens.
        placement: Slots on ``parallelism.ep`` ranks.
        parallelism: Each rank is ``tp`` devices, numbered together.
        capacity_factor: Slots per expert over the mean load; None drops nothing.
    """
    ranks, tp = parallelism.ep, parallelism.tp
    slot_TK = placement.slot_of_choice(routing.expert_ids_TK)
    rank_TK = placement.device_of_slot_P[slot_TK]
    keep_TK = _within_capacity(routing, capacity_factor)
    hit_TW = np.zeros((len(rank_TK), ranks), dtype=bool)
    rows_T = np.broadcast_to(np.arange(len(rank_TK))[:, None], rank_TK.shape)
    if keep_TK is None:
        hit_TW[rows_T, rank_TK] = True
        slots, dropped = slot_TK.ravel(), 0.0
    else:
        hit_TW[rows_T[keep_TK], rank_TK[keep_TK]] = True
        slots, dropped = slot_TK[keep_TK], 1.0 - float(keep_TK.mean())
    some_S = routing.num_tokens_S > 0
    first_S = np.cumsum(routing.num_tokens_S) - routing.num_tokens_S
    copies_SW = np.zeros((len(first_S), ranks), dtype=np.int64)
    copies_SW[some_S] = np.add.reduceat(hit_TW.astype(np.int64), first_S[some_S], axis=0)
    counts_P = np.bincount(slots, minlength=placement.num_slots)
    # slots are ascending by rank, so a slot's place inside its rank is its number less the rank's first
    first_W = np.searchsorted(placement.device_of_slot_P, np.arange(ranks))
    place_P = np.arange(placement.num_slots) - first_W[placement.device_of_slot_P]
    counts_WL = np.zeros((ranks, int(placement.slots_of_rank().max())), dtype=np.int64)
    counts_WL[placement.device_of_slot_P, place_P] = counts_P
    return Traffic(copies_SD=np.repeat(copies_SW, tp, axis=1), counts_DL=np.repeat(counts_WL, tp, axis=0),
                   dropped_fraction=dropped)
