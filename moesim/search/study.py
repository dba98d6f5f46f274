"""Run multi-objective studies: deterministic, parallel, shared between machines, resumable.

Trials come in batches. The points of batch b depend only on the seed and on the trials of batches
up to b - 2 (batch b - 1 is still being evaluated while b is made, so that workers never wait). They
depend neither on the number of workers nor on when a run was stopped. To continue, a study learns
the recorded trials again, batch by batch; if a batch differs from the record, the storage belongs
to another study and is refused.

Where several processes share a storage, each proposes from all trials that are present when it
begins a batch; batches of different processes have different seeds.
"""

from collections.abc import Callable, Iterable
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import optuna

from moesim.design.candidate import Candidate
from moesim.errors import ConfigError, require_int, shown
from moesim.files.showing import Showable, frame
from moesim.hardware import Cluster
from moesim.limits import MOST_TRIALS, MOST_WORKERS, check_request
from moesim.report.plots.objectives import objective_points
from moesim.search.evaluate import Problem
from moesim.search.executors import Evaluator, evaluator
from moesim.search.objectives import DIRECTIONS, check_objectives, costs_of
from moesim.search.pareto import compromise, front, spread
from moesim.search.points import num_designs
from moesim.search.problem import SearchProblem, SearchSpace
from moesim.search.problems import AnySpace, AnyWorkload, problem_of
from moesim.search.rounds import trials_alone, trials_shared
from moesim.search.samplers import Proposer
from moesim.search.screen import screened_points
from moesim.search.settings import sampler_of, settings_of
from moesim.search.storage import is_url, open_study
from moesim.search.trial import TRIAL_COLUMNS, Trial

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

#: parameters that may change nothing
_PLACED = frozenset({"placement", "num_replicas", "redundant_per_rank"})
#: bytes of a trial with its row, as measured
_TRIAL_BYTES = 20e3

