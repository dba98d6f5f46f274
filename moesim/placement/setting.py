"""What a placement must respect besides loads: nodes, devices that differ, memory; and what a copy
costs.

Shape legend: W expert-parallel ranks, E experts, P slots.
"""

from dataclasses import dataclass, replace

import numpy as np

from moesim.errors import CapacityError, ConfigError
from moesim.units import GIB


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """The ranks that experts are placed on. Compared by content, so that plans can be cached.

    Attributes:
        ranks_per_node: Consecutive ranks that share a fast fabric; None: all.
        num_expert_groups: Groups of the gate, of consecutive experts, for `eplb_hierarchical`.
        speed: Work per second of each rank, relative; None: all alike. Where they differ, planned
            ranks may hold unequally many slots.
        expert_bytes: Bytes of each expert's weights, of all layers; needed where memory is limited.
        room_bytes: Bytes each rank has for experts; None: unlimited.
        copy_work: Work (in the unit of the loads) that takes as long as one copy of a token into a
            rank.
        node_copy_work: The same for one copy into a node, over all its ports together.
        tp: Devices of a rank, numbered together: which rank a source of tokens is in.

    Raises:
        ConfigError: A number out of range, or memory without the experts' bytes.
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
        """Nodes of W ranks.

        Raises:
            ConfigError: They do not divide.
        """
        per_node = self.ranks_per_node or num_ranks
        if num_ranks % per_node:
            raise ConfigError(
                f"placement: expected ranks divisible by the {per_node} of a node, got {num_ranks}"
            )
        return num_ranks // per_node

    def one_node(self) -> "Setting":
        """The same with all ranks in one node."""
        return self if self.ranks_per_node is None else replace(self, ranks_per_node=None)

    def check(self, num_experts: int, num_ranks: int) -> None:
        """Refuse numbers for another number of experts or ranks, and memory that cannot hold every
        expert once.

        Raises:
            ConfigError: Another number of entries.
            CapacityError: How many GiB the experts need, and how many there are.
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
        """Most slots of each rank: equally many, or any number where speeds differ. ndarray of
        shape (W,).
        """
        if self.unequal:
            return np.full(num_ranks, num_slots)
        return np.full(num_ranks, num_slots // num_ranks)

    @property
    def unequal(self) -> bool:
        """Whether ranks differ in speed."""
        return self.speed is not None and min(self.speed) < max(self.speed)

    def speeds(self, num_ranks: int) -> np.ndarray:
        """Speeds, 1 where all are alike: ndarray of shape (W,)."""
        return np.ones(num_ranks) if self.speed is None else np.array(self.speed)


#: ranks of one node, all alike, without a limit of memory
PLAIN = Setting()
