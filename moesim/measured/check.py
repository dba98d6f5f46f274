"""Check winners and measured architectures against every available source, and see whether the
ranking survives.

Measured rows and a GPU check every candidate. The interpreter, the CPU and its processes check
scaled-down layers, which gives the same answer for candidates that differ only in size. Among a
study's winners, each gate kind therefore goes through the interpreter once, and one winner, the
middle of the front, is timed on the CPU and exchanged between processes.
"""

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from moesim.design.candidate import Candidate, Workload
from moesim.errors import MoesimError
from moesim.hardware import Cluster
from moesim.measured.scores import error_scores, ranking
from moesim.measured.sources import CheckRow, MeasurementSource, Verdict
from moesim.report.tables import write_csv
from moesim.simulation.trust import basis_digest
from moesim.version import VERSION

CHECK_COLUMNS = (
    "candidate",
    "role",
    "source",
    "quantity",
    "status",
    "simulated",
    "simulated_low",
    "simulated_high",
    "measured",
    "measured_low",
    "measured_high",
    "error_percent",
    "verdict",
    "limit",
    "in_fit_set",
    "detail",
    "evidence",
    "calibration",
    "seed",
    "engine",
    "version",
    "profile_hash",
    "design",
    "workload",
)


def check_candidate(
    source: MeasurementSource, candidate: Candidate, cluster: Cluster, workload: Workload
) -> list[CheckRow]:
    """Check one candidate against one source.

    A source that cannot run here, or that refuses the candidate, gives a row that says why. Every
    row names an engine and a hash.

    Args:
        source: The source that measures.
        candidate: The design to check.
        cluster: The hardware it was simulated on.
        workload: The tokens and their routing.
    """
    about: dict[str, Any] = {
        "candidate": candidate.label,
        "source": source.name,
        "quantity": "none",
        "seed": workload.seed,
    }
    reason = source.unavailable_because()
    if reason is not None:
        rows = [CheckRow(status="unavailable", detail=reason, **about)]
    elif not candidate.is_plain:
        why = "no source runs experts that are compressed, or that lie in the memory of the host"
        rows = [CheckRow(status="not_measured", detail=why, **about)]
    else:
        try:
            rows = source.check(candidate, cluster, workload)
        except MoesimError as error:
            rows = [CheckRow(status="not_measured", detail=str(error), **about)]
    return [
        replace(
            row,
            engine=row.engine or source.name,
            profile_hash=row.profile_hash or basis_digest(cluster),
            design=candidate.key,
            workload=workload.label,
        )
        for row in rows
    ]


