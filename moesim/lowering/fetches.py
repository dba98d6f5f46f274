"""Count the weights of experts that travel from the host, for each micro-batch of a layer.

A micro-batch fetches what it needs and no earlier one has fetched. Layers follow one another in a
steady state: while one fetches ahead for the next, its own were fetched ahead by the one before.

Shape legend: D devices, L slots of a device.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from moesim.design.offload import Offload
from moesim.lowering.streams import Fetch
from moesim.lowering.traffic import AnyTraffic

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
        batches: Sequence[AnyTraffic],
        resident_DL: Array,
        bytes_DL: Array,
    ) -> "Fetches":
        """Count the fetches of a layer.

        Args:
            offload: How experts are offloaded.
            batches: Traffic of every micro-batch.
            resident_DL: ndarray of shape (D, L), bool: slots whose experts stay on the device.
            bytes_DL: ndarray of shape (D, L): bytes of the weights in each slot.
        """
        there_DL, now = resident_DL, []
        asked_for, late = 1.0 - offload.prefetch_recall, np.zeros(len(bytes_DL))
        for traffic in batches:
            missing_DL = (traffic.counts_DL > 0) & ~there_DL
            missing_D = (missing_DL * bytes_DL).sum(axis=1)
            now.append(asked_for * missing_D)
            late = late + missing_D
            there_DL = there_DL | missing_DL
        active = sum((traffic.counts_DL > 0) for traffic in batches) > 0
        missing = float((active & ~resident_DL).sum()) / max(float(np.sum(active)), 1.0)
        return cls(
            now_bytes=tuple(now),
            # as many experts are guessed as will be missing, whether the guesses are right or not
            ahead_bytes_D=late if offload.prefetch_recall > 0 else np.zeros_like(late),
            missing_bytes_D=late,
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
