"""Run a study with a progress bar, and write CSV files at its end."""

import time
import warnings
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.distributions import CategoricalDistribution
from optuna.trial import create_trial

from moesim.report.tables import write_csv
from moesim.report.terminal import say, trial_progress
from moesim.search.objectives import DIRECTIONS, costs_of
from moesim.search.pareto import front, hypervolume
from moesim.search.points import num_designs
from moesim.search.screen import fidelity
from moesim.search.study import Study, run_study
from moesim.search.trial import Trial

STATES = ("fits", "over_memory", "over_constraint", "infeasible", "failed")
#: number of trials between two updates of the front
_LOOK = 25
#: seconds between two updates of the progress bar
_SHOW_S = 0.5


class Front:
    """Track the front so far, and how much it dominates of the box that the first feasible trials
    span.

    The hypervolume is in units of that box: 0 at its worst corner, 1 where one trial has the best
    value of every objective in it, and above 1 once trials are better than the first ones in all
    objectives.
    """

    def __init__(self, objectives: list[str]) -> None:
        self.objectives = objectives
        self._costs = np.empty((0, len(objectives)))
        self._box: tuple[np.ndarray, np.ndarray] | None = None
        # of the present front
        self._hypervolume: float | None = None

    def add(self, trials: list[Trial]) -> None:
        """Add trials to the front."""
        new = [costs_of(self.objectives, t.evaluation.row) for t in trials if t.feasible]
        costs = np.vstack([self._costs, np.array(new).reshape(len(new), len(self.objectives))])
        if self._box is None and len(costs) > 1:
            self._box = costs.max(axis=0), np.maximum(np.ptp(costs, axis=0), 1e-12)
        found = np.unique(costs[front(costs)], axis=0) if len(costs) else costs
        if not np.array_equal(found, self._costs):
            self._costs, self._hypervolume = found, None

    @property
    def size(self) -> int:
        """The number of trials on the front; equal trials count once."""
        return len(self._costs)

    def hypervolume(self) -> float:
        """Return the share of the box that is dominated."""
        if self._box is None:
            return 0.0
        if self._hypervolume is None:
            worst, span = self._box
            self._hypervolume = hypervolume((self._costs - worst) / span + 1.0, np.ones(len(span)))
        return self._hypervolume


def watched_study(*args: Any, num_trials: int, objectives: list[str], **options: Any) -> Study:
    """Call `run_study` with a progress bar on stderr.

    The bar shows the trials and their rate, the time left, the front, and the best of each
    objective.
    """
    best: dict[str, float] = {}
    so_far = Front(objectives)
    waiting: list[Trial] = []
    optuna.logging.set_verbosity(optuna.logging.WARNING)  # the progress bar says more
    with ExitStack() as shown:
        # the bar begins with the first trial, so that an earlier refusal is a single line
        bar: list[Callable[[int, list[str]], None]] = []
        unseen, due_s = 0, 0.0

        def show() -> None:
            nonlocal unseen, due_s
            found = [f"front {so_far.size}, hypervolume {so_far.hypervolume():.3f}"]
            found += [f"best {name} {value:,.4g}" for name, value in best.items()]
            bar[0](unseen, found)
            unseen, due_s = 0, time.monotonic() + _SHOW_S

        def take(trial: Trial) -> None:
            nonlocal unseen
            if not bar:
                bar.append(shown.enter_context(trial_progress(num_trials)))
            if trial.feasible:
                for name, value in zip(
                    objectives, trial.evaluation.values(objectives), strict=True
                ):
                    better = min if DIRECTIONS[name] == "minimize" else max
                    best[name] = better(best.get(name, value), value)
            unseen += 1
            waiting.append(trial)
            if len(waiting) == _LOOK:
                so_far.add(waiting)
                waiting.clear()
            if time.monotonic() >= due_s:
                show()

        study = run_study(
            *args, num_trials=num_trials, objectives=objectives, on_trial=take, **options
        )
        so_far.add(waiting)
        if unseen:
            show()
        return study


def counts_of(trials: list[Trial]) -> dict[str, int]:
    """Return the number of trials in each state."""
    return {state: sum(t.state == state for t in trials) for state in STATES}


