"""The weights of a layer's routed experts: their forms, where they lie, and what is fetched.

Shape legend: D devices, L slots of a device.
"""

from dataclasses import dataclass

import numpy as np

from moesim.lowering.expert_groups import ExpertGroup
from moesim.lowering.fetches import Fetches

Array = np.ndarray


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class StoredExperts:
    """How the weights of routed experts are stored.

    Attributes:
        groups: The experts of each form.
        bytes_DL: ndarray of shape (D, L): bytes of the weights in each slot.
        resident_DL: ndarray of shape (D, L), bool: slots whose weights stay on the device.
        fetches: What comes from the host; None if all stay on their device.
        cold_kernels: Name of the library that runs cold experts; empty if there are none.
    """

    groups: tuple[ExpertGroup, ...]
    bytes_DL: Array
    resident_DL: Array
    fetches: Fetches | None
    cold_kernels: str

    @property
    def held_bytes_D(self) -> Array:
        """The bytes of one layer's weights that stay on each device: ndarray of shape (D,)."""
        return np.asarray((self.bytes_DL * self.resident_DL).sum(axis=1))

    @property
    def staged_bytes_D(self) -> Array:
        """The bytes of the buffers that weights are fetched into, for one layer and for the next if
        they are fetched ahead: ndarray of shape (D,).
        """
        if self.fetches is None:
            return np.zeros(len(self.bytes_DL))
        return self.fetches.missing_bytes_D + self.fetches.ahead_bytes_D
