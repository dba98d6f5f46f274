"""Evaluate one point of a space: its objectives, its constraints, and its row.

The evaluation is a pure function of its arguments.
"""

import math
from dataclasses import dataclass, field
from typing import Any

from moesim.design.candidate import Workload
from moesim.errors import MoesimError
from moesim.files import toml
from moesim.hardware import Cluster
from moesim.hardware.economics import Economics, load_economics, priced
from moesim.quality import PUBLISHED, LossLaw, estimate_loss
from moesim.search.objectives import Constraint
from moesim.search.space import Space
from moesim.simulation.result import RESULT_COLUMNS
from moesim.simulation.run import simulate
from moesim.simulation.trust import basis_digest
from moesim.units import GIB, US
from moesim.version import VERSION

#: name of the constraint that every study has
MEMORY = "memory_over_gib"


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """The result of one trial.

    Attributes:
        row: Flat row for trials.csv: the columns of the simulation and of the loss; without a
            candidate, only where the row came from.
        violations: Constraint -> amount by which it is violated, <= 0 where it holds: GiB over the
            device's memory, and for the others a share of the bound.
        reason: Why the point is no candidate, or why its evaluation failed; empty where there is a
            result.
        bound_us: The bound engine's layer time, with which a screening is compared; None without a
            result.
        failed: Whether the evaluation itself broke (a defect or a lost worker), which is not a
            finding.
    """

    row: dict[str, Any]
    violations: dict[str, float] = field(default_factory=dict)
    reason: str = ""
    failed: bool = False
    bound_us: float | None = None

    def values(self, objectives: list[str]) -> list[float]:
        """Return the values of the objectives, in order."""
        return [float(self.row[name]) for name in objectives]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Problem:
    """Everything besides a point that its evaluation depends on.

    Attributes:
        space: The choices of the search.
        cluster: The hardware.
        workload: Tokens and routing.
        objectives: Names of the objectives.
        constraints: Constraints in addition to memory.
        economics: The cost and power model.
        engine: Engine that the search simulates with.
        law: The loss law of the space.
    """

    space: Space
    cluster: Cluster
    workload: Workload
    objectives: list[str]
    constraints: tuple[Constraint, ...] = ()
    economics: Economics = field(default_factory=load_economics)
    engine: str = "flow"
    law: LossLaw = PUBLISHED

    @toml.same_files()
    def evaluate(self, params: dict[str, Any]) -> Evaluation:
        """Simulate a point, and estimate its loss, its power and its price.

        A point whose choices contradict each other gets a reason instead of a result: that is a
        finding, not an error.
        """
        cluster, workload = self.cluster, self.workload
        try:
            candidate, cluster = self.space.decode(params, cluster)
            result = simulate(candidate, cluster, workload, engine=self.engine, must_fit=False)
        except MoesimError as error:
            return Evaluation(row=self.blank_row(cluster), reason=str(error))
        loss = estimate_loss(
            candidate.layer,
            self.space.dense(),
            train_tokens=self.space.train_tokens,
            train_flops=self.space.train_flops,
            law=self.law,
        )
        assert result.memory_over_bytes is not None, "candidates of a space have a dense part"
        row: dict[str, Any] = (
            result.row()
            | loss.row()
            | priced(
                self.economics,
                cluster,
                result.layer_time_s,
                workload.num_tokens_per_device * cluster.num_devices,
                result.mean_utilisation,
            )
        )
        violations = {MEMORY: result.memory_over_bytes / GIB}
        for constraint in self.constraints:
            value = row[constraint.name]
            violations[str(constraint)] = float(
                constraint.violation(math.nan if value is None else float(value))
            )
        return Evaluation(row=row, violations=violations, bound_us=result.bound_s / US)

    def blank_row(self, cluster: Cluster) -> dict[str, Any]:
        """Return the row of a point without a result, which only says where it came from."""
        return dict.fromkeys(RESULT_COLUMNS) | {
            "cluster": cluster.name,
            "evidence": "simulated",
            "calibration": "none",
            "engine": self.engine,
            "seed": self.workload.seed,
            "version": VERSION,
            "profile_hash": basis_digest(cluster),
        }