def write_study(study: Study, folder: Path) -> None:
    """Write trials.csv (every trial, by number), pareto.csv (the front in groups that cannot be
    told apart) and importance.csv (what each parameter decides), and say what was found.
    """
    columns = study.problem.columns
    write_csv(folder / "trials.csv", [t.row(columns) for t in study.trials], columns)
    pareto = study.pareto_trials()
    rows = [
        {"rank": i, "group": group, "num_ties": study.num_ties(t, pareto), **t.row(columns)}
        for i, (t, group) in enumerate(zip(pareto, study.groups(pareto), strict=True))
    ]
    write_csv(folder / "pareto.csv", rows, ("rank", "group", "num_ties", *columns))
    write_csv(
        folder / "importance.csv",
        importances(study),
        ("objective", "parameter", "importance", "why_not"),
    )
    counts = counts_of(study.trials)
    found = (
        f"{len(study.trials)} trials: {counts['fits']} fit, {counts['over_memory']} over memory, "
        f"{counts['over_constraint']} over a constraint, {counts['infeasible']} not a candidate"
    )
    if counts["failed"]:
        first = next(t for t in study.trials if t.state == "failed")
        found += f", {counts['failed']} FAILED (trial {first.number}: {first.evaluation.reason})"
    total = num_designs(study.space)
    if len(study.trials) >= total:
        found += f"; all {total:,} designs of the space were tried"
    groups = len({row["group"] for row in rows})
    say(
        f"{found}; {len(pareto)} on the Pareto front in {groups} groups that intervals tell apart "
        f"-> {folder}/trials.csv, pareto.csv, importance.csv"
    )


def say_fidelity(study: Study) -> None:
    """Say how far the screening's bound was off the trials that were simulated."""
    found = fidelity(study.trials)
    if found:
        say(
            f"screening: over {found['trials']} trials the bound was {found['ratio_median']:.3f} "
            f"of the simulated layer time (P10 {found['ratio_p10']:.3f}, P90 "
            f"{found['ratio_p90']:.3f}), rank correlation {found['spearman']:.4f}"
        )


def confirmed_rows(study: Study, limit: int) -> list[dict[str, Any]]:
    """Return winners by a finer engine, next to the search's result: layers by the event engine,
    chunk by chunk, and whole models by a request loop.
    """
    winners = study.pareto_trials()
    groups = study.groups(winners)
    column, ratio, _ = study.problem.confirmed
    rows = []
    for rank, trial in enumerate(study.winners(limit)):
        row = study.problem.confirm(trial.params)
        searched = trial.evaluation.row
        rows.append(
            {
                "rank": rank,
                "group": groups[winners.index(trial)],
                **searched,
                **row,
                f"searched_{column}": searched[column],
                ratio: row[column] / searched[column],
            }
        )
    return rows


class _Shared(CategoricalDistribution):
    """Choices that all trials share as one object, which Optuna need not copy and compare choice by
    choice.
    """

    def __eq__(self, other: object) -> bool:
        return self is other

    def __hash__(self) -> int:
        return id(self)

    def __deepcopy__(self, memo: dict) -> "_Shared":
        return self


def importances(study: Study) -> list[dict[str, Any]]:
    """Return the share of each objective's best tenth that every parameter explains.

    The method is PED-ANOVA (Watanabe et al. 2023). Parameters that apply to some points only are
    left out. There are no rows with fewer than 20 feasible trials. Where an objective cannot depend
    on a parameter the importance is None, and ``why_not`` says so.
    """
    kept = [t for t in study.trials if t.feasible]
    if len(kept) < 20:
        return []
    memory = optuna.create_study(directions=[DIRECTIONS[name] for name in study.objectives])
    choices = {n: _Shared(c) for n, c in study.space.choices().items()}
    # without their rows, which storages copy
    memory.add_trials(
        create_trial(
            params=t.params,
            distributions={name: choices[name] for name in t.params},
            values=t.evaluation.values(study.objectives),
        )
        for t in kept
    )
    rows = []
    evaluator = optuna.importance.PedAnovaImportanceEvaluator()
    for place, objective in enumerate(study.objectives):
        if len({t.evaluation.row[objective] for t in kept}) < 2:
            continue
        apart = study.problem.cannot_depend(objective)
        sign = 1.0 if DIRECTIONS[objective] == "minimize" else -1.0

        def cost(trial: optuna.trial.FrozenTrial, place: int = place, sign: float = sign) -> float:
            return sign * trial.values[place]

        with warnings.catch_warnings():
            # the warning says that less must be better, which `cost` ensures
            warnings.filterwarnings("ignore", "PedAnovaImportanceEvaluator computes", UserWarning)
            found = optuna.importance.get_param_importances(
                memory, evaluator=evaluator, target=cost
            )
        counted = {name: value for name, value in found.items() if name not in apart}
        total = sum(counted.values()) or 1.0
        rows += [
            {"objective": objective, "parameter": name, "importance": value / total}
            for name, value in counted.items()
        ]
        rows += [
            {
                "objective": objective,
                "parameter": name,
                "importance": None,
                "why_not": f"{objective} cannot depend on it",
            }
            for name in choices
            if name in apart and len(study.space.choices()[name]) > 1
        ]
    return rows
