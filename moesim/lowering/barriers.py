"""Add ops without work that join other ops, for devices that wait for all of them.

Shape legend: D devices, M ops that a device waits for.
"""

from dataclasses import dataclass

import numpy as np

from moesim.program.builder import ProgramBuilder

Array = np.ndarray


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Barriers:
    """Barriers over all devices, over each domain, or over each rail.

    A rail is the devices with the same place in their domains, one device of each domain.

    Every method takes the name of the barriers, the ops that they wait for and the phase they
    belong to, and returns an ndarray of shape (D, 1): the barrier that each device waits for.

    Attributes:
        builder: The program they are added to.
        num_devices: Number of devices, D.
        devices_per_domain: Consecutive devices of a domain, which is also the number of rails.
    """

    builder: ProgramBuilder
    num_devices: int
    devices_per_domain: int

    def of_all(self, name: str, ops: Array, phase: str) -> Array:
        """Add one barrier over ops of any shape; every device waits for it."""
        return np.full((self.num_devices, 1), self.builder.op(name, after=ops.ravel(), phase=phase))

    def of_domains(self, name: str, ops_D: Array, phase: str) -> Array:
        """Add a barrier over the ops of each domain, of shape (D,) or (D, M)."""
        return self.of_groups(name, ops_D, phase, self.devices_per_domain)

    def of_groups(self, name: str, ops_D: Array, phase: str, size: int) -> Array:
        """Add a barrier over the ops, of shape (D,) or (D, M), of each ``size`` consecutive
        devices.
        """
        groups = ops_D.reshape(len(ops_D) // size, -1)
        barriers = self.builder.ops(name, len(groups), after=groups, phase=phase)
        return np.repeat(barriers, size)[:, None]

    def of_rails(self, name: str, ops_DM: Array, phase: str) -> Array:
        """Add a barrier over the ops of each rail, of shape (D, M)."""
        size = self.devices_per_domain
        # (domain, rail, M) -> (rail, all ops of that rail in every domain)
        groups = ops_DM.reshape(-1, size, ops_DM.shape[1]).transpose(1, 0, 2).reshape(size, -1)
        barriers = self.builder.ops(name, size, after=groups, phase=phase)
        return np.tile(barriers, len(ops_DM) // size)[:, None]


def join(left: Array, right: Array | None) -> Array:
    """Put two sets of ops that devices wait for side by side: ndarray of shape (D, M).

    Args:
        left: ndarray of shape (D,) or (D, M).
        right: Another of either shape; None adds nothing.
    """
    # one op per device is a single column
    left = left.reshape(len(left), -1)
    return left if right is None else np.concatenate([left, right.reshape(len(right), -1)], axis=1)
