"""``moesim check``: compare the winners of a study with measurements."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from moesim.errors import ConfigError, UnknownNameError

if TYPE_CHECKING:
    from moesim.measured.sources import CheckRow
    from moesim.measured.winners import Case


def check(
    winners: Annotated[
        Path, typer.Argument(help="CSV of simulated candidates: a study's winners.csv.")
    ],
    sources: Annotated[
        str, typer.Option(help="auto: every source that is here; or names, comma-separated.")
    ] = "auto",
    out: Annotated[Path | None, typer.Option(help="Write every comparison as CSV.")] = None,
    limit: Annotated[int, typer.Option(help="Check the first so many rows; 0: all.", min=0)] = 0,
    recalibrate: Annotated[
        bool,
        typer.Option(
            "--recalibrate",
            help="Fit the measured profile to half of the candidates, score the rest.",
        ),
    ] = False,
    profile_out: Annotated[
        Path | None,
        typer.Option(help="With --recalibrate: write the profile here, if it is better."),
    ] = None,
    even_if_worse: Annotated[
        bool, typer.Option("--even-if-worse", help="Write it in any case.")
    ] = False,
) -> None:
    """Check winners against every source of measurements: errors, ranking and verdicts."""
    from moesim.measured.answer import check_answer
    from moesim.measured.check import check_candidate, write_check
    from moesim.measured.check_text import print_check
    from moesim.measured.sources import installed_sources
    from moesim.measured.winners import read_winners
    from moesim.report.answer import print_answer
    from moesim.report.tables import check_writable
    from moesim.report.terminal import say

    if profile_out is not None and not recalibrate:
        raise ConfigError("--profile-out: expected --recalibrate beside it, got none")
    known = installed_sources()
    names = list(known) if sources == "auto" else [name.strip() for name in sources.split(",")]
    for name in names:
        if name not in known:
            raise UnknownNameError("source", name, known)
    found = read_winners(winners)
    found = found[:limit] if limit else found
    for path in (out, profile_out):  # measuring takes minutes
        if path is not None:
            check_writable(path, make_folder=True)
    checked: list[tuple[Case, CheckRow]] = []
    for name in names:
        reason = known[name].unavailable_because()
        say(f"check {name}: " + (f"not here ({reason})" if reason else f"{len(found)} candidates"))
        chosen = found[:1] if reason and sources == "auto" else found
        checked += [
            (w, row)
            for w in chosen
            for row in check_candidate(known[name], w.candidate, w.cluster, w.workload)
        ]
    rows = [("winner", row) for _, row in checked]
    if out is not None:
        write_check(out, rows)
        say(f"wrote {out}")
    print_check(rows)
    if recalibrate:
        _recalibrate(checked, profile_out, even_if_worse)
    print_answer(check_answer(rows))


def _recalibrate(
    checked: "list[tuple[Case, CheckRow]]", out: Path | None, even_if_worse: bool
) -> None:
    """Fit the profile to the checks, print the errors, and write it if it helps or is asked for."""
    from moesim.measured.recalibrate import recalibrate, write_recalibrated
    from moesim.report.terminal import say, tell

    found = recalibrate(checked)
    tell("recalibrated on " + "; ".join(found.fitted_on))
    tell("factors: " + ", ".join(f"{name} {factor:.3f}" for name, factor in found.factors.items()))
    for when, scores in (("before", found.before), ("after", found.after)):
        tell(
            f"error on {len(found.kept_apart)} candidates kept apart, {when}: mean "
            f"{scores['mape']:.1f} %, median {scores['median']:.1f} %, P90 {scores['p90']:.1f} %, "
            f"bias {scores['bias']:+.1f} %"
        )
    if not found.helps:
        tell(
            "the factors do not help: the profile of primitives is the better one"
            + ("" if even_if_worse else ", and is kept")
        )
    if out is not None and (found.helps or even_if_worse):
        write_recalibrated(out, checked[0][0].cluster.profile, found)
        say(f"wrote {out}")
