"""Score rebalancing: what a new placement gains in each pass, what moving to it costs, and when
that has paid back.

Weights move over the cluster's network as one exchange (`moesim.lowering.alltoall`), all MoE layers
of the model together, while nothing else runs. The cost is an upper bound for engines that hide the
move behind inference.

Shape legend: D devices, W ranks, E experts.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from moesim.design.candidate import Candidate, Workload
from moesim.engines.run import run
from moesim.errors import ConfigError
from moesim.hardware import Cluster
from moesim.lowering.alltoall import exchange_program
from moesim.placement import Placement, PlacementSpec
from moesim.placement.migration import migration_bytes, renamed
from moesim.simulation.prepare import prepare
from moesim.simulation.run import simulate
from moesim.units import GIB, US

Array = np.ndarray


@dataclass(frozen=True, slots=True, kw_only=True)
class Rebalance:
    """One move from one placement to another.

    Attributes:
        before_s: Layer time with the old placement.
        after_s: Layer time with the new one, on the same tokens.
        moved_bytes: Bytes of weights that move to another rank, of all layers.
        migration_s: Seconds that the move takes.
        num_layers: Number of MoE layers of the model.
    """

    before_s: float
    after_s: float
    moved_bytes: float
    migration_s: float
    num_layers: int

    @property
    def payback_passes(self) -> float:
        """The number of forward passes of the whole model until the gain has made up for the move;
        infinite without a gain.
        """
        gain_s = (self.before_s - self.after_s) * self.num_layers
        return (
            self.migration_s / gain_s
            if gain_s > 0
            else (0.0 if self.migration_s == 0 else math.inf)
        )

    def row(self) -> dict[str, float]:
        """Return a flat row."""
        return {
            "before_us": self.before_s / US,
            "after_us": self.after_s / US,
            "moved_gib": self.moved_bytes / GIB,
            "migration_us": self.migration_s / US,
            "payback_passes": self.payback_passes,
            "payback_s": self.payback_passes * self.after_s * self.num_layers,
            "num_layers": self.num_layers,
        }


def migration_s(cluster: Cluster, bytes_WW: Array, tp: int = 1, engine: str = "flow") -> float:
    """Return the seconds in which weights move between ranks; each device of a rank moves its
    share.

    Args:
        cluster: The cluster of W x tp devices.
        bytes_WW: ndarray of shape (W, W): bytes between ranks, see `migration_bytes`.
        tp: Number of devices of a rank.
        engine: Name of the engine that simulates the move.
    """
    if not bytes_WW.any():
        return 0.0
    return run(exchange_program(cluster, np.kron(bytes_WW / tp, np.eye(tp))), engine).makespan_s


def rebalance(
    candidate: Candidate,
    cluster: Cluster,
    workload: Workload,
    old: Placement,
    new: Placement | None = None,
    *,
    num_layers: int | None = None,
    engine: str = "flow",
) -> Rebalance:
    """Score a move on a workload.

    Args:
        candidate: The design.
        cluster: The hardware it runs on.
        workload: Tokens on which both placements are scored.
        old: Placement before the move.
        new: Placement after the move; by default `renewed` plans it.
        num_layers: Number of MoE layers whose weights move; by default that of the dense part,
            or 1.
        engine: Name of the engine that simulates the layer and the move.

    Raises:
        ConfigError: A placement has other ranks or experts.
    """
    planned = new if new is not None else renewed(candidate, cluster, workload, old)
    layers = num_layers or (
        candidate.dense_part.num_moe_layers if candidate.dense_part is not None else 1
    )
    size_E = candidate.layer.width_E() * candidate.layer.bytes_per_width * layers
    tp = candidate.parallelism.tp
    bytes_WW = migration_bytes(old, planned, size_E, max(cluster.devices_per_domain // tp, 1))
    before, after = (
        simulate(candidate, cluster, workload, engine=engine, placement=p).layer_time_s
        for p in (old, planned)
    )
    return Rebalance(
        before_s=before,
        after_s=after,
        moved_bytes=float(bytes_WW.sum()),
        num_layers=layers,
        migration_s=migration_s(cluster, bytes_WW, tp, engine),
    )


def renewed(
    candidate: Candidate, cluster: Cluster, workload: Workload, old: Placement
) -> Placement:
    """Plan a placement on a workload, with ranks renamed so that most experts stay where they are.

    Ranks keep their names where devices differ, and where the strategy depends on the rank that
    tokens come from.

    Args:
        candidate: The design; its strategy plans.
        cluster: The hardware it runs on.
        workload: Tokens on which the placement is planned.
        old: Placement before the move.
    """
    new = prepare(candidate, cluster, workload).placement
    spec = PlacementSpec.parse(candidate.placement)
    if len(cluster.groups) > 1 or spec.strategy == "domain" or spec.nearest:
        return new
    per_node = max(cluster.devices_per_domain // candidate.parallelism.tp, 1)
    return renamed(old, new, per_node if candidate.parallelism.ep % per_node == 0 else None)


def rebalanced(
    candidate: Candidate,
    cluster: Cluster,
    workload: Workload,
    steps: Sequence[int],
    *,
    every: int,
    passes_per_step: float,
    num_layers: int | None = None,
    engine: str = "flow",
) -> list[dict[str, float]]:
    """Simulate a workload that drifts, with placements that are renewed.

    Every plan is made on the step before the one it first serves.

    Args:
        candidate: The design; its strategy plans.
        cluster: The hardware it runs on.
        workload: The workload, with a routing without a step, such as ``zipf:0.9+drift:0.02``.
        steps: Steps to simulate, ascending; the first is only used for planning.
        every: Number of steps between new plans; 0 keeps the first plan.
        passes_per_step: Forward passes of the whole model in a step, which share the cost of a
            move.
        num_layers: Number of MoE layers of the model; by default that of the dense part, or 1.
        engine: Name of the engine that simulates the layer and the move.

    Returns:
        A row for each step from the second: layer time with the current plan, with the first plan,
        and with a plan that knew the step; bytes and time of the move; and layer time with the
        move's share added.

    Raises:
        ConfigError: The routing has a step, or there are fewer than two steps.
    """
    if "@" in workload.routing or len(steps) < 2:
        raise ConfigError(
            f"rebalance: expected a routing without '@STEP' and at least two steps, got "
            f"{workload.routing!r} and {len(steps)}"
        )
    works = [replace(workload, routing=f"{workload.routing}@{step}") for step in steps]
    plans = [prepare(candidate, cluster, work).placement for work in works]
    current, rows = plans[0], []
    for n in range(1, len(steps)):
        planned = current
        if every > 0 and n > 1 and (n - 1) % every == 0:
            planned = renewed(candidate, cluster, works[n - 1], current)
        move = rebalance(
            candidate, cluster, works[n], current, planned, num_layers=num_layers, engine=engine
        )
        known, first = (
            simulate(candidate, cluster, works[n], engine=engine, placement=p).layer_time_s
            for p in (plans[n], plans[0])
        )
        share_s = move.migration_s / (passes_per_step * move.num_layers)
        rows.append(
            {
                "step": steps[n],
                "layer_time_us": move.after_s / US,
                "first_plan_us": first / US,
                "known_us": known / US,
                "moved_gib": move.moved_bytes / GIB,
                "migration_us": move.migration_s / US,
                "with_migration_us": (move.after_s + share_s) / US,
            }
        )
        current = planned
    return rows
