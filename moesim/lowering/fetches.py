"""Count the weights of experts that travel from the host, for each micro-batch of a layer.

A micro-batch fetches what it needs and no earlier one has fetched. Layers follow one another in a
steady state: while one fetches ahead for the next, its own were fetched ahead by the one before.

Which experts a batch needs is expected from the routing model, not read off the batch at hand: the
few tokens of a decode are drawn so that they meet the loads, and would always choose the experts
that a cache keeps. An expert that a token chooses with probability p is active among T tokens with
1 - (1 - p)^T; that neighbors choose alike is not counted. Bytes are means: a step in which one
device misses more than the mean takes longer.

Shape legend: D devices, L slots of a device.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from moesim.design.offload import Offload
from moesim.lowering.streams import Fetch

Array = np.ndarray


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Fetches:
    """What comes from the host in one layer.

    Attributes:
        now_bytes: For each micro-batch the bytes to each device that its experts wait for, ndarray
            of shape (D,).
        ahead_bytes_D: ndarray of shape (D,): bytes to each device that are fetched for the next
            layer, wrong guesses included.
        missing_bytes_D: ndarray of shape (D,): bytes of all active experts that are not resident.
        hit_fraction: Share of the active experts of all devices that is there when the gate has
            chosen: resident, or guessed.
    """

    now_bytes: tuple[Array, ...]
    ahead_bytes_D: Array
    missing_bytes_D: Array
    hit_fraction: float

    @classmethod
    def of(
        cls,
        offload: Offload,
        num_tokens: Sequence[float],
        chosen_DL: Array,
        resident_DL: Array,
        bytes_DL: Array,
    ) -> "Fetches":
        """Count the fetches of a layer.

        Args:
            offload: How experts are offloaded.
            num_tokens: Tokens of every micro-batch, of all devices together.
            chosen_DL: ndarray of shape (D, L): probability that a token chooses each slot.
            resident_DL: ndarray of shape (D, L), bool: slots whose experts stay on the device.
            bytes_DL: ndarray of shape (D, L): bytes of the weights in each slot.
        """
        asked_for, now = 1.0 - offload.prefetch_recall, []
        away_DL, idle_DL = ~resident_DL * bytes_DL, np.ones_like(chosen_DL)
        missing_D = np.zeros(len(bytes_DL))
        for tokens in num_tokens:
            # active in this micro-batch, and in none before
            still_DL = idle_DL * (1.0 - chosen_DL) ** tokens
            first_D = ((idle_DL - still_DL) * away_DL).sum(axis=1)
            now.append(asked_for * first_D)
            missing_D, idle_DL = missing_D + first_D, still_DL
        active_DL = 1.0 - idle_DL
        missing = float((active_DL * ~resident_DL).sum() / active_DL.sum())
        return cls(
            now_bytes=tuple(now),
            # as many experts are guessed as will be missing, whether the guesses are right or not
            ahead_bytes_D=missing_D if offload.prefetch_recall > 0 else np.zeros_like(missing_D),
            missing_bytes_D=missing_D,
            hit_fraction=1.0 - asked_for * missing,
        )

    def pieces(self) -> list[Fetch]:
        """Return the copies of every micro-batch; those for the next layer follow the last."""
        last = len(self.now_bytes) - 1
        ahead = self.ahead_bytes_D if self.ahead_bytes_D.any() else None
        return [
            Fetch(now_bytes_D=now_D, ahead_bytes_D=ahead if m == last else None)
            for m, now_D in enumerate(self.now_bytes)
        ]
