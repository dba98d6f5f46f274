"""Evaluate one point of a space: its objectives, its constraints, and its row.

The evaluation is a pure function of its arguments.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from moesim.design.candidate import Workload
from moesim.design.identity import digest
from moesim.engines import ENGINES
from moesim.errors import MoesimError, UnknownNameError
from moesim.files import toml
from moesim.hardware import Cluster
from moesim.hardware.economics import PRICED, Economics, load_economics, priced
from moesim.quality import PUBLISHED, LossLaw, estimate_loss
from moesim.search.objectives import (
    BOUNDED,
    OBJECTIVES,
    Constraint,
    Direction,
    check_priced,
    violated,
)
from moesim.search.parameters import GROUPS, NOT_OF_LOSS
from moesim.search.problem import MEMORY, Evaluation
from moesim.search.space import Space
from moesim.simulation.result import FOUND_COLUMNS, PROVENANCE_COLUMNS, RESULT_COLUMNS
from moesim.simulation.run import simulate
from moesim.simulation.trust import basis_digest
from moesim.units import GIB, US
from moesim.version import VERSION

#: columns of the winners that are shown: key -> heading
_SHOWN = {
    "candidate": "candidate",
    "loss": "loss",
    "layer_tokens_per_s_per_device": "tokens/s",
    "layer_time_us": "layer us",
    "interval": "P10-P90",
    "layer_joules_per_token": "J/token",
    "layer_usd_per_million_tokens": "USD/M",
    "peak_memory_gib": "GiB",
    "watts_per_device": "W",
    "usd_per_hour": "USD/h",
    "group": "group",
}
#: columns of trials.csv, in order; a test freezes them, since people read the files with scripts.
#: The columns of a space's hardware choices follow them.
TRIAL_COLUMNS = (
    "number",
    "state",
    "parallelism",
    *FOUND_COLUMNS,
    *GROUPS,
    MEMORY,
    "broken_constraints",
    "loss",
    "loss_low",
    "loss_high",
    "loss_extrapolated",
    "loss_outside",
    "loss_law",
    *PRICED,
    "reason",
    *PROVENANCE_COLUMNS,
    "wall_s",
)


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
    known_objectives: ClassVar[Mapping[str, Direction]] = OBJECTIVES
    bounded: ClassVar[tuple[str, ...]] = BOUNDED
    shown: ClassVar[Mapping[str, str]] = _SHOWN
    confirmed: ClassVar[tuple[str, str, str]] = (
        "layer_time_us",
        "event_over_search",
        "event engine",
    )

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns of trials.csv."""
        return (*TRIAL_COLUMNS, *self.space.hardware)

    @property
    def intervals(self) -> tuple[tuple[str, str], ...]:
        """The columns (low, high) of loss and layer time."""
        return (("loss_low", "loss_high"), ("layer_time_low_us", "layer_time_high_us"))

    def cannot_depend(self, objective: str) -> frozenset[str]:
        """Return the parameters that an objective cannot depend on: where experts lie and what
        moves them, for the loss; all but the hardware, for its price.
        """
        if objective == "loss":
            return NOT_OF_LOSS | frozenset(self.space.hardware)
        if objective == "usd_per_hour":
            return frozenset(self.space.choices()) - frozenset(self.space.hardware)
        return frozenset()

    def assumptions(self) -> tuple[str, ...]:
        """Return the hardware, the model, the load, the loss law and the cost model, in words."""
        space, work = self.space, self.workload
        layers = f"{space.num_layers} layers of it" if space.num_layers else "all of its layers"
        budget = (
            f"{space.train_tokens:.3g} training tokens"
            if space.train_tokens
            else f"{space.train_flops:.3g} training FLOPs"
        )
        kv = (
            ""
            if work.kv_tokens_per_device is None
            else f", {work.kv_tokens_per_device:,} tokens of KV cache"
        )
        return (
            f"{self.cluster.num_devices} {self.cluster.profile.name} ({self.cluster.name})",
            f"attention and width of {space.dense_part}, {layers}, {budget}",
            f"{work.num_tokens_per_device:,} {work.phase} tokens per device{kv}",
            f"expert load {work.routing}",
            f"loss by {self.law.name} scaling laws" if "loss" in self.objectives else "",
            self.economics.assumptions(self.cluster),
            *space.notes(),
        )

    def check(self, screen: int) -> None:
        """Refuse a space without any candidate, and objectives without a figure.

        Raises:
            ConfigError: See there.
            UnknownNameError: There is no such engine.
        """
        names = [*self.objectives, *(c.name for c in self.constraints)]
        check_priced(names, self.economics, self.cluster)
        if self.engine not in ENGINES:
            raise UnknownNameError("engine", self.engine, ENGINES)
        self.space.check(self.cluster)

    def settings(self) -> dict[str, Any]:
        """Return what trials depend on, as tables."""
        return {
            "space": self.space.model_dump(),
            "workload": self.workload.to_dict(),
            "columns": digest(dict.fromkeys(TRIAL_COLUMNS), 12),
            "engine": self.engine,
            "law": self.law.digest,
        }

    def confirm(self, params: dict[str, Any]) -> dict[str, Any]:
        """Return the row of a point by the event engine, chunk by chunk."""
        candidate, cluster = self.space.decode(params, self.cluster)
        return simulate(candidate, cluster, self.workload, engine="event_compiled").row()

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
            compression=candidate.compression,
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
        violations = {MEMORY: result.memory_over_bytes / GIB} | violated(self.constraints, row)
        return Evaluation(row=row, violations=violations, bound_us=result.bound_s / US)

    def doubt(self, params: dict[str, Any]) -> str:
        """Return why an engine may not run the design at a point; "" where nothing is known."""
        return self.space.decode(params, self.cluster)[0].cut_block

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
