"""Evaluate a point of a space of whole models: the steady state of its servers, and its row.

The evaluation is a pure function of its arguments. Designs that differ only in clients, drafts and
chunks share the times of their steps.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, ClassVar

from moesim.design.identity import digest
from moesim.errors import ConfigError, MoesimError
from moesim.hardware import Cluster
from moesim.hardware.economics import Economics, load_economics
from moesim.search.forms import FORMS
from moesim.search.objectives import WHOLE_OBJECTIVES, Constraint, Direction, check_priced, violated
from moesim.search.problem import MEMORY, Evaluation
from moesim.search.serving_space import ServingSpace
from moesim.search.serving_workload import ServingWorkload
from moesim.serving.estimate import estimate_model, estimate_split, quick_table
from moesim.serving.result import WHOLE_COLUMNS, WholeResult
from moesim.serving.split import copies_of_ratio
from moesim.serving.whole import serve_model, serve_split
from moesim.simulation.steps.times import StepGrid, StepTable
from moesim.simulation.trust import basis_digest
from moesim.units import GIB
from moesim.version import VERSION

#: objective -> column of `moesim.serving.result.WholeResult.row`
_COLUMN_OF = {
    "tokens_per_s_per_device": "output_tokens_per_s_per_device",
    "tokens_per_s_per_user": "output_tokens_per_s_per_user",
    "ttft_ms": "ttft_mean_ms",
    "tpot_ms": "tpot_mean_ms",
}
#: objective -> columns of its interval
_INTERVALS = {
    "ttft_ms": ("ttft_low_ms", "ttft_high_ms"),
    "tpot_ms": ("tpot_low_ms", "tpot_high_ms"),
}
#: requests of each client where a request loop confirms a winner
_REQUESTS_PER_CLIENT = 4
#: the steps that it runs
_CONFIRMED = StepGrid(per_octave=2, joined=True)
_SHOWN = {
    "layout": "layout",
    "serving_engine": "engine",
    "concurrency": "clients",
    "tokens_per_s_per_device": "tok/s/dev",
    "tokens_per_s_per_user": "tok/s/user",
    "ttft_ms": "TTFT ms",
    "tpot_ms": "TPOT ms",
    "usd_per_million_tokens": "USD/M",
    "placement": "placement",
    "num_micro_batches": "micro-batches",
    "pools": "pools",
    "prefill_layout": "prompts by",
    "group": "group",
}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ServingProblem:
    """Everything besides a point that its evaluation depends on.

    Attributes:
        space: The choices of the search.
        cluster: The hardware.
        workload: The requests.
        objectives: Names of the objectives.
        constraints: Constraints in addition to memory.
        economics: The cost and power model.
    """

    space: ServingSpace
    cluster: Cluster
    workload: ServingWorkload
    objectives: list[str]
    constraints: tuple[Constraint, ...] = ()
    economics: Economics = field(default_factory=load_economics)
    known_objectives: ClassVar[Mapping[str, Direction]] = WHOLE_OBJECTIVES
    bounded: ClassVar[tuple[str, ...]] = (
        "ttft_high_ms",
        "tpot_high_ms",
        "peak_kv_fraction",
        "devices",
    )
    shown: ClassVar[Mapping[str, str]] = _SHOWN
    confirmed: ClassVar[tuple[str, str, str]] = ("tpot_mean_ms", "loop_over_search", "request loop")

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns of trials.csv."""
        names = ("number", "state", *WHOLE_OBJECTIVES, *self.space.choices(), *WHOLE_COLUMNS)
        ends = ("design", MEMORY, "broken_constraints", "reason", "wall_s")
        return tuple(dict.fromkeys((*names, *ends)))

    @property
    def intervals(self) -> tuple[tuple[str, str], ...]:
        """The columns (low, high) of the objectives."""
        return tuple(_interval(name) for name in self.objectives)

    def cannot_depend(self, objective: str) -> frozenset[str]:
        """Return the parameters that an objective cannot depend on: all but the stored form of
        experts, for the loss that compression costs.
        """
        if objective != "compression_loss_delta":
            return frozenset()
        moving = {"resident_fraction", "prefetch_recall"}
        return frozenset(self.space.choices()) - (set(FORMS) - moving) - {"precision"}

    def assumptions(self) -> tuple[str, ...]:
        """Return the hardware, the model, the requests and the cost model, in words."""
        return (
            f"{self.cluster.num_devices} {self.cluster.profile.name} ({self.cluster.name})",
            f"{self.space.loaded.name}, prompts of {self.workload.isl} tokens, answers of "
            f"{self.workload.osl}, clients that never pause",
            f"expert load {self.workload.routing}",
            self.economics.assumptions(self.cluster),
            *self.space.notes(),
        )

    def check(self, screen: int) -> None:
        """Refuse objectives without a figure, and a screening.

        Raises:
            ConfigError: See there.
        """
        names = [*self.objectives, *(c.name for c in self.constraints)]
        check_priced(names, self.economics, self.cluster)
        if screen:
            raise ConfigError(
                f"study: expected screen 0, since whole models are estimated by the bound engine "
                f"anyway, got {screen}"
            )

    def settings(self) -> dict[str, Any]:
        """Return what trials depend on, as tables."""
        return {
            "space": self.space.model_dump(),
            "workload": self.workload.to_dict(),
            "columns": digest(dict.fromkeys(self.columns), 12),
            "engine": "bound",
        }

    def evaluate(self, params: dict[str, Any]) -> Evaluation:
        """Estimate the steady state of a point.

        A point whose choices contradict each other, or whose weights do not fit, gets a reason
        instead of a result: that is a finding, not an error.
        """
        try:
            found = self.estimate(params)
        except MoesimError as error:
            return Evaluation(row=self.blank_row(self.cluster), reason=str(error))
        row = self._row(params, found.row(self.economics))
        left_bytes = min(pool.memory.left_bytes for pool in found.pools)
        over = {MEMORY: -left_bytes / GIB}
        return Evaluation(row=row, violations=over | violated(self.constraints, row))

    def estimate(self, params: dict[str, Any]) -> WholeResult:
        """Return the steady state of a point.

        Raises:
            MoesimError: Its choices contradict each other, or its weights do not fit.
        """
        point = self.space.completed(params)
        tables = [_table(self, design) for design in self.space.designs(point)]
        traffic, decode = self.workload.traffic(point["concurrency"]), tables[-1]
        knobs, load = self.space.knobs(point), self.workload.load()
        if len(tables) == 1:
            return estimate_model(
                decode.served, self.cluster, traffic, knobs=knobs, load=load, table=decode
            )
        prefill = tables[0]
        copies = copies_of_ratio(point["pools"], prefill.served, decode.served, self.cluster)
        return estimate_split(
            prefill.served,
            decode.served,
            self.cluster,
            traffic,
            prefill_copies=copies,
            knobs=knobs,
            load=load,
            tables=(prefill, decode),
        )

    def doubt(self, params: dict[str, Any]) -> str:
        """Return why an engine may not run the design at a point; "" where nothing is known."""
        point = self.space.decode(params)
        prefill = point.prefill.cut_block if point.prefill is not None else ""
        return point.served.cut_block or prefill

    def blank_row(self, cluster: Cluster) -> dict[str, Any]:
        """Return the row of a point without a result, which only says where it came from."""
        return dict.fromkeys((*WHOLE_COLUMNS, *WHOLE_OBJECTIVES)) | {
            "model": self.space.loaded.name,
            "cluster": cluster.name,
            "evidence": "simulated",
            "seed": self.workload.seed,
            "version": VERSION,
            "profile_hash": basis_digest(cluster),
        }

    def confirm(self, params: dict[str, Any]) -> dict[str, Any]:
        """Return the row of a point by a request loop over steps of the flow engine."""
        point, clients = self.space.decode(params), params["concurrency"]
        traffic = self.workload.traffic(clients, _REQUESTS_PER_CLIENT * clients)
        load = self.workload.load()
        decode = StepTable(point.served, self.cluster, load=load, grid=_CONFIRMED)
        if point.prefill is None:
            found = serve_model(
                point.served, self.cluster, traffic, knobs=point.knobs, load=load, table=decode
            )
        else:
            found = serve_split(
                point.prefill,
                point.served,
                self.cluster,
                traffic,
                prefill_copies=copies_of_ratio(
                    point.pools, point.prefill, point.served, self.cluster
                ),
                knobs=point.knobs,
                load=load,
                tables=(
                    StepTable(point.prefill, self.cluster, load=load, grid=_CONFIRMED),
                    decode,
                ),
            )
        return self._row(params, found.row(self.economics))

    def _row(self, params: dict[str, Any], row: dict[str, Any]) -> dict[str, Any]:
        named = {name: row[column] for name, column in _COLUMN_OF.items()}
        return row | named | {"design": digest(self.space.applicable(params), 12)}


def _interval(objective: str) -> tuple[str, str]:
    column = _COLUMN_OF.get(objective, objective)
    return _INTERVALS.get(objective, (f"{column}_low", f"{column}_high"))


@lru_cache(maxsize=4096)
def _table(problem: ServingProblem, design: tuple[Any, ...]) -> StepTable:
    """Return the times of a design's steps, which its clients, drafts and chunks share."""
    *others, kv_format = design  # the last of DESIGN
    usual = (*others, problem.space.kv_format[0])
    if design != usual:
        return _table(problem, usual).with_cache(kv_format)
    return quick_table(problem.space.served(design), problem.cluster, problem.workload.load())