__all__ = ["TRIAL_COLUMNS", "Study", "Trial", "run_study"]


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Study(Showable):
    """A finished (or interrupted) study.

    Attributes:
        problem: The problem that was searched.
        trials: All finished trials, ordered by number.
    """

    problem: SearchProblem
    trials: list[Trial]

    def facts(self) -> dict[str, str]:
        """Return what people look at first, as texts."""
        fit = sum(trial.feasible for trial in self.trials)
        front = self.pareto_trials()
        groups = len(set(self.groups(front)))
        return {
            "trials": f"{len(self.trials):,}",
            "fit": f"{fit:,}",
            "front": f"{len(front):,} in {groups:,} groups that intervals tell apart",
            "objectives": ", ".join(self.objectives),
        }

    def to_frame(self) -> "pd.DataFrame":
        """Return all trials as a pandas DataFrame, with the columns of trials.csv."""
        return frame([trial.row(self.problem.columns) for trial in self.trials])

    def plot(self) -> "go.Figure":
        """Return a plotly figure of the first two objectives of the trials that fit.

        Raises:
            ConfigError: There is one objective only.
        """
        if len(self.objectives) < 2:
            raise ConfigError(f"plot: expected two objectives, got {self.objectives[0]} only")
        fit = [trial.row(self.problem.columns) for trial in self.trials if trial.feasible]
        front = [trial.row(self.problem.columns) for trial in self.pareto_trials()]
        return objective_points(fit, front, self.objectives[0], self.objectives[1])

    @property
    def layers(self) -> Problem:
        """The problem, of MoE layers.

        Raises:
            ConfigError: Whole models were searched.
        """
        if not isinstance(self.problem, Problem):
            raise ConfigError("study: expected a search over MoE layers, got one of whole models")
        return self.problem

    @property
    def space(self) -> SearchSpace:
        """The choices of the search."""
        return self.problem.space

    @property
    def objectives(self) -> list[str]:
        """The names of the objectives, in order."""
        return self.problem.objectives

    def pareto_trials(self) -> list[Trial]:
        """Return feasible trials that no other dominates, each design once, by first objective.

        Designs that differ only in a placement or in replicas that change no objective count as
        one: the first that was tried.
        """
        designs: dict[tuple, Trial] = {}
        for trial in self.trials:
            if trial.feasible:
                row = trial.evaluation.row
                designs.setdefault((row["design"], row["cluster"]), trial)
        distinct: dict[tuple, Trial] = {}
        for trial in designs.values():
            point = {k: v for k, v in trial.params.items() if k not in _PLACED}
            same = (*self._costs(trial), *sorted(point.items(), key=lambda one: one[0]))
            distinct.setdefault(same, trial)
        trials = list(distinct.values())
        values = np.array([self._costs(t) for t in trials]).reshape(
            len(trials), len(self.objectives)
        )
        return sorted((trials[i] for i in front(values)), key=lambda t: (self._costs(t), t.number))

    def chosen(self) -> Trial | None:
        """Return the trial of the front that gives up least (`moesim.search.pareto.compromise`);
        None if nothing is feasible.
        """
        found = self.pareto_trials()
        if not found:
            return None
        return found[compromise(np.array([self._costs(t) for t in found], dtype=np.float64))]

    def winners(self, limit: int | None = None) -> list[Trial]:
        """Return the front, or ``limit`` trials of it evenly spread, both ends included; the chosen
        one takes the place of its neighbor.
        """
        found = self.pareto_trials()
        if not limit or len(found) <= limit:
            return found
        shown, chosen = spread(found, limit), self.chosen()
        if chosen is None or any(t is chosen for t in shown):
            return shown
        number = {id(t): i for i, t in enumerate(found)}
        mine = number[id(chosen)]
        inner = range(1, len(shown) - 1) if len(shown) > 2 else range(len(shown))
        nearest = min(inner, key=lambda i: abs(number[id(shown[i])] - mine))
        shown[nearest] = chosen
        return shown

    def pareto(self, limit: int | None = None) -> list[Candidate]:
        """Return the candidates of `winners`."""
        return [candidate for candidate, _ in self.designs(limit)]

    def designs(self, limit: int | None = None) -> list[tuple[Candidate, Cluster]]:
        """Return the candidates of `winners` with their clusters; a space may vary the hardware."""
        layers = self.layers
        return [layers.space.decode(t.params, layers.cluster) for t in self.winners(limit)]

    def groups(self, trials: list[Trial]) -> list[int]:
        """Return a group number for each trial; trials of a group cannot be told apart.

        In order, a trial joins the first group whose leader (the trial that began it) has
        overlapping intervals of all that has intervals, such as loss and layer time; otherwise it
        begins a new group. The first trial is in group 0.
        """
        leaders: list[Trial] = []
        found = []
        for trial in trials:
            place = next(
                (i for i, leader in enumerate(leaders) if self._tied(trial, leader)), len(leaders)
            )
            if place == len(leaders):
                leaders.append(trial)
            found.append(place)
        return found

    def num_ties(self, trial: Trial, among: list[Trial]) -> int:
        """Count the other trials whose intervals all overlap this one's."""
        return sum(other is not trial and self._tied(trial, other) for other in among)

    def _tied(self, one: Trial, other: Trial) -> bool:
        a, b = one.evaluation.row, other.evaluation.row
        return all(a[low] <= b[high] and b[low] <= a[high] for low, high in self.problem.intervals)

    def _costs(self, trial: Trial) -> list[float]:
        return costs_of(self.objectives, trial.evaluation.row)


