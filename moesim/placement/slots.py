"""A placement: expert slots on expert-parallel ranks. More slots than experts means replicas.

Shape legend: P slots, E experts, W expert-parallel ranks.
"""

from dataclasses import dataclass

import numpy as np

from moesim.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Placement:
    """Which expert sits in which slot of which rank.

    Attributes:
        device_of_slot_P: ndarray of shape (P,): expert-parallel rank of each slot, ascending.
        expert_of_slot_P: ndarray of shape (P,): expert of each slot; every expert at least once.
        num_ranks: W.
        num_experts: E.

    Raises:
        ConfigError: An expert without a slot, or a rank out of range.
    """

    device_of_slot_P: np.ndarray
    expert_of_slot_P: np.ndarray
    num_ranks: int
    num_experts: int

    def __post_init__(self) -> None:
        missing = np.setdiff1d(np.arange(self.num_experts), self.expert_of_slot_P)
        if len(missing):
            raise ConfigError(f"placement: expected every expert in a slot, expert {missing[0]} has none")
        if len(self.device_of_slot_P) and not 0 <= self.device_of_slot_P.min() <= self.device_of_slot_P.max() < self.num_ranks:
            raise ConfigError(f"placement: expected ranks below {self.num_ranks}, got {self.device_of_slot_P.max()}")

    @property
    def num_slots(self) -> int:
        """Slots P over all ranks."""
        return len(self.expert_of_slot_P)

    def slots_of_rank(self) -> np.ndarray:
        """Slots of each rank: what its memory must hold. ndarray of shape (W,)."""
        return np.bincount(self.device_of_slot_P, minlength=self.num_ranks)

    def slot_of_choice(self, expert_ids_TK: np.ndarray) -> np.ndarray:
        """The slot every choice goes to: replicas of an expert take its tokens in turn.

        Args:
            expert_ids_TK: ndarray of shape (T, K).

        Returns:
            ndarray of shape (T, K): slots.
        """
        order = np.argsort(self.expert_of_slot_P, kind="stable")
        copies_E = np.bincount(self.expert_of_slot_P, minlength=self.num_experts)
        first_E = np.concatenate([[0], np.cumsum(copies_E)[:-1]])
        if self.num_slots == self.num_experts:
            return order[expert_ids_TK]
        turn_T = np.arange(len(expert_ids_TK))[:, None]
        return order[first_E[expert_ids_TK] + turn_T % copies_E[expert_ids_TK]]


def replica_loads(placement: Placement, num_tokens_E: np.ndarray) -> np.ndarray:
    """Load of each slot when replicas share their expert's tokens evenly: ndarray of shape (P,)."""
    copies_E = np.bincount(placement.expert_of_slot_P, minlength=placement.num_experts)
    return (num_tokens_E / copies_E)[placement.expert_of_slot_P]
