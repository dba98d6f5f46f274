"""Say what a check of winners comes to: which of them to build, how sure that is, what is next."""

from collections.abc import Sequence

from moesim.measured.check import csv_row, silicon_summary, source_scores
from moesim.measured.check_text import winner_rows
from moesim.measured.sources import CONFIRMED_WITHIN, WIDE, CheckRow
from moesim.report.answer import Answer
from moesim.report.verdicts import winners_measured


def check_answer(rows: Sequence[tuple[str, CheckRow]]) -> Answer:
    """Return what a check found.

    Args:
        rows: Pairs of role and row, as `moesim.measured.check.check_all` returns them.
    """
    every = [row for _, row in rows]
    counted = winners_measured(csv_row(row, role) for role, row in rows)
    table = winner_rows(rows)
    total = len(counted.verdicts)
    holding = [row for row in table if row["verdict"] == "confirmed"]
    refuted = [row for row in table if row["verdict"] == "refuted"]
    if holding:
        first = holding[0]
        times = (
            f" ({first['simulated']:,} us simulated, {first['measured']:,} us measured)"
            if first["measured"] is not None
            else ""
        )
        which = f"the {len(holding)} of {total} winners that a measurement confirms"
        build = f"Choose among {which}, such as {first['candidate']}{times}."
        if len(holding) == 1:
            build = f"{first['candidate']}{times}: a measurement confirms it, of {total} winners."
    elif refuted and len(refuted) == counted.measured:
        build = (
            f"None of these yet: every winner that was measured is refuted, such as "
            f"{refuted[0]['candidate']} ({refuted[0]['error'] or 'wrong numbers'} %)."
        )
    else:
        build = f"No winner in preference to others: none of {total} is confirmed by a measurement."
    return Answer(
        build=build,
        confidence=f"{counted.sentence()} {_errors(every)}",
        next_step=_next(every, refuted, counted.measured < total),
        assumptions=(
            f"confirmed means within {CONFIRMED_WITHIN:.0f} %, or inside an interval narrower than "
            f"a factor of {WIDE:g}",
        ),
    )


def _errors(rows: Sequence[CheckRow]) -> str:
    """Say how far off simulated times were on what was measured."""
    apart = silicon_summary([row for row in rows if not row.in_fit_set])
    if apart["rows"]:
        return (
            f"On {apart['rows']} measured kernels that were never fitted the simulator is "
            f"{float(apart['median']):.1f} % off in the median."
        )
    scores = source_scores(rows)
    if not scores:
        return "No source measured a time, so the intervals rest on the model alone."
    score = max(scores, key=lambda one: one["rows"])
    return (
        f"Simulated {score['quantity'].removesuffix('_time_us').replace('_', ' ')} times are "
        f"{score['median']:.1f} % off in the median by {score['source']}."
    )


def _next(rows: Sequence[CheckRow], refuted: Sequence[object], unmeasured: bool) -> str:
    missing = [row for row in rows if row.status == "unavailable"]
    if refuted:
        return (
            f"Find out why {len(refuted)} winner{'s are' if len(refuted) > 1 else ' is'} refuted: "
            "--details shows the phases, --recalibrate fits the profile to half of them."
        )
    if missing and unmeasured:
        return (
            f"Run the same check where {missing[0].source} can measure ({missing[0].detail} here)."
        )
    if unmeasured:
        return "Measure the winners that no source here has: --details says why of each."
    return "Measure the winner end to end in a serving engine: a layer is not a model."


__all__ = ["check_answer"]
