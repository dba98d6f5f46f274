"""Check a closed loop: many candidates against one source, with their scores, a verdict in
sentences, and a page.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from moesim.design.candidate import Candidate, Workload
from moesim.errors import ConfigError
from moesim.hardware import Cluster
from moesim.measured.check import check_candidate, source_scores, winner_verdicts, write_check
from moesim.measured.recalibrate import Recalibration, recalibrate
from moesim.measured.sources import CheckRow, MeasurementSource
from moesim.measured.verdict import sentences
from moesim.measured.winners import Case
from moesim.report.plots.fidelity import write_html
from moesim.report.plots.loop import loop_page
from moesim.report.tables import write_csv
from moesim.report.terminal import print_table, tell

_COLUMNS = (
    *("source", "quantity", "rows", "median", "mape", "p90", "bias"),
    *("kendall_tau", "regret"),
)
#: columns of the summary on the terminal, which are few enough for 80 characters
_SHORT = {"part": "part"} | {
    name: name for name in ("rows", "median", "mape", "p90", "bias", "kendall_tau", "regret")
}
_PARTS = ("layer", "gate")
#: characters of a library's name on the terminal
_NAME = 10


def check_each(
    source: MeasurementSource,
    candidates: Sequence[tuple[str, Candidate]],
    cluster: Cluster,
    workload: Workload,
    say: Callable[[str], None],
    *,
    until: float | None = None,
) -> list[tuple[str, CheckRow]]:
    """Check candidates against one source, one after another.

    Args:
        source: The source that measures them.
        candidates: Pairs of role and candidate.
        cluster: The hardware they were simulated on.
        workload: The tokens and their routing.
        say: Function that is told which candidate is being checked, and how many are not.
        until: `time.monotonic` after which no further candidate is begun; None for no limit.

    Returns:
        Pairs of role and row; a candidate that the source refuses has a row that says why.
    """
    rows: list[tuple[str, CheckRow]] = []
    for number, (role, candidate) in enumerate(candidates, 1):
        left = "" if until is None else f", {max(until - time.monotonic(), 0.0):.0f} s left"
        if until is not None and time.monotonic() > until:
            say(f"time is over: {len(candidates) - number + 1} of {len(candidates)} are not run")
            break
        say(f"{role} {number} of {len(candidates)}{left}: {candidate.label}")
        rows += [(role, row) for row in check_candidate(source, candidate, cluster, workload)]
    return rows


def recalibrated(
    rows: Sequence[tuple[str, CheckRow]],
    candidates: Sequence[Candidate],
    cluster: Cluster,
    workload: Workload,
) -> Recalibration | None:
    """Return what factors fitted to half of the candidates do for the other half, or None if too
    few were measured.

    Args:
        rows: Rows of `check_each`.
        candidates: The candidates they are of.
        cluster: The measured hardware they were simulated on.
        workload: The tokens and their routing.
    """
    cases = {
        candidate.key: Case(candidate=candidate, cluster=cluster, workload=workload)
        for candidate in candidates
    }
    try:
        return recalibrate([(cases[row.design], row) for _, row in rows])
    except ConfigError:
        return None


def report_checks(
    rows: Sequence[tuple[str, CheckRow]],
    out: Path,
    where: str,
    *,
    beside: Sequence[Mapping[str, Any]] = (),
    notes: Sequence[str] = (),
    recalibration: Recalibration | None = None,
) -> None:
    """Write check.csv, summary.csv, peers.csv and simulated_against_measured.html, and print what
    they say; the verdict comes last.

    Args:
        rows: Rows of `check_each`.
        out: The output folder.
        where: Name of the machine that ran the candidates, such as ``this GPU``.
        beside: Times of the expert phase by library: ``candidate``, ``library``, ``measured_us``,
            and ``ratio``, moesim's time over the library's.
        notes: A line for each library that could not be timed.
        recalibration: What `recalibrated` returns.

    Raises:
        ConfigError: A file cannot be written.
    """
    every = [row for _, row in rows]
    write_check(out / "check.csv", rows)
    _print_candidates(rows, where)
    summary = source_scores(every)
    if summary:
        write_csv(out / "summary.csv", summary, _COLUMNS)
        short = [{"part": s["quantity"].removesuffix("_time_us"), **s} for s in summary]
        print_table("Error of simulated times, %", short, _SHORT)
    if beside:
        write_csv(out / "peers.csv", list(beside))
        _print_beside(beside)
    for note in notes:
        tell(f"not timed beside moesim: {note}")
    told = sentences(rows, where, beside=beside, recalibration=recalibration)
    write_html(out / "simulated_against_measured.html", loop_page(_parts(every), told, beside))
    for line in told:
        tell(line)


def _parts(rows: Sequence[CheckRow]) -> dict[str, list[dict[str, Any]]]:
    """Return the points of the page by part of a layer."""
    parts: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        if row.is_time and row.measured is not None:
            parts.setdefault(row.quantity.removesuffix("_time_us"), []).append(
                {"candidate": row.candidate, "simulated": row.simulated, "measured": row.measured}
            )
    return parts


def _print_candidates(rows: Sequence[tuple[str, CheckRow]], where: str) -> None:
    """Print a line per candidate: its layer, the errors of layer and gate, and the verdict."""
    every = [row for _, row in rows]
    marked = {role for role, _ in rows} != {"winner"}
    verdicts = winner_verdicts(every)
    lines: dict[str, dict[str, Any]] = {}
    for role, row in rows:
        mark = "* " if role == "winner" and marked else ""
        line = lines.setdefault(
            row.candidate,
            {
                "candidate": mark + row.candidate,
                "verdict": verdicts[row.candidate].replace("_", " "),
            },
        )
        part = row.quantity.removesuffix("_time_us")
        if row.error_percent is not None and part in _PARTS:
            line[part] = f"{row.error_percent:+.0f}"
            if part == "layer":
                line |= {
                    "simulated": round(row.simulated or 0),
                    "measured": round(row.measured or 0),
                }
    print_table(
        f"Layers on {where}, us, and errors of the simulation, %"
        + (" (* = winner)" if marked else ""),
        list(lines.values()),
        {
            "candidate": "candidate",
            "simulated": "simul.",
            "measured": "meas.",
            "layer": "layer",
            "gate": "gate",
            "verdict": "verdict",
        },
    )
    for told in dict.fromkeys(f"{r.source}: {r.detail}" for r in every if r.status != "checked"):
        tell(told)


def _print_beside(beside: Sequence[Mapping[str, Any]]) -> None:
    """Print a line per design: moesim's time, and how much longer it is than each library's."""
    labels = list(dict.fromkeys(str(row["candidate"]) for row in beside))
    lines: dict[str, dict[str, Any]] = {label: {"candidate": label} for label in labels}
    libraries = []
    for row in beside:
        line = lines[str(row["candidate"])]
        if row["library"] == "moesim":
            line["us"] = round(row["measured_us"])
        else:
            libraries.append(str(row["library"]))
            line[str(row["library"])] = f"{row['ratio']:.2f}"
    columns = {"candidate": "candidate", "us": "us"}
    for name in libraries:
        short_name = name.rpartition("._")[2]
        shortened = len(short_name) > _NAME
        columns[name] = f"{short_name[: _NAME - 1]}." if shortened else short_name
    print_table("Expert phase: moesim's time over that of others", list(lines.values()), columns)