def check_all(
    winners: list[Candidate],
    measured: list[Candidate],
    cluster: Cluster,
    workload: Workload,
    sources: dict[str, MeasurementSource],
    say: Callable[[str], None],
) -> list[tuple[str, CheckRow]]:
    """Check winners and measured architectures against all sources.

    Args:
        winners: Candidates of the front, in order; at least one.
        measured: Architectures for which measured rows exist.
        cluster: The hardware they were simulated on.
        workload: The tokens and their routing.
        sources: The sources that can check them, by name.
        say: Function that is told what is being done, since some of it takes seconds.

    Returns:
        (role, row) with role ``winner`` or ``measured``.
    """
    one_of_each_gate = list({c.layer.gate.kind: c for c in reversed(winners)}.values())
    middle = [winners[len(winners) // 2]]
    plan = {"interpret": one_of_each_gate, "torch-cpu": middle, "gloo": middle}
    known = {c.key for c in winners}
    found: dict[str, Iterable[list[CheckRow]]] = {}
    others: list[list[CheckRow]] = []
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for name, source in sources.items():
            chosen = plan.get(name, winners)
            reason = source.unavailable_because()
            if reason is not None:
                say(f"check {name}: not here ({reason})")
                chosen = chosen[:1] if name != "silicon" else chosen
            else:
                say(f"check {name}: {len(chosen)} of {len(winners)} winners")
            check = partial(check_candidate, source, cluster=cluster, workload=workload)
            if name == "interpret":
                # processes that time nothing and import for seconds: they may run side by side,
                # and beside measured rows, which are only looked up
                found[name] = pool.map(check, chosen)
                continue
            if name != "silicon":  # it times something, so nothing else may run
                found = {name: list(parts) for name, parts in found.items()}
            found[name] = [check(c) for c in chosen]
            if name == "silicon":
                others = [check(c) for c in measured if c.key not in known]
        rows = [("winner", row) for parts in found.values() for part in parts for row in part]
    return rows + [("measured", row) for part in others for row in part]


def write_check(path: Path, rows: Iterable[tuple[str, CheckRow]]) -> None:
    """Write check.csv: one row per comparison, each with its kind, status, evidence and
    calibration.
    """
    write_csv(path, [csv_row(row, role) for role, row in rows], CHECK_COLUMNS)


def csv_row(check: CheckRow, role: str) -> dict[str, Any]:
    """Return the flat row of a comparison for check.csv."""
    return {name: getattr(check, name) for name in CHECK_COLUMNS if hasattr(check, name)} | {
        "role": role,
        "version": VERSION,
    }


def winner_verdicts(rows: Iterable[CheckRow]) -> dict[str, Verdict]:
    """Return one verdict for each candidate and workload, from the largest part of it that each
    source timed.

    The verdict is ``refuted`` if any source refutes it, or finds that its kernels compute something
    else; otherwise ``inconclusive`` if any source says so; ``confirmed`` if all that measured it
    confirm it; ``not_measured`` if none measured it.

    Returns:
        Label of the candidate, with that of its workload if the rows have several workloads ->
        verdict.
    """
    every = list(rows)
    several = len({row.workload for row in every}) > 1
    verdicts: dict[str, dict[str, Verdict]] = {}
    for row in every:
        name = f"{row.candidate}, {row.workload}" if several else row.candidate
        of_source = verdicts.setdefault(name, {})
        if row.is_time or row.verdict == "refuted":
            of_source.setdefault(row.source, row.verdict)
    order: tuple[Verdict, ...] = ("refuted", "inconclusive", "confirmed")
    return {
        name: next((verdict for verdict in order if verdict in of_source.values()), "not_measured")
        for name, of_source in verdicts.items()
    }


def source_scores(rows: Iterable[CheckRow]) -> list[dict[str, Any]]:
    """Return the errors of each source's quantities in percent, and whether the ranking survived if
    there are at least four rows.

    Returns:
        Rows with source, quantity, rows, median, mape, p90, bias, and if known kendall_tau and
        regret.
    """
    groups: dict[tuple[str, str], list[CheckRow]] = {}
    for row in rows:
        if row.is_time and row.simulated is not None and row.measured is not None:
            groups.setdefault((row.source, row.quantity), []).append(row)
    found = []
    for (source, quantity), group in groups.items():
        simulated, measured = (
            np.array([getattr(row, name) for row in group], dtype=np.float64)
            for name in ("simulated", "measured")
        )
        found.append(
            {
                "source": source,
                "quantity": quantity,
                **error_scores(simulated, measured),
                **(ranking(simulated, measured) or {}),
            }
        )
    return found


def silicon_summary(rows: Iterable[CheckRow]) -> dict[str, float | str]:
    """Return the error over the distinct measured rows that were checked, and whether the ranking
    survived.

    Returns:
        ``rows``, ``median`` and ``p90`` of the error in percent, ``kendall_tau`` and ``regret``;
        ``n/a`` where there are too few rows (no row for errors, fewer than four for the ranking).
    """
    distinct: dict[object, CheckRow] = {}
    for row in rows:
        if row.source == "silicon" and row.status == "checked":
            distinct.setdefault(row.extra["row"], row)
    simulated = np.array([r.simulated for r in distinct.values()], dtype=np.float64)
    measured = np.array([r.measured for r in distinct.values()], dtype=np.float64)
    errors = error_scores(simulated, measured) if len(distinct) else {}
    ranks = ranking(simulated, measured) or {}
    return {
        "rows": len(distinct),
        **{k: errors.get(k, "n/a") for k in ("median", "mape", "p90", "bias")},
        **{k: ranks.get(k, "n/a") for k in ("kendall_tau", "regret")},
    }
