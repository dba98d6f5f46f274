"""``moesim check``: what measurements say of winners."""

from pathlib import Path
from typing import Annotated

import typer

from moesim.errors import UnknownNameError


def check(
    winners: Annotated[Path, typer.Argument(help="CSV of simulated candidates: a study's winners.csv.")],
    sources: Annotated[str, typer.Option(help="auto: every source that is here; or names, comma-separated.")] = "auto",
    out: Annotated[Path | None, typer.Option(help="Write every comparison as CSV.")] = None,
    limit: Annotated[int, typer.Option(help="Check the first so many rows; 0: all.", min=0)] = 0,
) -> None:
    """Check winners against every source of measurements: error, ranking, and a verdict for each."""
    from moesim.measured.check import all_sources, check_candidate, print_check, silicon_summary, write_check
    from moesim.measured.sources import VERDICTS
    from moesim.measured.winners import read_winners
    from moesim.report.terminal import say

    known = all_sources()
    names = list(known) if sources == "auto" else [name.strip() for name in sources.split(",")]
    for name in names:
        if name not in known:
            raise UnknownNameError("source", name, known)
    found = read_winners(winners)
    found = found[:limit] if limit else found
    rows = []
    for name in names:
        reason = known[name].unavailable_because()
        say(f"check {name}: " + (f"not here ({reason})" if reason else f"{len(found)} candidates"))
        chosen = found[:1] if reason and sources == "auto" else found
        rows += [("winner", check_candidate(known[name], w.candidate, w.cluster, w.workload)) for w in chosen]
    print_check(rows)
    counts = {verdict: sum(row.verdict == verdict for _, row in rows) for verdict in VERDICTS}
    print("verdicts: " + ", ".join(f"{count} {name}" for name, count in counts.items()))
    if out is not None:
        write_check(out, rows)
        say(f"wrote {out}; silicon rows: {silicon_summary([row for _, row in rows])['rows']}")
