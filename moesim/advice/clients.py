"""Try designs of a whole model with ever more clients, and keep the best within limits."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import get_args

from moesim.advice.recommendation import Objective
from moesim.design.served import ENGINES, ServedModel
from moesim.design.step import ExpertLoad
from moesim.errors import ConfigError, MoesimError, require
from moesim.hardware import Cluster
from moesim.hardware.economics import Economics
from moesim.serving.estimate import estimate_model, quick_table
from moesim.serving.limits import Limit
from moesim.serving.loop import RequestTraffic
from moesim.serving.pools import ServingKnobs
from moesim.serving.steady_result import SteadyResult
from moesim.serving.whole import WholeResult, serve_model
from moesim.simulation.steps.times import StepGrid, StepTable

#: gain of throughput below which twice the clients add nothing
_NOTHING = 1.01
#: requests of each client in the loop that confirms
_REQUESTS_PER_CLIENT = 4
#: shares of the estimated clients that the loop tries, until every limit is kept
_FEWER = (1.0, 0.875, 0.75, 0.625, 0.5, 0.25, 0.125)
#: the steps that it runs
_CONFIRMED = StepGrid(steps_by="bound", joined=True)
#: objective -> column of a row, and whether more is better
_COLUMNS = {
    "throughput": ("output_tokens_per_s_per_device", True),
    "cost": ("usd_per_million_tokens", False),
    "energy": ("joules_per_million_tokens", False),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ServingTask:
    """What is asked.

    Attributes:
        served: The model with its formats, in any layout.
        cluster: The hardware.
        traffic: The requests; its number of clients counts if ``clients`` says so.
        limits: Limits on latency.
        engines: Serving engines to choose from.
        economics: Power and prices.
        objective: What is best: ``throughput`` of a device, ``cost`` or ``energy`` of a token.
        clients: Whether the number of clients is given; otherwise it is sought.
        load: How tokens choose experts.
        knobs: What is not left to the engine.

    Raises:
        ConfigError: An objective or an engine is unknown.
    """

    served: ServedModel
    cluster: Cluster
    traffic: RequestTraffic
    limits: tuple[Limit, ...]
    engines: tuple[str, ...]
    economics: Economics
    objective: Objective = "throughput"
    clients: bool = False
    load: ExpertLoad = field(default_factory=ExpertLoad)
    knobs: ServingKnobs = field(default_factory=ServingKnobs)

    def __post_init__(self) -> None:
        names = get_args(Objective)
        require(self.objective in names, "objective", " or ".join(names), self.objective)
        for engine in self.engines:
            require(engine in ENGINES, "engine", " or ".join(ENGINES), engine)

    def keeps(self, result: WholeResult) -> bool:
        """Return whether a result keeps all limits."""
        return all(limit.keeps(result) for limit in self.limits)

    def worth(self, row: dict[str, object]) -> float:
        """Return how good a row is; more is better."""
        column, more = _COLUMNS[self.objective]
        value = float(str(row[column]))
        return value if more else -value


class Tried:
    """The designs that were tried.

    Attributes:
        tried: All estimates, limits kept or not.
        kept: For each design the best that keeps the limits.
        refused: Layout -> why none does.
    """

    def __init__(self, task: ServingTask) -> None:
        self.task = task
        self.tried: list[WholeResult] = []
        self.kept: list[WholeResult] = []
        self.refused: dict[str, str] = {}
        self._errors: list[MoesimError] = []
        self._nearest: WholeResult | None = None

    def try_design(self, served: ServedModel, near: WholeResult | None = None) -> None:
        """Estimate a design with ever more clients, and keep the best.

        Args:
            served: The design.
            near: A similar design, whose clients are where to begin.
        """
        task = self.task
        try:
            table = quick_table(served, task.cluster, task.load)
            found = [
                result
                for result in self._with_clients(self._run(served, table), near)
                if task.keeps(result)
            ]
        except MoesimError as error:
            self._errors.append(error)
            self.refused.setdefault(str(served.layout), str(error))
            return
        if found:
            self.kept.append(max(found, key=self._worth))
        else:
            self.refused.setdefault(str(served.layout), "breaks a limit whatever the clients")

    def best_of_layouts(self) -> list[WholeResult]:
        """Return the best design of every layout, best first."""
        found: dict[str, WholeResult] = {}
        for result in sorted(self.kept, key=self._worth, reverse=True):
            found.setdefault(str(result.served.layout), result)
        return list(found.values())

    def nothing(self) -> MoesimError:
        """Return the error that says why nothing is recommended."""
        if self._nearest is None:
            return self._errors[0]
        row = self._nearest.row()
        limits = ",".join(f"{limit.column} <= {limit.most_ms:g}" for limit in self.task.limits)
        return ConfigError(
            f"slo: expected limits that a design keeps; the nearest, {row['layout']} by "
            f"{row['serving_engine']} with {row['concurrency']} clients, has TTFT "
            f"{row['ttft_mean_ms']:,.0f} ms and TPOT {row['tpot_mean_ms']:,.2f} ms on average, got "
            f"{limits}"
        )

    def confirmed(self, found: WholeResult) -> WholeResult:
        """Return a design through the request loop, with as many clients as keep the limits."""
        task, clients = self.task, found.traffic.concurrency or 1
        table = StepTable(found.served, task.cluster, load=task.load, grid=_CONFIRMED)
        for share in (1.0,) if task.clients else _FEWER:
            asked = max(round(clients * share), 1)
            result = serve_model(
                found.served,
                task.cluster,
                replace(task.traffic, concurrency=asked, num_requests=_REQUESTS_PER_CLIENT * asked),
                knobs=task.knobs,
                load=task.load,
                table=table,
            )
            if task.keeps(result):
                break
        return result

    def _worth(self, result: WholeResult) -> float:
        return self.task.worth(result.row(self.task.economics))

    def _run(self, served: ServedModel, table: StepTable) -> Callable[[int], WholeResult]:
        task = self.task

        def run(clients: int) -> WholeResult:
            result = estimate_model(
                served,
                task.cluster,
                replace(task.traffic, concurrency=clients),
                knobs=task.knobs,
                load=task.load,
                table=table,
            )
            self.tried.append(result)
            return result

        return run

    def _with_clients(
        self, run: Callable[[int], WholeResult], near: WholeResult | None
    ) -> Iterator[WholeResult]:
        """Yield results with ever more clients, up to the first that breaks a limit, makes requests
        wait for room or adds nothing, and then with numbers between the last two.
        """
        task = self.task
        if task.clients:
            yield self._noted(run(task.traffic.concurrency or 1))
            return
        clients = 1
        if near is not None:
            clients = max((near.traffic.concurrency or 1) // 2, 1)
        last: WholeResult | None = None
        while True:
            found = self._noted(run(clients))
            yield found
            steady = found.loop
            assert isinstance(steady, SteadyResult), "an estimate"
            ranks = found.config.replicas * found.config.dp
            if not task.keeps(found) or clients > steady.batch * ranks:
                break
            if last is not None and clients > ranks and _rate(found) < _NOTHING * _rate(last):
                return
            last, clients = found, 2 * clients
        for eighths in (5, 6, 7):
            if clients >= 16:
                yield self._noted(run(clients * eighths // 8))

    def _noted(self, result: WholeResult) -> WholeResult:
        """Remember the result that is nearest to the limits, should none keep them."""
        if self._nearest is None or self._over(result) < self._over(self._nearest):
            self._nearest = result
        return result

    def _over(self, result: WholeResult) -> float:
        row = result.loop.row()
        return sum(
            max(float(str(row[limit.mean])) / limit.most_ms - 1.0, 0.0)
            for limit in self.task.limits
            if row[limit.mean] is not None
        )


def _rate(result: WholeResult) -> float:
    return float(str(result.loop.row()["output_tokens_per_s"]))


__all__ = ["ServingTask", "Tried"]
