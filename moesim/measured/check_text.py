"""Print a check: a verdict on each winner and a line on each kind of source; the rest is detail."""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from moesim.hardware.libraries import known_library
from moesim.measured.check import csv_row, silicon_summary, source_scores
from moesim.measured.sources import CheckRow
from moesim.report.document import shown
from moesim.report.terminal import print_table, tell
from moesim.report.verdicts import SCALED_DOWN, winners_measured

Rows = Sequence[tuple[str, CheckRow]]
_WINNERS = {
    "candidate": "winner",
    "verdict": "verdict",
    "by": "by",
    "simulated": "simulated",
    "measured": "measured",
    "error": "error %",
}
_UNMEASURED = {"candidate": "winner", "verdict": "verdict"}
_COMPARED = {
    "candidate": "candidate",
    "verdict": "verdict",
    "source": "source",
    "quantity": "quantity",
    "simulated": "simulated",
    "measured": "measured",
    "error": "error %",
    "interval": "P10-P90",
    "fitted": "fitted on",
}


def print_check(rows: Rows) -> None:
    """Print a row for each winner and a summary of what measured it; with ``--details`` every
    comparison.
    """
    table = winner_rows(rows)
    known = any(row["verdict"] != "not measured" for row in table)
    print_table("Winners, simulated and measured, us", table, _WINNERS if known else _UNMEASURED)
    reasons = Counter(row["why"] for row in table if row["why"])
    if reasons:
        told = "; ".join(f"{reason} ({count})" for reason, count in reasons.most_common())
        tell(f"winners not measured, since there is {told}")
    _print_numbers([row for _, row in rows])
    every = [row for _, row in rows]
    if any(row.source == "silicon" for row in every):
        tell(_measured_kernels(every))
    others = [
        f"{row.source} {_part(row)} {row.error_percent:+.0f} %"
        for row in every
        if row.detail.startswith(SCALED_DOWN) and row.error_percent is not None
    ]
    if others:
        tell(f"scaled-down stand-ins on this machine, error of simulated times: {_joined(others)}")
    missing = {f"{row.source} ({row.detail})" for row in every if row.status == "unavailable"}
    if missing:
        tell(f"not checked here: {'; '.join(sorted(missing))}")
    _print_details(rows)


def winner_rows(rows: Rows) -> list[dict[str, Any]]:
    """Return a row for each winner with its verdict, and the comparison that decides it."""
    own: dict[str, list[CheckRow]] = {}
    for role, row in rows:
        if role == "winner":
            own.setdefault(row.design, []).append(row)
    verdicts = winners_measured(csv_row(row, role) for role, row in rows).verdicts
    # a source that checks all winners has them in their order
    of_source: dict[str, dict[str, None]] = {}
    for role, row in rows:
        if role == "winner":
            of_source.setdefault(row.source, {})[row.design] = None
    order = max(of_source.values(), key=len, default={})
    return [_winner_row(own[design], verdicts[design]) for design in dict.fromkeys([*order, *own])]


def _winner_row(rows: Sequence[CheckRow], verdict: str) -> dict[str, Any]:
    timed = [row for row in rows if not row.detail.startswith(SCALED_DOWN)]
    deciding = next((row for row in timed if row.verdict == verdict and row.is_time), None)
    deciding = deciding or next((row for row in rows if row.verdict == verdict), rows[0])
    found = {
        "candidate": _plain(rows[0].candidate),
        "verdict": verdict.replace("_", " "),
        "by": None,
        "simulated": None,
        "measured": None,
        "error": None,
        "why": None,
    }
    if verdict == "not_measured":
        return found | {"why": deciding.detail.partition(",")[0]}
    found |= {"by": f"{deciding.source} {_part(deciding)}"}
    if deciding.simulated is None or deciding.measured is None:
        return found
    return found | {
        "simulated": round(deciding.simulated),
        "measured": round(deciding.measured),
        "error": f"{deciding.error_percent:+.1f}",
    }


