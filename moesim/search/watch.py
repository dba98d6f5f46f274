"""A study as a person runs it: with a progress bar, and CSV files at the end."""

from pathlib import Path
from typing import Any

import optuna

from moesim.report.tables import write_csv
from moesim.report.terminal import say, trial_progress
from moesim.search.evaluate import OBJECTIVES
from moesim.search.study import TRIAL_COLUMNS, Study, Trial, run_study


def watched_study(*args: Any, num_trials: int, objectives: list[str], **options: Any) -> Study:
    """`run_study` with a progress bar on stderr: trials, trials per second, best of each objective so far."""
    best: dict[str, float] = {}
    optuna.logging.set_verbosity(optuna.logging.WARNING)  # the progress bar says more

    with trial_progress(num_trials) as advance:
        def show(trial: Trial) -> None:
            if trial.feasible:
                for name, value in zip(objectives, trial.evaluation.values(objectives), strict=True):
                    better = min if OBJECTIVES[name] == "minimize" else max
                    best[name] = better(best.get(name, value), value)
            advance("  ".join(f"best {name} {value:,.4g}" for name, value in best.items()))

        return run_study(*args, num_trials=num_trials, objectives=objectives, on_trial=show, **options)


def write_study(study: Study, folder: Path) -> None:
    """Write trials.csv (every trial, by number) and pareto.csv (the front, ties counted)."""
    write_csv(folder / "trials.csv", [t.row() for t in study.trials], TRIAL_COLUMNS)
    pareto = study.pareto_trials()
    rows = [{"rank": i, "num_ties": study.num_ties(t, pareto), **t.row()} for i, t in enumerate(pareto)]
    write_csv(folder / "pareto.csv", rows, ("rank", "num_ties", *TRIAL_COLUMNS))
    counts = {state: sum(r == state for r in (t.row()["state"] for t in study.trials))
              for state in ("fits", "over_memory", "infeasible")}
    say(f"{len(study.trials)} trials: {counts['fits']} fit, {counts['over_memory']} over memory, "
        f"{counts['infeasible']} not a candidate; {len(pareto)} on the Pareto front -> {folder}/trials.csv, pareto.csv")
