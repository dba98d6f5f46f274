"""Say which of several simulated rows is best, and which of the others may be as good."""

from collections.abc import Mapping, Sequence
from typing import Any

from moesim.report.answer import Answer, print_answer

#: relative difference that counts as a tie where rows have no intervals: the worst error of
#: transfers that are simulated per device (see `moesim.advice.ties`)
TIE = 0.06


def ranked_answer(
    rows: Sequence[Mapping[str, Any]],
    *,
    name: str,
    value: str,
    reads: str,
    maximize: bool,
    next_step: str,
    ends: tuple[str, str] | None = None,
    assumptions: tuple[str, ...] = (),
) -> Answer:
    """Return which row to choose.

    Args:
        rows: Simulated rows; those without the value do not count.
        name: How a row is named, such as ``{layout} of {engine}``.
        value: Column to compare; positive numbers.
        reads: How a value reads, such as ``{:,.0f} tokens/s``.
        maximize: Whether more is better.
        next_step: What to measure or change next, as a sentence.
        ends: Columns of the value's interval; without them, differences below 6 % are ties.
        assumptions: What was assumed.
    """
    known = [row for row in rows if row.get(value) is not None]
    if not known:
        return Answer(
            build=f"Nothing: none of {len(rows)} rows is a design that runs.",
            confidence="Refusals follow from memory and from what divides; nothing was measured.",
            next_step=next_step,
            assumptions=assumptions,
        )
    order = sorted(known, key=lambda row: float(row[value]), reverse=maximize)
    best, others = order[0], order[1:]
    ties = [row for row in others if _tied(best, row, value, ends)]
    build = f"{name.format_map(best)}: {reads.format(best[value])}"
    if others:
        second = others[0]
        build += (
            f", the best of {len(order)}; the next, {name.format_map(second)}, comes to "
            f"{reads.format(second[value])}"
        )
    how = "their intervals overlap" if ends else f"they differ by less than {TIE:.0%}"
    if not others:
        told = "It is the only one, so nothing was compared"
    elif ties:
        told = f"{len(ties)} of the {len(others)} others may be as good, since {how}"
    else:
        told = (
            f"None of the {len(others)} others is as good within "
            f"{'the intervals' if ends else f'{TIE:.0%}'}"
        )
    return Answer(
        build=f"{build}.",
        confidence=f"{told}. All of this is simulated; no measurement of this machine stands "
        "behind the ranking.",
        next_step=next_step,
        assumptions=assumptions,
    )


def _tied(
    best: Mapping[str, Any], row: Mapping[str, Any], value: str, ends: tuple[str, str] | None
) -> bool:
    if ends is None:
        one, other = abs(float(best[value])), abs(float(row[value]))
        return abs(one - other) <= TIE * max(one, other)
    low, high = ends
    return bool(best[low] <= row[high] and row[low] <= best[high])


def print_ranked(rows: Sequence[Mapping[str, Any]], **how: Any) -> None:
    """Print `ranked_answer`."""
    print_answer(ranked_answer(rows, **how))


def trusted_answer(
    rows: Sequence[Mapping[str, Any]],
    *,
    name: str,
    value: str,
    next_step: str,
    within: float = 15.0,
    against: str = "what was measured",
) -> Answer:
    """Return for what a simulation may be relied on, from scores of its errors.

    Args:
        rows: Scores; those without the value do not count.
        name: How a row is named, such as ``{what}``.
        value: Column of the error in percent.
        next_step: What to measure or change next, as a sentence.
        within: Error in percent up to which a part is relied on.
        against: What the simulation was compared with.
    """
    known = sorted(
        (row for row in rows if row.get(value) is not None), key=lambda row: abs(float(row[value]))
    )
    if not known:
        return Answer(
            build="Rely on nothing here yet: no part was measured.",
            confidence="Without a measurement there is no error to state.",
            next_step=next_step,
        )
    names = [f"{name.format_map(row)} ({abs(float(row[value])):.1f} %)" for row in known]
    good = [told for told, row in zip(names, known, strict=True) if abs(row[value]) <= within]
    if good:
        build = f"Rely on the simulation of {good[0]}"
        build += f" and {len(good) - 1} more of {len(known)} parts" if len(good) > 1 else ""
    else:
        build = f"Rely on the simulation of none of {len(known)} parts"
    if len(good) < len(known):
        build += f"; not on that of {names[-1]}"
    return Answer(
        build=f"{build}.",
        confidence=f"{len(good)} of {len(known)} parts are within {within:.0f} % of "
        f"{against}; the worst is {names[-1]}.",
        next_step=next_step,
    )


def print_trusted(rows: Sequence[Mapping[str, Any]], **how: Any) -> None:
    """Print `trusted_answer`."""
    print_answer(trusted_answer(rows, **how))


__all__ = ["TIE", "print_ranked", "print_trusted", "ranked_answer", "trusted_answer"]
