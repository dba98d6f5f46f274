"""Evaluate a point of a space of training runs: the time of a step, the run it makes, its loss.

The evaluation is a pure function of its arguments. Days and price are those of the whole run
without failures; the loss is that of the laws at the run's tokens (`moesim.quality.loss`), with the
recipe of formats and the capacity factor of the plan.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

from moesim.design.identity import digest
from moesim.engines import ENGINES
from moesim.errors import ConfigError, MoesimError, UnknownNameError
from moesim.hardware import Cluster
from moesim.hardware.economics import Economics, load_economics
from moesim.quality import PUBLISHED, LossLaw, estimate_loss
from moesim.search.objectives import (
    TRAINING_OBJECTIVES,
    Constraint,
    Direction,
    check_priced,
    violated,
)
from moesim.search.problem import MEMORY, Evaluation
from moesim.search.training_space import ARCHITECTURE, TrainingSpace
from moesim.search.training_workload import TrainingWorkload
from moesim.simulation.training.result import TRAIN_COLUMNS, TrainResult
from moesim.simulation.training.simulate import simulate_training
from moesim.simulation.trust import basis_digest
from moesim.units import GIB
from moesim.version import VERSION

#: objective -> column of `moesim.simulation.training.result.TrainResult.row`
_COLUMN_OF = {"train_days": "days", "train_usd": "usd", "peak_memory_gib": "memory_gib"}
_LOSS = ("loss", "loss_low", "loss_high", "loss_extrapolated", "loss_outside", "loss_law")
_SIZES = ("total_params", "active_params", "train_days_low", "train_days_high")
_SHOWN = {
    "candidate": "design",
    "loss": "loss",
    "train_days": "days",
    "train_usd": "USD",
    "tokens_per_s_per_device": "tok/s/dev",
    "mfu": "MFU",
    "peak_memory_gib": "GiB",
    "group": "group",
}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TrainingProblem:
    """Everything besides a point that its evaluation depends on.

    Attributes:
        space: The choices of the search.
        cluster: The hardware.
        workload: The training run.
        objectives: Names of the objectives.
        constraints: Constraints in addition to memory.
        economics: The cost and power model.
        engine: Engine that runs the programs of layers.
        law: The loss law of the space.
    """

    space: TrainingSpace
    cluster: Cluster
    workload: TrainingWorkload
    objectives: list[str]
    constraints: tuple[Constraint, ...] = ()
    economics: Economics = field(default_factory=load_economics)
    engine: str = "flow"
    law: LossLaw = PUBLISHED
    known_objectives: ClassVar[Mapping[str, Direction]] = TRAINING_OBJECTIVES
    bounded: ClassVar[tuple[str, ...]] = (
        "loss_high",
        "train_days_high",
        "bubble_fraction",
        "dropped_token_fraction",
        "total_params",
        "active_params",
    )
    shown: ClassVar[Mapping[str, str]] = _SHOWN
    confirmed: ClassVar[tuple[str, str, str]] = ("step_s", "event_over_search", "event engine")

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns of trials.csv."""
        found = (*_SIZES, *_LOSS, *(n for n in TRAIN_COLUMNS if n not in _COLUMN_OF.values()))
        names = ("number", "state", *TRAINING_OBJECTIVES, *self.space.choices(), *found)
        return tuple(dict.fromkeys((*names, MEMORY, "broken_constraints", "reason", "wall_s")))

    @property
    def intervals(self) -> tuple[tuple[str, str], ...]:
        """The columns (low, high) of the objectives: all but loss and memory follow the step."""
        found = {
            "loss": ("loss_low", "loss_high"),
            "peak_memory_gib": ("peak_memory_gib", "peak_memory_gib"),
        }
        time = ("train_days_low", "train_days_high")
        return tuple(dict.fromkeys(found.get(name, time) for name in self.objectives))

    def cannot_depend(self, objective: str) -> frozenset[str]:
        """Return the parameters that an objective cannot depend on: the plan, for the loss."""
        if objective != "loss":
            return frozenset()
        of_loss = {*ARCHITECTURE, "formats", "capacity_factor"}
        return frozenset(self.space.choices()) - of_loss

    def assumptions(self) -> tuple[str, ...]:
        """Return the hardware, the run, the framework and the cost model, in words."""
        work = self.workload
        budget = (
            f"{work.train_tokens:.3g} tokens"
            if work.train_tokens
            else f"{work.train_flops:.3g} FLOPs"
        )
        return (
            f"{self.cluster.num_devices} {self.cluster.profile.name} ({self.cluster.name})",
            f"{self.space.loaded.name} trained on {budget} by {self.space.framework}, "
            f"{work.global_batch:,} sequences of {work.sequence:,} tokens a step",
            f"expert load {work.routing}, no failures",
            f"loss by {self.law.name} scaling laws" if "loss" in self.objectives else "",
            self.economics.assumptions(self.cluster),
            *self.space.notes(),
        )

    def check(self, screen: int) -> None:
        """Refuse objectives without a figure, an unknown engine, and a screening.

        Raises:
            ConfigError: See there.
            UnknownNameError: There is no such engine.
        """
        names = [*self.objectives, *(c.name for c in self.constraints)]
        check_priced(names, self.economics, self.cluster)
        if self.engine not in ENGINES:
            raise UnknownNameError("engine", self.engine, ENGINES)
        if screen:
            raise ConfigError(
                f"study: expected screen 0, since training steps share their layers and memory is "
                f"checked first anyway, got {screen}"
            )

    def settings(self) -> dict[str, Any]:
        """Return what trials depend on, as tables."""
        return {
            "space": self.space.model_dump(),
            "workload": self.workload.to_dict(),
            "columns": digest(dict.fromkeys(self.columns), 12),
            "engine": self.engine,
            "law": self.law.digest,
        }

    def evaluate(self, params: dict[str, Any]) -> Evaluation:
        """Simulate a step at a point, and estimate the loss of its run.

        A point that divides nothing, whose choices contradict each other or that does not fit gets
        a reason instead of a result: that is a finding, not an error.
        """
        try:
            result = self.simulated(params, self.engine)
        except MoesimError as error:
            return Evaluation(row=self.blank_row(self.cluster), reason=str(error))
        row = self._row(params, result)
        over = result.memory.total_bytes - self.cluster.profile.usable_bytes
        return Evaluation(
            row=row, violations={MEMORY: over / GIB} | violated(self.constraints, row)
        )

    def doubt(self, params: dict[str, Any]) -> str:
        """Return "": no layout is known that the frameworks refuse to run."""
        return ""

    def blank_row(self, cluster: Cluster) -> dict[str, Any]:
        """Return the row of a point without a result, which only says where it came from."""
        return dict.fromkeys(self.columns) | {
            "model": self.space.loaded.name,
            "cluster": cluster.name,
            "evidence": "simulated",
            "engine": self.engine,
            "seed": self.workload.seed,
            "version": VERSION,
            "profile_hash": basis_digest(cluster),
        }

    def confirm(self, params: dict[str, Any]) -> dict[str, Any]:
        """Return the row of a point whose layers the event engine ran, chunk by chunk."""
        return self._row(params, self.simulated(params, "event_compiled"))

    def simulated(self, params: dict[str, Any], engine: str) -> TrainResult:
        """Return the simulated step of a point.

        Raises:
            MoesimError: Its choices contradict each other, or it does not fit.
        """
        return simulate_training(
            self.space.decode(params, self.cluster.num_devices, self.workload),
            self.cluster,
            load=self.workload.load(),
            engine=engine,
            framework_name=self.space.framework,
        )

    def _row(self, params: dict[str, Any], result: TrainResult) -> dict[str, Any]:
        model, trained = self.space.trained_as(params), result.trained
        layer = replace(
            model.layer, precision=trained.precision, capacity_factor=trained.capacity_factor
        )
        tokens = self.workload.tokens(float(model.dense_part.active_params(layer)))
        loss = estimate_loss(layer, model.dense_part, train_tokens=tokens, law=self.law)
        row = result.row(tokens=tokens, economics=self.economics)
        named = {name: row.pop(column) for name, column in _COLUMN_OF.items()}
        days = result.days(tokens) / result.time_s
        label = self.space.architecture(params).label
        return (
            row
            | named
            | loss.row()
            | {
                "candidate": " ".join(
                    filter(None, (label, str(trained.layout), str(trained.plan)))
                ),
                "train_days_low": days * result.low_s,
                "train_days_high": days * result.high_s,
                "total_params": model.spec.total_params,
                "active_params": model.spec.active_params,
            }
        )
