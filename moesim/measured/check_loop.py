"""Check a closed loop: many candidates against one source, with their scores and a figure."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from moesim.design.candidate import Candidate, Workload
from moesim.hardware import Cluster
from moesim.measured.check import (
    check_candidate,
    print_check,
    source_scores,
    winner_verdicts,
    write_check,
)
from moesim.measured.sources import CheckRow, MeasurementSource
from moesim.report.plots.fidelity import write_html
from moesim.report.plots.loop import loop_scatter
from moesim.report.tables import write_csv
from moesim.report.terminal import print_table

_COLUMNS = (
    *("source", "quantity", "rows", "median", "mape", "p90", "bias"),
    *("kendall_tau", "regret"),
)


def check_each(
    source: MeasurementSource,
    candidates: Sequence[tuple[str, Candidate]],
    cluster: Cluster,
    workload: Workload,
    say: Callable[[str], None],
) -> list[tuple[str, CheckRow]]:
    """Check candidates against one source, one after another.

    Args:
        source: The source that measures them.
        candidates: Pairs of role and candidate.
        cluster: The hardware they were simulated on.
        workload: The tokens and their routing.
        say: Function that is told which candidate is being checked.

    Returns:
        Pairs of role and row; a candidate that the source refuses has a row that says why.
    """
    rows: list[tuple[str, CheckRow]] = []
    for number, (role, candidate) in enumerate(candidates, 1):
        say(f"{number} of {len(candidates)}: {candidate.label}")
        rows += [(role, row) for row in check_candidate(source, candidate, cluster, workload)]
    return rows


def report_checks(rows: Sequence[tuple[str, CheckRow]], out: Path, where: str) -> None:
    """Write check.csv, summary.csv and simulated_against_measured.html, and print what they say.

    Args:
        rows: Rows of `check_each`.
        out: The output folder.
        where: Name of the machine that ran the candidates, such as ``this GPU``.

    Raises:
        ConfigError: A file cannot be written.
    """
    every = [row for _, row in rows]
    write_check(out / "check.csv", rows)
    print_check(list(rows))
    summary = source_scores(every)
    if summary:
        write_csv(out / "summary.csv", summary, _COLUMNS)
        print_table(f"Simulated against measured on {where}, error in %", summary, _COLUMNS)
    timed = [row for row in every if row.is_time and row.measured is not None]
    parts: dict[str, tuple[list[dict[str, Any]], str]] = {}
    for row in timed:
        part, _ = parts.setdefault(row.quantity.removesuffix("_time_us"), ([], "simulated"))
        part.append(
            {"candidate": row.candidate, "simulated": row.simulated, "measured": row.measured}
        )
    title = f"On {where}, simulated before it ever ran"
    figure = loop_scatter(parts, title, measured="measured")
    write_html(out / "simulated_against_measured.html", figure)
    winners = (row for role, row in rows if role == "winner")
    for candidate, verdict in winner_verdicts(winners).items():
        print(f"{verdict}: {candidate}")
