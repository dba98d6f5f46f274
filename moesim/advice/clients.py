"""Try designs of a whole model with ever more clients, and keep the best within limits."""

from collections.abc import Callable, Iterator
from dataclasses import replace

from moesim.advice.serving_task import ServingTask
from moesim.design.served import ServedModel
from moesim.errors import ConfigError, MoesimError
from moesim.serving.estimate import estimate_model, estimate_split, quick_table
from moesim.serving.loop import RequestTraffic
from moesim.serving.steady_result import SteadyResult
from moesim.serving.whole import WholeResult, serve_model, serve_split
from moesim.simulation.steps.times import StepGrid, StepTable

#: gain of throughput below which twice the clients add nothing
_NOTHING = 1.01
#: requests of each client in the loop that confirms
_REQUESTS_PER_CLIENT = 4
_BREAKS = "breaks a limit whatever the clients"
#: shares of the estimated clients that the loop tries, until every limit is kept
_FEWER = (1.0, 0.875, 0.75, 0.625, 0.5, 0.25, 0.125)
#: the steps that it runs
_CONFIRMED = StepGrid(steps_by="bound", joined=True)


class Tried:
    """The designs that were tried.

    Attributes:
        tried: All estimates, limits kept or not.
        kept: For each design the best that keeps the limits.
        divided: The same of designs with a pool for prompts and one for decoding.
        refused: Layout -> why none does.
        divided_refused: Both layouts -> why none does.
    """

    def __init__(self, task: ServingTask) -> None:
        self.task = task
        self.tried: list[WholeResult] = []
        self.kept: list[WholeResult] = []
        self.divided: list[WholeResult] = []
        self.divided_refused: dict[str, str] = {}
        self.refused: dict[str, str] = {}
        self._tables: dict[ServedModel, StepTable] = {}
        self._errors: list[MoesimError] = []
        self._nearest: WholeResult | None = None

    def try_design(self, served: ServedModel, near: WholeResult | None = None) -> None:
        """Estimate a design with ever more clients, and keep the best.

        Args:
            served: The design.
            near: A similar design, whose clients are where to begin.
        """
        name = str(served.layout)
        try:
            found = self._best(self._run(served, self.table(served)), near)
        except MoesimError as error:
            self._errors.append(error)
            self.refused.setdefault(name, str(error))
            return
        if found is not None:
            self.kept.append(found)
        else:
            self.refused.setdefault(name, _BREAKS)

    def try_divided(
        self, prefill: ServedModel, decode: ServedModel, copies: int, near: WholeResult
    ) -> None:
        """Estimate a pool that computes prompts and one that decodes with ever more clients, and
        keep the best.

        Args:
            prefill: The design that computes prompts.
            decode: The design that decodes.
            copies: Number of copies that compute prompts.
            near: A design, whose clients are where to begin.
        """
        name = f"{copies} x {prefill.layout} to {decode.layout}"
        try:
            found = self._best(self._run_divided(prefill, decode, copies), near)
        except MoesimError as error:
            self.divided_refused.setdefault(name, str(error))
            return
        if found is not None:
            self.divided.append(found)
        else:
            self.divided_refused.setdefault(name, _BREAKS)

    def table(self, served: ServedModel) -> StepTable:
        """Return the times of a design's steps."""
        if served not in self._tables:
            self._tables[served] = quick_table(served, self.task.cluster, self.task.load)
        return self._tables[served]

    def worth(self, result: WholeResult) -> float:
        """Return how good a result is; more is better."""
        return self.task.worth(result.row(self.task.economics))

    def _best(
        self, run: Callable[[int], WholeResult], near: WholeResult | None
    ) -> WholeResult | None:
        kept = [result for result in self._with_clients(run, near) if self.task.keeps(result)]
        return max(kept, key=self.worth) if kept else None

    def best_of_layouts(self) -> list[WholeResult]:
        """Return the best design of every layout, best first."""
        found: dict[str, WholeResult] = {}
        for result in sorted(self.kept, key=self.worth, reverse=True):
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
        tables = [
            StepTable(pool.served, task.cluster, load=task.load, grid=_CONFIRMED)
            for pool in found.pools
        ]
        for share in (1.0,) if task.clients else _FEWER:
            asked = max(round(clients * share), 1)
            traffic = replace(
                task.traffic, concurrency=asked, num_requests=_REQUESTS_PER_CLIENT * asked
            )
            result = self._followed(found, traffic, tables)
            if task.keeps(result):
                break
        return result

    def _followed(
        self, found: WholeResult, traffic: RequestTraffic, tables: list[StepTable]
    ) -> WholeResult:
        """Return a design's result by the request loop."""
        task, served = self.task, found.served
        if len(tables) == 1:
            return serve_model(
                served,
                task.cluster,
                traffic,
                knobs=task.knobs,
                load=task.load,
                table=tables[0],
            )
        return serve_split(
            found.pools[0].served,
            served,
            task.cluster,
            traffic,
            prefill_copies=found.pools[0].copies,
            knobs=task.knobs,
            load=task.load,
            tables=(tables[0], tables[1]),
        )

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

    def _run_divided(
        self, prefill: ServedModel, decode: ServedModel, copies: int
    ) -> Callable[[int], WholeResult]:
        task, tables = self.task, (self.table(prefill), self.table(decode))

        def run(clients: int) -> WholeResult:
            result = estimate_split(
                prefill,
                decode,
                task.cluster,
                replace(task.traffic, concurrency=clients),
                prefill_copies=copies,
                knobs=task.knobs,
                load=task.load,
                tables=tables,
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


__all__ = ["Tried"]
