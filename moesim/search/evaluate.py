"""One point of a space: its objectives, its constraint, and its row. A pure function of its arguments."""

from dataclasses import dataclass
from typing import Any, Literal

from moesim.candidate import Workload
from moesim.errors import ConfigError, MoesimError, UnknownNameError
from moesim.quality import estimate_loss
from moesim.result import RESULT_COLUMNS
from moesim.search.space import Space
from moesim.simulate import memory_of, simulate
from moesim.topology import Cluster
from moesim.trust import basis_digest
from moesim.units import GIB
from moesim.version import VERSION

#: objective -> direction
OBJECTIVES: dict[str, Literal["minimize", "maximize"]] = {
    "loss": "minimize",
    "layer_tokens_per_s_per_device": "maximize",
    "layer_time_us": "minimize",
    "peak_memory_gib": "minimize",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """What a trial found.

    Attributes:
        row: Flat row for trials.csv: the simulation's and the loss's columns; without a candidate, where it came from.
        memory_over_gib: GiB over (> 0) or under (<= 0) the device's memory: the constraint.
        reason: Why there is no such candidate; empty where there is.
    """

    row: dict[str, Any]
    memory_over_gib: float
    reason: str

    def values(self, objectives: list[str]) -> list[float]:
        """Values of the objectives, in order."""
        return [float(self.row[name]) for name in objectives]


def check_objectives(objectives: list[str]) -> None:
    """Refuse unknown objectives.

    Raises:
        ConfigError: None at all.
        UnknownNameError: With the near matches.
    """
    if not objectives:
        raise ConfigError(f"study: expected at least one objective of {', '.join(OBJECTIVES)}, got none")
    for name in objectives:
        if name not in OBJECTIVES:
            raise UnknownNameError("objective", name, OBJECTIVES)


def evaluate(
    space: Space, cluster: Cluster, workload: Workload, params: dict[str, Any], engine: str = "flow"
) -> Evaluation:
    """Simulate a point and estimate its loss.

    A point whose choices do not go together has a reason instead of a row: that is a finding, not an error.
    """
    try:
        candidate = space.decode(params)
        result = simulate(candidate, cluster, workload, engine=engine, must_fit=False)
    except MoesimError as error:
        row = dict.fromkeys(RESULT_COLUMNS) | {
            "cluster": cluster.name,
            "evidence": "simulated",
            "calibration": "none",
            "engine": engine,
            "seed": workload.seed,
            "version": VERSION,
            "profile_hash": basis_digest(cluster),
        }
        return Evaluation(row=row, memory_over_gib=0.0, reason=str(error))
    loss = estimate_loss(candidate.layer, space.dense(), train_tokens=space.train_tokens, train_flops=space.train_flops)
    memory = memory_of(candidate, cluster, workload)
    assert memory is not None
    over = (memory[0].total_bytes - cluster.profile.usable_bytes) / GIB
    row = result.row() | loss.row()
    return Evaluation(row=row, memory_over_gib=over, reason="")
