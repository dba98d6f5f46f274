"""Multi-objective studies: deterministic, parallel, shared between machines, and able to continue.

Trials come in batches. What batch b asks for depends on the seed and on the trials of batches up to
b - 2 only (the batch before is still being evaluated while b is made, so that workers never wait):
not on the number of workers, nor on when a run was stopped. To continue, the recorded trials are
learned again, batch by batch; a batch that differs from the record means that the storage is
another study's, and is refused.

In a storage that several processes share, each asks from all trials that are there when it begins a
batch; batches of different processes differ by their seeds.
"""

import hashlib
import json
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import optuna

from moesim.design.candidate import Candidate, Workload
from moesim.design.identity import digest
from moesim.engines import ENGINES
from moesim.errors import ConfigError, UnknownNameError, require_int
from moesim.hardware import Cluster
from moesim.hardware.economics import load_economics
from moesim.search.evaluate import Problem
from moesim.search.executors import Evaluator, Found, evaluator
from moesim.search.objectives import (
    OBJECTIVES,
    Constraint,
    check_objectives,
    check_priced,
    costs_of,
)
from moesim.search.pareto import front, spread
from moesim.search.samplers import Proposer, sampler_for
from moesim.search.screen import screened_points
from moesim.search.space import Space
from moesim.search.storage import is_url, open_study, read_study
from moesim.search.trial import TRIAL_COLUMNS, Trial, from_record, to_record
from moesim.simulation.trust import calibration_digests
from moesim.version import VERSION

