"""How a job comes back: detection, restart, spare nodes, and going on with fewer devices."""

from bisect import insort
from dataclasses import dataclass
from math import ceil

from moesim.errors import require, require_int
from moesim.operations.failure_draws import Topology


@dataclass(frozen=True, slots=True, kw_only=True)
class RecoveryPolicy:
    """How a job comes back.

    Attributes:
        detection_s: Seconds until a failure is noticed, where its cause says nothing else.
        restart_s: Seconds in which the job starts again, reading a checkpoint not included.
        repair_s: Seconds until a failed node is back, where its cause says nothing else.
        spare_nodes: Nodes that stand by.
        elastic: Whether the job goes on with fewer devices where spares are missing; otherwise it
            waits for a repair.
        elastic_unit: Devices that leave together, such as a data-parallel replica; None for a
            node.
        rejoin_s: Seconds in which the job takes repaired nodes in again, fetching their states not
            included.

    Raises:
        ConfigError: A number is out of range.
    """

    detection_s: float = 60.0
    restart_s: float = 300.0
    repair_s: float = 14_400.0
    spare_nodes: int = 8
    elastic: bool = False
    elastic_unit: int | None = None
    rejoin_s: float = 60.0

    def __post_init__(self) -> None:
        for key in ("detection_s", "restart_s", "repair_s", "rejoin_s"):
            require(getattr(self, key) >= 0, f"recovery.{key}", "a number >= 0", getattr(self, key))
        require_int("recovery.spare_nodes", self.spare_nodes, 0)
        if self.elastic_unit is not None:
            require_int("recovery.elastic_unit", self.elastic_unit, 1)


class NodePool:
    """The nodes of a job, those that stand by, and those in repair.

    ``spares`` below 0 counts the nodes that are missing.
    """

    def __init__(self, policy: RecoveryPolicy, topology: Topology) -> None:
        self.policy, self.topology = policy, topology
        self.spares = policy.spare_nodes
        self._back_s: list[float] = []

    @property
    def devices(self) -> int:
        """The devices that the job runs on, or would if it did not wait."""
        unit = self.policy.elastic_unit or self.topology.devices_per_node
        missing = max(-self.spares, 0) * self.topology.devices_per_node
        return max(self.topology.devices - ceil(missing / unit) * unit, 0)

    def fail(self, nodes: int, now_s: float, repair_s: float) -> float:
        """Send nodes to repair and take spares for them.

        Args:
            nodes: How many.
            now_s: Now.
            repair_s: Seconds until they are back.

        Returns:
            Seconds until the job can go on, on spares, on fewer devices, or on repaired ones.
        """
        self.spares -= nodes
        for _ in range(nodes):
            insort(self._back_s, now_s + repair_s)
        return self.wait_s(now_s)

    def wait_s(self, now_s: float) -> float:
        """Return the seconds until the job can go on with the nodes that there will be."""
        if self.spares >= 0 or (self.policy.elastic and self.devices > 0):
            return 0.0
        return max(self._back_s[-self.spares - 1] - now_s, 0.0)

    def repaired(self, nodes: int) -> None:
        """Take nodes back from repair, those that were due first."""
        self.spares += nodes
        del self._back_s[:nodes]
