"""Recommend how to serve a whole model: layout, clients, engine, exchange, placement, schedule.

Every layout in which engines serve the model on the cluster is estimated for every engine
(`moesim.serving.estimate`) with ever more clients, until a limit breaks, requests wait for room, or
more add nothing. The best are then varied: other placements and numbers of redundant experts, two
micro-batches, an exchange by all-gather. The best design of all goes through the request loop, with
fewer clients where a limit on a percentile asks for that.

Formats stay those that the model is published in, since others change its answers.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from itertools import product
from typing import get_args

from moesim.advice.recommendation import Objective
from moesim.costs.steps.memory import DeviceMemory, memory_on
from moesim.design.schedule import Schedule
from moesim.design.served import ENGINES, ServedModel
from moesim.design.step import ExpertLoad
from moesim.errors import ConfigError, MoesimError, require
from moesim.hardware import Cluster
from moesim.hardware.economics import Economics
from moesim.serving.estimate import estimate_model, quick_table
from moesim.serving.layouts import engine_layouts, placed
from moesim.serving.limits import Limit
from moesim.serving.loop import RequestTraffic
from moesim.serving.pools import ServingKnobs
from moesim.serving.steady import SteadyResult
from moesim.serving.whole import WholeResult, front_of, serve_model
from moesim.simulation.steps.times import StepTable

#: layouts that are varied, and designs of each that are listed
_VARIED = 4
#: gain of throughput below which twice the clients add nothing
_NOTHING = 1.01
#: requests of each client in the loop that confirms
_REQUESTS_PER_CLIENT = 4
#: shares of the estimated clients that the loop tries, until every limit is kept
_FEWER = (1.0, 0.875, 0.75, 0.625, 0.5, 0.25, 0.125)
#: objective -> column of a row, and whether more is better
_COLUMNS = {
    "throughput": ("output_tokens_per_s_per_device", True),
    "cost": ("usd_per_million_tokens", False),
    "energy": ("joules_per_million_tokens", False),
}
#: limits of a question without any: what readers of a chat take for prompt and fluent (assumed)
USUAL_SLO = "ttft_mean<=5s,tpot_mean<=50ms"


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


@dataclass(frozen=True, slots=True, kw_only=True)
class ServingAdvice:
    """What is recommended.

    Attributes:
        task: What was asked.
        best: The best design, through the request loop.
        estimated: The same in its steady state.
        others: Rows of the best of every other layout that keeps the limits, best first.
        front: Rows that no other beats in tokens per second both of a device and of a user.
        num_tried: Number of estimates.
        refused: Layout -> why it is not recommended whatever the clients, of those whose weights
            fit.
    """

    task: ServingTask
    best: WholeResult
    estimated: WholeResult
    others: list[dict[str, object]]
    front: list[dict[str, object]]
    num_tried: int
    refused: dict[str, str]


def recommend_serving(task: ServingTask) -> ServingAdvice:
    """Recommend how to serve a model.

    Raises:
        CapacityError: The weights fit in no layout.
        ConfigError: No layout divides the model, or nothing keeps the limits; the text says the
            design that comes nearest.
    """
    search = _Search(task)
    for design in _fitting(task):
        search.try_design(design)
    if not search.kept:
        raise search.nothing()
    for found in search.best_of_layouts()[:_VARIED]:
        for design in _variants(found.served):
            search.try_design(design, near=found)
    ranked = search.best_of_layouts()
    best = search.confirmed(ranked[0])
    rows = [result.row(task.economics) for result in ranked[1:]]
    return ServingAdvice(
        task=task,
        best=best,
        estimated=ranked[0],
        others=rows,
        front=front_of([result.row(task.economics) for result in search.tried]),
        num_tried=len(search.tried),
        refused={
            layout: why
            for layout, why in search.refused.items()
            if layout not in {str(result.served.layout) for result in search.kept}
        },
    )


def _fitting(task: ServingTask) -> list[ServedModel]:
    """Return the design in every layout and for every engine, where its weights fit.

    Raises:
        CapacityError: They fit in none; the text says by how many GiB the best one misses.
        ConfigError: No layout divides the model.
    """
    kept: list[ServedModel] = []
    best: tuple[DeviceMemory, ServedModel] | None = None
    refused: ConfigError | None = None
    for layout, engine in product(engine_layouts(task.cluster), task.engines):
        try:
            design = placed(replace(task.served, layout=layout, engine=engine))
        except ConfigError as error:
            refused = error
            continue
        memory = memory_on(design, task.cluster.profile, step_tokens=0.0)
        if memory.left_bytes > 0:
            kept.append(design)
        elif best is None or memory.left_bytes > best[0].left_bytes:
            best = memory, design
    if not kept and best is not None:
        best[0].check(task.served.name, f"{task.cluster.name} as {best[1].layout}")
    if not kept and refused is not None:
        raise refused
    return kept


def _variants(served: ServedModel) -> Iterator[ServedModel]:
    """Yield the designs that differ from one in placement or schedule."""
    ep, moe = served.layout.ep, served.spec.moe
    if moe is None or ep == 1:
        return
    least = -moe.num_experts % ep
    for placement, replicas in (("contiguous", 0), ("eplb", least), ("eplb", least + 2 * ep)):
        if placement == "eplb" or not least:
            yield replace(served, placement=placement, num_replicas=replicas)
    if served.layout.exchanges_tokens:
        yield replace(served, schedule=Schedule(num_micro_batches=2))
        yield replace(served, schedule=Schedule(exchange="all_gather"))


class _Search:
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
        table = StepTable(found.served, task.cluster, load=task.load, steps_by="bound", joined=True)
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


__all__ = ["USUAL_SLO", "ServingAdvice", "ServingTask", "recommend_serving"]
