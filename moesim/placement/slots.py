"""A placement assigns expert slots to expert-parallel ranks. More slots than experts means
replicas.

Shape legend: P slots, E experts, W expert-parallel ranks.
"""

from dataclasses import dataclass

import numpy as np

from moesim.errors import ConfigError
from moesim.placement.turns import slots_in_turn, turns


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Placement:
    """A placement: the expert of every slot and the rank of every slot.

    Attributes:
        rank_of_slot_P: ndarray of shape (P,): expert-parallel rank of each slot, ascending.
        expert_of_slot_P: ndarray of shape (P,): expert of each slot; every expert appears at least
            once.
        num_ranks: Number of ranks W.
        num_experts: Number of experts E.
        nearest_within: Number of ranks of a node, within which a token prefers replicas of its
            expert; 0 if all replicas take turns.

    Raises:
        ConfigError: An expert has no slot, a rank is out of range, or the slots are not in order of
            their ranks.
    """

    rank_of_slot_P: np.ndarray
    expert_of_slot_P: np.ndarray
    num_ranks: int
    num_experts: int
    nearest_within: int = 0

    def __post_init__(self) -> None:
        experts, ranks = self.expert_of_slot_P, self.rank_of_slot_P
        if len(experts) != len(ranks):
            raise ConfigError(
                f"placement: expected a rank for each of {len(experts)} slots, got {len(ranks)}"
            )
        for expert in (experts.min(initial=0), experts.max(initial=0)):
            if not 0 <= expert < self.num_experts:
                raise ConfigError(
                    f"placement: expected experts below {self.num_experts}, got {expert}"
                )
        # counting takes a tenth of the time of sorting
        missing = np.flatnonzero(np.bincount(experts, minlength=self.num_experts) == 0)
        if len(missing):
            raise ConfigError(
                f"placement: expected every expert in a slot, expert {missing[0]} has none"
            )
        for rank in (ranks.min(), ranks.max()):
            if not 0 <= rank < self.num_ranks:
                raise ConfigError(f"placement: expected ranks below {self.num_ranks}, got {rank}")
        back = np.flatnonzero(np.diff(ranks) < 0)
        if len(back):
            first, then = ranks[back[0]], ranks[back[0] + 1]
            raise ConfigError(
                f"placement: expected slots in order of their ranks, got rank {then} after {first}"
            )

    @property
    def num_slots(self) -> int:
        """The number of slots P over all ranks."""
        return len(self.expert_of_slot_P)

    def slots_of_rank(self) -> np.ndarray:
        """Return the number of slots of each rank, which its memory must hold: ndarray of shape
        (W,).
        """
        return np.bincount(self.rank_of_slot_P, minlength=self.num_ranks)

    def by_rank(self, value_P: np.ndarray) -> np.ndarray:
        """Return a value of each slot, arranged rank by rank.

        Args:
            value_P: ndarray of shape (P,): the value of each slot.

        Returns:
            ndarray of shape (W, L) with L the largest number of slots of a rank: values in the
            order of slots, 0 where a rank has fewer slots.
        """
        first_W = np.searchsorted(self.rank_of_slot_P, np.arange(self.num_ranks))
        out = np.zeros((self.num_ranks, int(self.slots_of_rank().max())), dtype=value_P.dtype)
        out[self.rank_of_slot_P, np.arange(self.num_slots) - first_W[self.rank_of_slot_P]] = value_P
        return out

    def slot_of_choice(self, expert_ids_TK: np.ndarray) -> np.ndarray:
        """Return the slot of every choice; replicas of an expert take turns for its tokens.

        Args:
            expert_ids_TK: ndarray of shape (T, K): expert of every choice.

        Returns:
            ndarray of shape (T, K): slot of every choice.
        """
        order = np.argsort(self.expert_of_slot_P, kind="stable")
        copies_E = np.bincount(self.expert_of_slot_P, minlength=self.num_experts)
        first_E = np.concatenate([[0], np.cumsum(copies_E)[:-1]])
        if self.num_slots == self.num_experts:
            # where slots are the experts, as after `nearest_slot_of_choice`, nothing is left to do
            as_they_are = expert_ids_TK.dtype == order.dtype and (np.diff(order) == 1).all()
            return expert_ids_TK if as_they_are else order[expert_ids_TK]
        flat = np.ascontiguousarray(expert_ids_TK).ravel()
        return slots_in_turn(flat, order, first_E, copies_E).reshape(expert_ids_TK.shape)

    def nearest_slot_of_choice(self, expert_ids_TK: np.ndarray, rank_T: np.ndarray) -> np.ndarray:
        """Return the slot of every choice if tokens prefer replicas of their own rank, then of
        their own node.

        Equally near replicas take turns for the tokens of a source, like the static dispatch of
        SGLang.

        Args:
            expert_ids_TK: ndarray of shape (T, K): expert of every choice.
            rank_T: ndarray of shape (T,): rank of each token.

        Returns:
            ndarray of shape (T, K): slot of every choice.
        """
        per_node = self.nearest_within or self.num_ranks
        slot_TK = np.empty(expert_ids_TK.shape, dtype=np.int64)
        rank_P = self.rank_of_slot_P
        # tokens rank by rank, in their order within a rank
        order_T = np.argsort(rank_T, kind="stable")
        ranks, starts = np.unique(rank_T[order_T], return_index=True)
        for rank, tokens in zip(ranks, np.split(order_T, starts[1:]), strict=True):
            far_P = np.where(rank_P == rank, 0, 1 + (rank_P // per_node != rank // per_node))
            least_E = np.full(self.num_experts, 3)
            np.minimum.at(least_E, self.expert_of_slot_P, far_P)
            near = np.flatnonzero(far_P == least_E[self.expert_of_slot_P])
            order = near[np.argsort(self.expert_of_slot_P[near], kind="stable")]
            copies_E = np.bincount(self.expert_of_slot_P[near], minlength=self.num_experts)
            first_E = np.concatenate([[0], np.cumsum(copies_E)[:-1]])
            ids = expert_ids_TK[tokens]
            # every rank begins with a different replica, so that a few tokens do not all go to the
            # first
            turn = turn_of_choice(ids, self.num_experts) + rank
            slot_TK[tokens] = order[first_E[ids] + turn % copies_E[ids]]
        return slot_TK


def turn_of_choice(expert_ids_TK: np.ndarray, num_experts: int) -> np.ndarray:
    """Return how many choices of the same expert precede each choice in token order: ndarray of
    shape (T, K).
    """
    return turns(np.ascontiguousarray(expert_ids_TK).ravel(), num_experts).reshape(
        expert_ids_TK.shape
    )


def replica_loads(placement: Placement, num_tokens_E: np.ndarray) -> np.ndarray:
    """Return the load of each slot if replicas share the tokens of their expert evenly: ndarray of
    shape (P,).
    """
    copies_E = np.bincount(placement.expert_of_slot_P, minlength=placement.num_experts)
    return (num_tokens_E / copies_E)[placement.expert_of_slot_P]