def run_study(
    space: AnySpace,
    cluster: Cluster,
    workload: AnyWorkload,
    *,
    objectives: Iterable[str],
    num_trials: int,
    constraints: Iterable[str] = (),
    sampler: str = "auto",
    screen: int = 0,
    seed: int = 0,
    storage: str | Path,
    enqueue: Iterable[dict[str, Any]] = (),
    engine: str = "flow",
    economics: str = "default",
    num_workers: int = 1,
    executor: str | Executor | None = None,
    fresh: bool = False,
    on_trial: Callable[[Trial], None] | None = None,
    member: int = 0,
) -> Study:
    """Run a study, or continue it up to ``num_trials``.

    Args:
        space: The choices of the search: of MoE layers, of whole models that are served, or of
            training runs.
        cluster: The hardware.
        workload: Tokens and routing, requests, or a training run.
        objectives: Names of objectives from `moesim.search.objectives.OBJECTIVES`, or for whole
            models from `WHOLE_OBJECTIVES`, for training runs from `TRAINING_OBJECTIVES`.
        num_trials: Total number of trials, including earlier runs in the same storage; fewer if the
            space has no more points.
        constraints: Constraints such as ``layer_time_us <= 500``, in addition to fitting in memory.
        sampler: ``every``, ``random``, ``tpe``, ``nsga2``, ``gp`` or ``auto``: see
            `moesim.search.samplers.sampler_for`.
        screen: Number of points that the bound engine looks at first (`moesim.search.screen`); the
            search simulates the best of them. 0 skips the screening.
        seed: Seed of the search: the same seed and number of trials give the same trials.
        storage: Output folder, which will hold ``study.journal``, or the URL of a shared storage.
        enqueue: Points, or parts of points, to try first.
        engine: Engine that the search simulates with; models that are served have one of their own.
        economics: Cost and power model, as a name or a file; see `moesim.hardware.economics`.
        num_workers: Number of processes that evaluate trials.
        executor: A `concurrent.futures.Executor` that evaluates them, or ``dask://HOST:PORT``.
        fresh: Whether to discard what the storage holds.
        on_trial: Function to call for every trial in order, recorded ones included.
        member: Number of this process among those that share a storage, for batches of its own.

    Raises:
        ConfigError: Objectives or numbers are invalid, the space has no candidate, or the storage
            cannot be written or holds another study.
        UnreachableError: A scheduler or database does not answer.
    """
    problem = problem_of(
        space,
        cluster,
        workload,
        objectives=objectives,
        constraints=constraints,
        economics=economics,
        engine=engine,
    )
    points = list(enqueue)
    _check(problem, points, num_trials, num_workers, seed, screen)
    settings = settings_of(problem, points, seed, screen, economics)
    settings["sampler"] = sampler_of(sampler, storage, fresh, num_trials, problem.space)
    directions = [DIRECTIONS[name] for name in problem.objectives]
    with (
        evaluator(problem, executor, num_workers) as evaluates,
        open_study(storage, directions, settings, fresh=fresh) as store,
    ):
        screened = _screened(store.study, evaluates, problem, screen, num_trials, seed)
        proposer = Proposer(
            problem.space, problem.objectives, settings["sampler"], seed, points, screened
        )
        found = (
            trials_shared(store, evaluates, proposer, num_trials, member)
            if is_url(storage)
            else trials_alone(store, evaluates, proposer, num_trials)
        )
        trials: list[Trial] = []
        for trial in found:
            trials.append(trial)
            if on_trial:
                on_trial(trial)
        return Study(problem=problem, trials=sorted(trials, key=lambda t: t.number))


def _check(
    problem: SearchProblem,
    points: list[dict[str, Any]],
    num_trials: int,
    num_workers: int,
    seed: int,
    screen: int,
) -> None:
    check_objectives(problem.objectives, problem.known_objectives)
    require_int("study.seed", seed, 0)
    require_int("study.screen", screen, 0, MOST_TRIALS)
    for point in points:
        problem.space.check_point(point)
    if not (1 <= num_trials <= MOST_TRIALS and 1 <= num_workers <= MOST_WORKERS):
        raise ConfigError(
            f"study: expected 1 to {MOST_TRIALS:,} trials and 1 to {MOST_WORKERS:,} workers, "
            f"got {shown(num_trials)} and {shown(num_workers)}"
        )
    trials = min(num_trials, problem.space.size)
    check_request(f"{trials:,} trials", memory_bytes=_TRIAL_BYTES * trials, advice="fewer trials")
    problem.check(screen)


def _screened(
    study: optuna.Study,
    evaluates: Evaluator,
    problem: SearchProblem,
    screen: int,
    num_trials: int,
    seed: int,
) -> list[dict[str, Any]]:
    """Return the best points of a screening, which is made once and kept with the study.

    There is nothing to choose, and no screening, where every design will be tried.
    """
    if not screen or not isinstance(problem, Problem):
        return []
    known = study.user_attrs.get("screened")
    if known is None:
        known = []
        if num_trials < num_designs(problem.space):
            known = screened_points(problem, screen, max(2 * num_trials, 1000), seed, evaluates)
        study.set_user_attr("screened", known)
    return known
