"""Conditions of a placement apart from loads: nodes, devices that differ, memory, and the cost of a
copy.

Shape legend: W expert-parallel ranks, E experts, P slots.
"""

from dataclasses import dataclass, replace

import numpy as np

from moesim.errors import CapacityError, ConfigError
from moesim.units import GIB


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """The ranks that experts are placed on. Settings are compared by content, so that plans can be
    cached.

    Attributes:
        ranks_per_node: Number of consecutive ranks that share a fast fabric; None for all ranks.
        num_expert_groups: Number of groups of the gate, which hold consecutive experts, for
            `eplb_hierarchical`.
        speed: Relative work per second of each rank; None if all are equal. If they differ, ranks
            may hold different numbers of slots.
        expert_bytes: Bytes of the weights of each expert over all layers; required if memory is
            limited.
        room_bytes: Bytes that each rank has for experts; None if memory is unlimited.
        copy_work: Work, in the unit of the loads, that takes as long as one copy of a token into a
            rank.
        node_copy_work: Work that takes as long as one copy of a token into a node, over all its
            ports together.
        tp: Number of devices of a rank, which are numbered consecutively; it gives the rank of a
            source of tokens.

    Raises:
        ConfigError: A number is out of range, or memory is given without the bytes of experts.
    """

    ranks_per_node: int | None = None
    num_expert_groups: int = 1
    speed: tuple[float, ...] | None = None
    expert_bytes: tuple[float, ...] | None = None
    room_bytes: tuple[float, ...] | None = None
    copy_work: float = 0.0
    node_copy_work: float = 0.0
    tp: int = 1

    def __post_init__(self) -> None:
        for name, least in (
            ("ranks_per_node", 1),
            ("num_expert_groups", 1),
            ("tp", 1),
            ("copy_work", 0),
            ("node_copy_work", 0),
        ):
            value = getattr(self, name)
            if value is not None and not value >= least:
                raise ConfigError(f"placement.{name}: expected a number >= {least}, got {value}")
        if self.speed is not None and not all(0 < s < np.inf for s in self.speed):
            raise ConfigError(f"placement.speed: expected numbers > 0, got {min(self.speed)}")
        if self.room_bytes is not None and self.expert_bytes is None:
            raise ConfigError("placement.room_bytes: expected expert_bytes, too")

    def nodes(self, num_ranks: int) -> int:
        """Return the number of nodes of W ranks.

        Raises:
            ConfigError: The ranks do not divide into nodes.
        """
        per_node = self.ranks_per_node or num_ranks
        if num_ranks % per_node:
            raise ConfigError(
                f"placement: expected ranks divisible by the {per_node} of a node, got {num_ranks}"
            )
        return num_ranks // per_node

    def one_node(self) -> "Setting":
        """Return the same setting with all ranks in one node."""
        return self if self.ranks_per_node is None else replace(self, ranks_per_node=None)

    def check(self, num_experts: int, num_ranks: int) -> None:
        """Raise an error if numbers are given for a different number of experts or ranks, or if
        memory cannot hold every expert once.

        Raises:
            ConfigError: A number of entries does not match.
            CapacityError: The experts do not fit. The text names the GiB they need and the GiB
                available.
        """
        for name, count in (
            ("speed", num_ranks),
            ("room_bytes", num_ranks),
            ("expert_bytes", num_experts),
        ):
            given = getattr(self, name)
            if given is not None and len(given) != count:
                raise ConfigError(f"placement.{name}: expected {count} numbers, got {len(given)}")
        if self.room_bytes is not None:
            assert self.expert_bytes is not None
            need, room = sum(self.expert_bytes), sum(max(r, 0.0) for r in self.room_bytes)
            if need > room:
                raise CapacityError(
                    f"placement: {num_experts} experts need {need / GIB:.2f} GiB, the {num_ranks} "
                    f"ranks have room for {room / GIB:.2f}"
                )

    def rooms(self, num_slots: int, num_ranks: int) -> np.ndarray:
        """Return the maximum number of slots of each rank, which is the same for all, or unlimited
        if speeds differ: ndarray of shape (W,).
        """
        if self.unequal:
            return np.full(num_ranks, num_slots)
        return np.full(num_ranks, num_slots // num_ranks)

    @property
    def unequal(self) -> bool:
        """Whether the ranks differ in speed."""
        return self.speed is not None and min(self.speed) < max(self.speed)

    def speeds(self, num_ranks: int) -> np.ndarray:
        """Return the speeds, 1 if all are equal: ndarray of shape (W,)."""
        return np.ones(num_ranks) if self.speed is None else np.array(self.speed)


#: identical ranks of one node without a limit on memory
PLAIN = Setting()