def _print_numbers(rows: Iterable[CheckRow]) -> None:
    """Say in a line whether kernels computed the right numbers."""
    exact = [row for row in rows if row.limit is not None and row.measured is not None]
    if not exact:
        return
    wrong = [row for row in exact if row.verdict == "refuted"]
    worst = max(exact, key=lambda row: (row.measured or 0.0) / (row.limit or 1.0))
    tell(
        f"kernels compute {'WRONG numbers' if wrong else 'the right numbers'}: "
        f"{len(exact) - len(wrong)} of {len(exact)} layers agree with torch, largest error "
        f"{worst.measured:.3g} (limit {worst.limit:g})"
    )


def _measured_kernels(rows: Sequence[CheckRow]) -> str:
    every = silicon_summary(rows)
    apart = silicon_summary([row for row in rows if not row.in_fit_set])
    if not every["rows"]:
        return "measured kernels: no row of these shapes"
    return (
        f"measured kernels: {every['rows']} rows, error median {_number(every['median'])} %, P90 "
        f"{_number(every['p90'])} %, Kendall tau {_number(every['kendall_tau'])}; {apart['rows']} "
        f"of them never fitted: median {_number(apart['median'])} %, P90 {_number(apart['p90'])} %"
    )


def _print_details(rows: Rows) -> None:
    """Print every comparison, what each source ran, and its scores."""
    if not shown().details and shown().document is None:
        return
    compared = [(role, r) for role, r in rows if r.status != "unavailable" and r.limit is None]
    print_table(
        "Every comparison, us (* = winner)",
        [_compared(role, row) for role, row in compared],
        _COMPARED,
    )
    every = [row for _, row in rows]
    told = [row for row in every if row.source != "silicon" and row.status != "unavailable"]
    for text in dict.fromkeys(f"{row.source}: {row.detail}" for row in told):
        tell(text, detail=True)
    for score in source_scores(row for row in every if row.source != "silicon"):
        tell(
            f"{score['source']}, {score['quantity']}: {score['rows']:.0f}; error median "
            f"{score['median']:.2f} %, mean {score['mape']:.2f} %; ranking: Kendall tau "
            f"{_number(score.get('kendall_tau', 'n/a'))}, regret of the simulated best "
            f"{_number(score.get('regret', 'n/a'), percent=True)}",
            detail=True,
        )
    for title, chosen in (
        ("all checked rows", every),
        ("rows never fitted", [row for row in every if not row.in_fit_set]),
    ):
        s = silicon_summary(chosen)
        tell(
            f"measured kernels, {title}: {s['rows']}; error median {_number(s['median'])} %, mean "
            f"{_number(s['mape'])} %, P90 {_number(s['p90'])} %; ranking: Kendall tau "
            f"{_number(s['kendall_tau'])}, regret of the simulated best "
            f"{_number(s['regret'], percent=True)}",
            detail=True,
        )


def _compared(role: str, row: CheckRow) -> dict[str, Any]:
    interval = None
    if row.simulated_low is not None and row.simulated_high is not None:
        interval = f"{row.simulated_low:,.0f}-{row.simulated_high:,.0f}"
    return {
        "candidate": ("* " if role == "winner" else "") + _plain(row.candidate),
        "source": row.source,
        "quantity": _part(row),
        "simulated": None if row.simulated is None else round(row.simulated),
        "interval": interval,
        "measured": row.status.replace("_", " ")
        if row.measured is None
        else f"{row.measured:,.0f}" + ("~" if row.interpolated else ""),
        "error": None if row.error_percent is None else f"{row.error_percent:+.1f}",
        "fitted": row.in_fit_set,
        "verdict": row.verdict.replace("_", " "),
    }


def _plain(label: str) -> str:
    """Return a label without its kernels, which measured architectures name and winners do not."""
    return " ".join(word for word in label.split() if not known_library(word))


def _part(row: CheckRow) -> str:
    return row.quantity.removesuffix("_time_us").replace("_", " ")


def _joined(texts: Iterable[str]) -> str:
    return ", ".join(dict.fromkeys(texts))


def _number(value: float | str, *, percent: bool = False) -> str:
    if isinstance(value, str):
        return value
    return f"{100 * value:.1f} %" if percent else f"{value:.2f}"


__all__ = ["print_check", "winner_rows"]