__all__ = ["TRIAL_COLUMNS", "Study", "Trial", "run_study"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Study:
    """A finished (or interrupted) study.

    Attributes:
        problem: What was searched.
        trials: All finished trials, ordered by number.
    """

    problem: Problem
    trials: list[Trial]

    @property
    def space(self) -> Space:
        """What may vary."""
        return self.problem.space

    @property
    def objectives(self) -> list[str]:
        """Names, in order."""
        return self.problem.objectives

    def pareto_trials(self) -> list[Trial]:
        """Feasible trials that no other dominates, each design once, best first objective first."""
        distinct: dict[tuple, Trial] = {}
        for trial in self.trials:
            if trial.feasible:
                row = trial.evaluation.row
                distinct.setdefault((row["design"], row["cluster"]), trial)
        trials = list(distinct.values())
        values = np.array([self._costs(t) for t in trials]).reshape(
            len(trials), len(self.objectives)
        )
        return sorted((trials[i] for i in front(values)), key=lambda t: (self._costs(t), t.number))

    def pareto(self, limit: int | None = None) -> list[Candidate]:
        """Candidates of the Pareto front; with a limit, spread evenly along it, both ends included.
        """
        return [candidate for candidate, _ in self.designs(limit)]

    def designs(self, limit: int | None = None) -> list[tuple[Candidate, Cluster]]:
        """The same with the cluster each runs on: that of the study, unless its space varies the
        hardware.
        """
        trials = self.pareto_trials()
        return [
            self.space.decode(t.params, self.problem.cluster)
            for t in (spread(trials, limit) if limit else trials)
        ]

    def groups(self, trials: list[Trial]) -> list[int]:
        """Which trials cannot be told apart: a group for each, 0 the first's.

        In order, a trial joins the first group whose leader (the trial that began it) has
        overlapping intervals of loss and of layer time; otherwise it begins one.
        """
        leaders: list[Trial] = []
        found = []
        for trial in trials:
            place = next(
                (i for i, leader in enumerate(leaders) if _tied(trial, leader)), len(leaders)
            )
            if place == len(leaders):
                leaders.append(trial)
            found.append(place)
        return found

    def num_ties(self, trial: Trial, among: list[Trial]) -> int:
        """Others whose loss interval and layer-time interval both overlap this one's: not told
        apart.
        """
        return sum(other is not trial and _tied(trial, other) for other in among)

    def _costs(self, trial: Trial) -> list[float]:
        return costs_of(self.objectives, trial.evaluation.row)


def _tied(one: Trial, other: Trial) -> bool:
    """Whether intervals of loss and of layer time both overlap."""
    a, b = one.evaluation.row, other.evaluation.row
    return all(
        a[low] <= b[high] and b[low] <= a[high]
        for low, high in (("loss_low", "loss_high"), ("layer_time_low_us", "layer_time_high_us"))
    )


def run_study(
    space: Space,
    cluster: Cluster,
    workload: Workload,
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
        space: What may vary.
        cluster: Hardware.
        workload: Tokens and routing.
        objectives: Names from `moesim.search.objectives.OBJECTIVES`.
        num_trials: Trials in all, those of earlier runs in the same storage included; fewer if the
            space has no more points.
        constraints: Such as ``layer_time_us <= 500``; that the model fits in memory is always one.
        sampler: ``random``, ``tpe``, ``nsga2``, ``gp``, or ``auto``: see
            `moesim.search.samplers.sampler_for`.
        screen: Points that the bound engine looks at first (`moesim.search.screen`); the best of
            them are what is simulated. 0: none.
        seed: Same seed and number of trials, same trials.
        storage: Output folder, which then holds ``study.journal``; or the URL of a storage that
            processes share.
        enqueue: Points, or parts of points, to try first.
        engine: Engine of the search.
        economics: Cost and power model: a name or a file, see `moesim.hardware.economics`.
        num_workers: Processes that evaluate.
        executor: Where they run instead: a `concurrent.futures.Executor`, or ``dask://HOST:PORT``.
        fresh: Discard what the storage holds.
        on_trial: Called for every trial in order, recorded ones included.
        member: Of the processes that share a storage, which this is: its batches are its own.

    Raises:
        ConfigError: Bad objectives or numbers, a space without a candidate, a storage that cannot
            be written or holds another study.
        UnreachableError: A scheduler or database that does not answer.
    """
    problem = Problem(
        space=space,
        cluster=cluster,
        workload=workload,
        objectives=list(objectives),
        constraints=tuple(Constraint.parse(text) for text in constraints),
        economics=load_economics(economics),
        engine=engine,
        law=space.law(),
    )
    points = list(enqueue)
    _check(problem, points, num_trials, num_workers, seed, screen)
    settings = _settings(problem, points, seed, screen, economics)
    settings["sampler"] = _sampler(sampler, storage, fresh, num_trials, space)
    directions = [OBJECTIVES[name] for name in problem.objectives]
    with (
        evaluator(problem, executor, num_workers) as evaluates,
        open_study(storage, directions, settings, fresh=fresh) as study,
    ):
        screened = _screened(study, evaluates, problem, screen, num_trials, seed)
        proposer = Proposer(space, problem.objectives, settings["sampler"], seed, points, screened)
        found = (
            _shared(study, evaluates, proposer, num_trials, member)
            if is_url(storage)
            else _alone(study, evaluates, proposer, num_trials)
        )
        trials: list[Trial] = []
        for trial in found:
            trials.append(trial)
            if on_trial:
                on_trial(trial)
        return Study(problem=problem, trials=sorted(trials, key=lambda t: t.number))


def _check(
    problem: Problem,
    points: list[dict[str, Any]],
    num_trials: int,
    num_workers: int,
    seed: int,
    screen: int,
) -> None:
    check_objectives(problem.objectives)
    names = [*problem.objectives, *(c.name for c in problem.constraints)]
    check_priced(names, problem.economics, problem.cluster)
    require_int("study.seed", seed, 0)
    require_int("study.screen", screen, 0)
    if problem.engine not in ENGINES:
        raise UnknownNameError("engine", problem.engine, ENGINES)
    for point in points:
        problem.space.check_point(point)
    if num_trials < 1 or num_workers < 1:
        raise ConfigError(
            f"study: expected trials and workers >= 1, got {num_trials} and {num_workers}"
        )
    problem.space.check(problem.cluster)


def _settings(
    problem: Problem, points: list[dict[str, Any]], seed: int, screen: int, economics: str
) -> dict[str, Any]:
    """Everything the trials depend on, as plain tables that name what differs."""
    return {
        "space": problem.space.model_dump(),
        "cluster": {"name": problem.cluster.name, "digest": problem.cluster.digest},
        "workload": problem.workload.to_dict(),
        "columns": digest(dict.fromkeys(TRIAL_COLUMNS), 12),
        "seed": seed,
        "objectives": problem.objectives,
        "constraints": [str(c) for c in problem.constraints],
        "engine": problem.engine,
        "law": problem.law.digest,
        "screen": screen,
        "economics": {"name": economics, "digest": problem.economics.digest},
        "enqueued": digest_of(points),
        "calibration": calibration_digests(problem.cluster),
        "version": VERSION,
    }


def digest_of(points: list[dict[str, Any]]) -> str:
    """Hash of points that a study tries first; empty for none."""
    return (
        hashlib.sha256(json.dumps(points, sort_keys=True).encode()).hexdigest()[:12]
        if points
        else ""
    )


def _sampler(name: str, storage: str | Path, fresh: bool, num_trials: int, space: Space) -> str:
    """The sampler of a study: with ``auto``, the one it began with."""
    chosen = sampler_for(name, num_trials, space.size)
    there = is_url(storage) or (Path(storage) / "study.journal").is_file()
    if name != "auto" or fresh or not there:
        return chosen
    try:
        with read_study(storage) as (_, settings):
            return settings["sampler"]
    # nothing to continue; opening it to write says what is wrong, if anything is
    except ConfigError:
        return chosen


def _screened(
    study: optuna.Study,
    evaluates: Evaluator,
    problem: Problem,
    screen: int,
    num_trials: int,
    seed: int,
) -> list[dict[str, Any]]:
    """What a screening found best: made once, then kept with the study."""
    if not screen:
        return []
    known = study.user_attrs.get("screened")
    if known is None:
        known = screened_points(problem, screen, max(2 * num_trials, 1000), seed, evaluates)
        study.set_user_attr("screened", known)
    return known


def _recorded(
    study: optuna.Study,
    proposer: Proposer,
    points: list[dict[str, Any]],
    findings: Iterator[list[Found]],
    first: int = 0,
) -> Iterator[Trial]:
    """Trials of points, numbered from ``first``, once they are in the storage: a chunk at a time.
    """
    done = 0
    for chunk in findings:
        made = [
            Trial(
                number=first + done + i,
                params=points[done + i],
                evaluation=found,
                wall_s=wall_s,
                ended=when,
            )
            for i, (found, wall_s, when) in enumerate(chunk)
        ]
        study.add_trials([to_record(t, proposer.space, proposer.objectives) for t in made])
        done += len(made)
        yield from made


def _alone(
    study: optuna.Study, evaluates: Evaluator, proposer: Proposer, num_trials: int
) -> Iterator[Trial]:
    """Trials of a storage that nobody else writes to, recorded ones first; two batches are under
    way at a time.
    """
    recorded = deque(from_record(t) for t in study.get_trials(deepcopy=False))
    under_way: deque[
        tuple[list[dict[str, Any]], list[Trial], Callable[[], Iterator[list[Found]]]]
    ] = deque()
    number = asked = ended = 0
    while True:
        while len(under_way) < 2 and asked < num_trials:
            points = proposer.batch(number)[: num_trials - asked]
            if not points:
                break
            known = [recorded.popleft() for _ in range(min(len(points), len(recorded)))]
            if any(t.params != p for t, p in zip(known, points, strict=False)):
                raise ConfigError(
                    f"storage: trial {asked} and on are of another study: use --fresh"
                )
            under_way.append((points, known, evaluates.submit(points[len(known) :])))
            number, asked = number + 1, asked + len(points)
        if not under_way:
            return
        points, known, findings = under_way.popleft()
        batch = list(known)
        yield from known
        for trial in _recorded(
            study, proposer, points[len(known) :], findings(), ended + len(known)
        ):
            batch.append(trial)
            yield trial
        ended += len(batch)
        proposer.learn(batch)


def _shared(
    study: optuna.Study, evaluates: Evaluator, proposer: Proposer, num_trials: int, member: int
) -> Iterator[Trial]:
    """Trials of a storage that others write to as well: after each batch, whatever has come
    meanwhile.
    """
    seen: set[int] = set()
    number = 0
    while True:
        new = [
            from_record(t)
            for t in study.get_trials(deepcopy=False)
            if t.state.is_finished() and t.number not in seen
        ]
        seen |= {t.number for t in new}
        proposer.learn(new)
        yield from new
        if len(seen) >= num_trials:
            return
        # a number of this member's own for each batch: after a restart, the trials seen tell it
        # apart from the last
        points = proposer.batch(member * 1_000_003 + len(seen) * 101 + number)[
            : num_trials - len(seen)
        ]
        if not points:
            return
        for _ in _recorded(study, proposer, points, evaluates.submit(points)()):
            pass  # they come back with their numbers, among those of others
        number += 1
