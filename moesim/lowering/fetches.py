"""Count the weights of experts that travel from the host, for each micro-batch of a layer.

A micro-batch fetches what it needs and no earlier one has fetched. Layers follow one another in a
steady state: while one fetches ahead for the next, its own were fetched ahead by the one before.

Which experts a batch needs is expected from the routing model, not read off the batch at hand: the
few tokens of a decode are drawn so that they meet the loads, and would always choose the experts
that a cache keeps. An expert that a token chooses with probability p is active among T tokens with
1 - (1 - p)^T; that neighbors choose alike is not counted. Bytes are means: a step in which one
device misses more than the mean takes longer. How many of them a guess finds is expected likewise,
where no recall is given: `popular_recall` is what the loads alone know. A gate of the next layer
that is applied to this layer's tokens knows more (Eliseev and Mazur 2023, arXiv 2312.17238).

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
        recall: Share of the missing experts that is guessed.
    """

    now_bytes: tuple[Array, ...]
    ahead_bytes_D: Array
    missing_bytes_D: Array
    hit_fraction: float
    recall: float

    @classmethod
    def of(
        cls,
        offload: Offload,
        num_tokens: Sequence[float],
        chosen_DL: Array,
        resident_DL: Array,
        bytes_DL: Array,
        correlation: float = 0.0,
    ) -> "Fetches":
        """Count the fetches of a layer.

        Args:
            offload: How experts are offloaded.
            num_tokens: Tokens of every micro-batch, of all devices together.
            chosen_DL: ndarray of shape (D, L): probability that a token chooses each slot.
            resident_DL: ndarray of shape (D, L), bool: slots whose experts stay on the device.
            bytes_DL: ndarray of shape (D, L): bytes of the weights in each slot.
            correlation: Probability that the next layer chooses the experts of this one, see
                `moesim.design.step.ExpertLoad`.
        """
        recall = offload.prefetch_recall
        if recall is None:
            used_DL = 1.0 - (1.0 - chosen_DL) ** sum(num_tokens)
            recall = popular_recall(used_DL * ~resident_DL, correlation)
        asked_for, now = 1.0 - recall, []
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
            ahead_bytes_D=missing_D if offload.fetches_ahead else np.zeros_like(missing_D),
            missing_bytes_D=missing_D,
            hit_fraction=1.0 - asked_for * missing,
            recall=recall,
        )

    def pieces(self) -> list[Fetch]:
        """Return the copies of every micro-batch; those for the next layer follow the last."""
        last = len(self.now_bytes) - 1
        ahead = self.ahead_bytes_D if self.ahead_bytes_D.any() else None
        return [
            Fetch(now_bytes_D=now_D, ahead_bytes_D=ahead if m == last else None)
            for m, now_D in enumerate(self.now_bytes)
        ]


def popular_recall(missing_DL: Array, correlation: float = 0.0) -> float:
    """Return the share of the missing experts that a guess by popularity finds.

    On each device the guess takes the experts that are most likely to be missing, as many as will
    be missing on average; their probabilities add up to what it finds. Where the next layer chooses
    as this one does, which is known of a model, the guess takes this layer's experts and finds all.

    Args:
        missing_DL: ndarray of shape (D, L): probability that a batch needs the expert in each slot
            while it is not resident.
        correlation: Probability that two layers choose the same experts.

    Returns:
        A share from ``correlation`` to 1; 1 if none will be missing.
    """
    total_D = missing_DL.sum(axis=1)
    if not total_D.any():
        return 1.0
    likely_DL = -np.sort(-missing_DL, axis=1)
    # a guess of 2.5 experts takes the third one half of the time
    taken_DL = np.clip(total_D[:, None] - np.arange(likely_DL.shape[1]), 0.0, 1.0)
    popular = float((likely_DL * taken_DL).sum() / total_D.sum())
    return correlation + (1.0 - correlation) * popular
