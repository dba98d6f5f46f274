"""Write and print what a study found: its tables, and winners by a finer engine."""

from itertools import takewhile
from pathlib import Path
from typing import Any

from moesim.report.tables import write_csv
from moesim.report.terminal import print_table, say
from moesim.search.evaluate import Problem
from moesim.search.session.watch import confirmed_rows, say_fidelity, write_study
from moesim.search.study import Study


def show_findings(study: Study, folder: Path, *, limit: int, title: str) -> list[dict[str, Any]]:
    """Write trials.csv, pareto.csv, importance.csv and winners.csv, and say what they hold.

    Args:
        study: A finished study.
        folder: The output folder.
        limit: Number of winners to confirm with a finer engine; 0 writes no winners.csv.
        title: Title of the table.

    Returns:
        Rows of winners.csv.
    """
    write_study(study, folder)
    rows = confirmed_rows(study, limit) if limit else []
    if limit:
        write_csv(folder / "winners.csv", rows)
    chosen = study.chosen()
    shown = [_shown(row) for row in rows]
    if chosen is not None:
        mine = chosen.evaluation.row["design"]
        name = next(iter(study.problem.shown))
        shown = [row | {name: f"* {row[name]}"} if row["design"] == mine else row for row in shown]
    _, _, finer = study.problem.confirmed
    rates = ", tokens/s of a device" if isinstance(study.problem, Problem) else ""
    if rows:
        print_table(
            f"{title}: Pareto winners by the {finer}{rates} (* = the answer)",
            shown,
            _columns(study),
        )
    say_fidelity(study)
    if rows:
        ratio = study.problem.confirmed[1]
        off = [row[ratio] for row in rows]
        say(f"{finer} over the search's: {min(off):.4f} to {max(off):.4f} on {len(off)} winners")
    return rows


def _columns(study: Study) -> dict[str, str]:
    """Return the columns of winners: the design, the objectives, and then what else is shown."""
    problem = study.problem
    first = list(takewhile(lambda key: key not in problem.known_objectives, problem.shown))
    order = dict.fromkeys([*first, *study.objectives, *problem.shown])
    return {key: problem.shown[key] for key in order if key in problem.shown} | {"chosen": "chosen"}


def _shown(row: dict[str, Any]) -> dict[str, Any]:
    """Return a winner's row as it is printed."""
    if "layer_time_us" not in row:
        return {"candidate": row["design"]} | row
    interval = f"{row['layer_time_low_us']:,.0f}-{row['layer_time_high_us']:,.0f}"
    return row | {"interval": interval}


def against_trial(study: Study, number: int, name: str) -> str:
    """Say in one sentence which found design is as good in loss as a given one, and faster.

    Args:
        study: A finished study with objectives ``loss`` and ``layer_tokens_per_s_per_device``.
        number: Number of the trial of the design to compare with.
        name: Name of that design in the sentence, such as ``published design``.
    """
    mine = study.trials[number]
    row = mine.evaluation.row
    if not mine.feasible:
        return f"the {name} breaks a constraint: {mine.row()['broken_constraints'] or mine.state}"
    rate = "layer_tokens_per_s_per_device"
    rows = [t.evaluation.row for t in study.pareto_trials() if t is not mine]
    better = [r for r in rows if r["loss"] <= row["loss"] and r[rate] > row[rate]]
    text = (
        f"{name}: loss {row['loss']:.4f}, {row[rate]:,.0f} tokens/s/device, "
        f"{row['layer_time_low_us']:,.0f}-{row['layer_time_high_us']:,.0f} us"
    )
    if not better:
        return f"{text}; nothing found is as good in loss and faster"
    best = max(better, key=lambda r: r[rate])
    tied = best["layer_time_high_us"] >= row["layer_time_low_us"]
    return (
        f"{text}; as good in loss and faster{', but within the intervals' if tied else ''}: "
        f"{best['candidate']}, loss {best['loss']:.4f}"
        f"{' (extrapolated)' if best['loss_extrapolated'] else ''}, "
        f"x {row['layer_time_us'] / best['layer_time_us']:.2f}"
    )
