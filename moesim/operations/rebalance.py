"""Re-balancing: what a new placement gains in each pass, what it costs to move there, and when that
has paid back.

Weights move over the cluster's network as one exchange (`moesim.lowering.alltoall`), all MoE layers
of the model together, while nothing else runs: the cost is an upper bound for engines that hide it
behind inference.

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
    """One move from a placement to another.

    Attributes:
        before_s: Layer time with the old placement.
        after_s: Layer time with the new one, on the same tokens.
        moved_bytes: Weights that cross to another rank, of all layers.
        migration_s: How long they take.
        num_layers: MoE layers of the model.
    """

    before_s: float
    after_s: float
    moved_bytes: float
    migration_s: float
    num_layers: int

    @property
    def payback_passes(self) -> float:
        """Forward passes of the whole model until the gain has made up for the move; infinite
        without a gain.
        """
        gain_s = (self.before_s - self.after_s) * self.num_layers
        return (
            self.migration_s / gain_s
            if gain_s > 0
            else (0.0 if self.migration_s == 0 else math.inf)
        )

    def row(self) -> dict[str, float]:
        """Flat row."""
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
    """Time for weights to move between ranks; each of a rank's devices moves its share.

    Args:
        cluster: W x tp devices.
        bytes_WW: ndarray of shape (W, W): `migration_bytes`.
        tp: Devices of a rank.
        engine: As `moesim.simulate`.
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
        cluster: Where it runs.
        workload: Tokens on which both placements are scored.
        old: Slots before.
        new: Slots after; by default `renewed`.
        num_layers: MoE layers whose weights move; by default those of the dense part, or 1.
        engine: As `moesim.simulate`.

    Raises:
        ConfigError: A placement of other ranks or experts.
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
    """What the candidate's strategy plans on a workload, with ranks exchanged so that most experts
    stay.

    Ranks keep their names where devices differ, and where the strategy looks at which rank tokens
    come from.
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
    """A workload that drifts, with plans that are renewed: each on the step before the one it first
    serves.

    Args:
        candidate: The design; its strategy plans.
        cluster: Where it runs.
        workload: Its routing without a step, such as ``zipf:0.9+drift:0.02``.
        steps: Steps to simulate, ascending; the first is only planned on.
        every: Steps between new plans; 0 keeps the first plan.
        passes_per_step: Forward passes of the whole model in a step, which share the cost of a
            move.
        num_layers: MoE layers of the model, as `rebalance`.
        engine: As `moesim.simulate`.

    Returns:
        A row for each step from the second: layer time with the plan in force, with the first plan,
        and with one that knew the step; bytes moved and time of the move; layer time with the
        move's share added.

    Raises:
        ConfigError: A routing with a step, or fewer than two steps.
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
