"""Multi-objective studies: deterministic, parallel, and able to continue.

Trials come in synchronous batches of one NSGA-II generation. The sampler of batch b is seeded by (seed, b) and all
points of a batch are asked before any is told, so that what is asked depends on finished batches only: not on the
number of workers, nor on when a run was stopped. To continue, the recorded trials are told again to the same asks;
an ask that differs from the record means that the folder is another study's, and is refused.
"""

import hashlib
import json
import multiprocessing
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial

from moesim.candidate import Candidate, Workload
from moesim.engines import ENGINES
from moesim.errors import ConfigError, UnknownNameError
from moesim.precision import require_int
from moesim.result import RESULT_COLUMNS
from moesim.search.evaluate import OBJECTIVES, Evaluation, check_objectives, evaluate
from moesim.search.pareto import front, spread
from moesim.search.space import Space
from moesim.search.storage import Direction, open_journal
from moesim.topology import Cluster
from moesim.trust import calibration_digests
from moesim.version import VERSION

BATCH = 50
#: columns of trials.csv, in order: frozen by a test, since people read the files with scripts
TRIAL_COLUMNS = (
    "number",
    "state",
    "parallelism",
    *RESULT_COLUMNS[:-6],
    "memory_over_gib",
    "loss",
    "loss_low",
    "loss_high",
    "loss_extrapolated",
    "loss_outside",
    "reason",
    *RESULT_COLUMNS[-6:],
    "wall_s",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """One finished trial.

    Attributes:
        number: From 0, in the order asked.
        params: Its point.
        evaluation: What it found.
        wall_s: Seconds its evaluation took.
    """

    number: int
    params: dict[str, Any]
    evaluation: Evaluation
    wall_s: float

    @property
    def feasible(self) -> bool:
        """Whether it is a candidate, and fits in memory."""
        return not self.evaluation.reason and self.evaluation.memory_over_gib <= 0

    def row(self) -> dict[str, Any]:
        """Flat row for trials.csv; wall-clock columns begin with ``wall_``."""
        found = self.evaluation
        state = "infeasible" if found.reason else "fits" if self.feasible else "over_memory"
        # the point as it was asked, also where there is no candidate; what it became (ep, tp) stands beside it
        row = dict.fromkeys(TRIAL_COLUMNS) | found.row | self.params
        return row | {
            "number": self.number,
            "state": state,
            "reason": found.reason,
            "wall_s": self.wall_s,
            "memory_over_gib": None if found.reason else found.memory_over_gib,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Study:
    """A finished (or interrupted) study.

    Attributes:
        space: What was searched.
        objectives: Names, in order.
        trials: All finished trials, ordered by number.
    """

    space: Space
    objectives: list[str]
    trials: list[Trial]

    def pareto_trials(self) -> list[Trial]:
        """Feasible trials that no other dominates, each candidate once, best first objective first."""
        distinct: dict[str, Trial] = {}
        for trial in self.trials:
            if trial.feasible:
                distinct.setdefault(str(trial.evaluation.row["candidate"]), trial)
        trials = list(distinct.values())
        values = np.array([self._costs(t) for t in trials]).reshape(len(trials), len(self.objectives))
        return sorted((trials[i] for i in front(values)), key=lambda t: (self._costs(t), t.number))

    def pareto(self, limit: int | None = None) -> list[Candidate]:
        """Candidates of the Pareto front; with a limit, spread evenly along it, both ends included."""
        trials = self.pareto_trials()
        return [self.space.decode(t.params) for t in (spread(trials, limit) if limit else trials)]

    def num_ties(self, trial: Trial, among: list[Trial]) -> int:
        """Others whose loss interval and layer-time interval both overlap this one's: not told apart."""

        def overlap(other: Trial, low: str, high: str) -> bool:
            a, b = trial.evaluation.row, other.evaluation.row
            return a[low] <= b[high] and b[low] <= a[high]

        return sum(
            other is not trial
            and overlap(other, "loss_low", "loss_high")
            and overlap(other, "layer_time_low_us", "layer_time_high_us")
            for other in among
        )

    def _costs(self, trial: Trial) -> list[float]:
        signs = [1.0 if OBJECTIVES[name] == "minimize" else -1.0 for name in self.objectives]
        return [sign * value for sign, value in zip(signs, trial.evaluation.values(self.objectives), strict=True)]


def run_study(
    space: Space,
    cluster: Cluster,
    workload: Workload,
    *,
    objectives: list[str],
    num_trials: int,
    seed: int = 0,
    storage: str | Path,
    enqueue: list[dict[str, Any]] | None = None,
    engine: str = "flow",
    num_workers: int = 1,
    fresh: bool = False,
    on_trial: Callable[[Trial], None] | None = None,
) -> Study:
    """Run a study, or continue it up to ``num_trials``.

    Args:
        space: What may vary.
        cluster: Hardware.
        workload: Tokens and routing.
        objectives: Names from `moesim.search.evaluate.OBJECTIVES`; memory is always a constraint.
        num_trials: Trials in all, those of earlier runs in the same folder included.
        seed: Same seed and number of trials, same trials.
        storage: Output folder; holds ``study.journal``.
        enqueue: Points to try first.
        engine: Engine of the search.
        num_workers: Processes that evaluate.
        fresh: Discard what the folder holds.
        on_trial: Called for every trial in order, recorded ones included.

    Raises:
        ConfigError: Bad objectives or numbers, a folder that cannot be written or holds another study.
    """
    objectives, enqueue = list(objectives), list(enqueue or [])
    check_objectives(objectives)
    require_int("study.seed", seed, 0)
    if engine not in ENGINES:
        raise UnknownNameError("engine", engine, ENGINES)
    for point in enqueue:
        space.check_point(point)
    if num_trials < 1 or num_workers < 1:
        raise ConfigError(f"study: expected trials and workers >= 1, got {num_trials} and {num_workers}")
    fingerprint = {
        "space": _digest(space.model_dump()),
        "cluster": cluster.digest,
        "workload": str(workload),
        "seed": seed,
        "objectives": objectives,
        "engine": engine,
        "enqueued": _digest(enqueue),
        "calibration": calibration_digests(cluster),
        "version": VERSION,
    }
    directions = [OBJECTIVES[name] for name in objectives]
    trials: list[Trial] = []
    with open_journal(Path(storage), directions, fingerprint, fresh=fresh) as journal:
        recorded = [_from_record(t) for t in journal.get_trials(deepcopy=False)]
        with _evaluator(partial(_timed, space, cluster, workload, engine), num_workers) as evaluate_all:
            for batch in _batches(space, directions, enqueue, seed):
                points = batch.points[: num_trials - len(trials)]
                known = recorded[len(trials) : len(trials) + len(points)]
                if any(t.params != p for t, p in zip(known, points, strict=False)):
                    raise ConfigError(f"{storage}: trial {len(trials)} and on are of another study: use --fresh")
                found = iter(evaluate_all(points[len(known) :]))
                for place, point in enumerate(points):
                    if place < len(known):
                        trial = known[place]
                    else:
                        evaluation, wall_s = next(found)
                        trial = Trial(number=len(trials), params=point, evaluation=evaluation, wall_s=wall_s)
                        journal.add_trial(_to_record(trial, space, objectives))
                    batch.tell(place, trial.evaluation, objectives)
                    trials.append(trial)
                    if on_trial:
                        on_trial(trial)
                if len(trials) >= num_trials:
                    break
    return Study(space=space, objectives=objectives, trials=trials)


@dataclass(slots=True)
class _Batch:
    study: optuna.Study
    asked: list[optuna.Trial]

    @property
    def points(self) -> list[dict[str, Any]]:
        return [dict(t.params) for t in self.asked]

    def tell(self, place: int, evaluation: Evaluation, objectives: list[str]) -> None:
        trial = self.asked[place]
        if evaluation.reason:
            self.study.tell(trial, state=TrialState.FAIL)
            return
        trial.set_constraint("memory_over_gib", evaluation.memory_over_gib)
        self.study.tell(trial, evaluation.values(objectives))


def _batches(space: Space, directions: list[Direction], enqueue: list[dict[str, Any]], seed: int) -> Iterator[_Batch]:
    """Endless batches of asked trials, from a study in memory that is told each batch before the next is asked."""
    study = optuna.create_study(directions=directions)
    for point in enqueue:
        study.enqueue_trial(point)
    number = 0
    while True:
        sampler_seed = int(np.random.SeedSequence([seed, number]).generate_state(1)[0])
        study.sampler = optuna.samplers.NSGAIISampler(population_size=BATCH, seed=sampler_seed)
        size = max(BATCH, len(enqueue)) if number == 0 else BATCH
        asked = []
        for _ in range(size):
            trial = study.ask()
            for name, choices in space.choices().items():
                trial.suggest_categorical(name, choices)
            asked.append(trial)
        yield _Batch(study, asked)
        number += 1


def _timed(
    space: Space, cluster: Cluster, workload: Workload, engine: str, params: dict[str, Any]
) -> tuple[Evaluation, float]:
    begun = time.perf_counter()
    evaluation = evaluate(space, cluster, workload, params, engine)
    return evaluation, time.perf_counter() - begun


@contextmanager
def _evaluator(one: Callable, num_workers: int) -> Iterator[Callable]:
    """A lazy, ordered map over points: in this process, or over worker processes."""
    if num_workers == 1:
        yield partial(map, one)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(num_workers, mp_context=context) as pool:
        yield partial(pool.map, one, chunksize=4)


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:12]


def _to_record(trial: Trial, space: Space, objectives: list[str]) -> FrozenTrial:
    found = trial.evaluation
    distributions: dict[str, BaseDistribution] = {
        name: CategoricalDistribution(tuple(choices)) for name, choices in space.choices().items()
    }
    attrs = {"row": found.row, "memory_over_gib": found.memory_over_gib, "reason": found.reason, "wall_s": trial.wall_s}
    if found.reason:
        return create_trial(state=TrialState.FAIL, params=trial.params, distributions=distributions, user_attrs=attrs)
    return create_trial(
        params=trial.params,
        distributions=distributions,
        values=found.values(objectives),
        user_attrs=attrs,
        constraints={"memory_over_gib": found.memory_over_gib},
    )


def _from_record(record: FrozenTrial) -> Trial:
    attrs = record.user_attrs
    evaluation = Evaluation(row=attrs["row"], memory_over_gib=attrs["memory_over_gib"], reason=attrs["reason"])
    return Trial(number=record.number, params=dict(record.params), evaluation=evaluation, wall_s=attrs["wall_s"])
