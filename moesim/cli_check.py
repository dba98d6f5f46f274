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
    from moesim.measured.check import check_candidate, print_check, winner_verdicts, write_check
    from moesim.measured.sources import VERDICTS, installed_sources
    from moesim.measured.winners import read_winners
    from moesim.report.terminal import say

    known = installed_sources()
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
        rows += [("winner", row) for w in chosen
                 for row in check_candidate(known[name], w.candidate, w.cluster, w.workload)]
    print_check(rows)
    verdicts = winner_verdicts(row for _, row in rows)
    for candidate, verdict in verdicts.items():
        print(f"{verdict}: {candidate}")
    found_verdicts = list(verdicts.values())
    print("verdicts: " + ", ".join(f"{found_verdicts.count(verdict)} {verdict}" for verdict in VERDICTS))
    if out is not None:
        write_check(out, rows)
        say(f"wrote {out}")
