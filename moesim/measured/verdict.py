"""Say in sentences what a closed loop found: whether the simulator holds on this machine, how far
off it is, whether it ranks designs rightly, and how its kernels do beside others'.

Rows carry verdicts of their own (`moesim.measured.sources.CheckRow.verdict`). The headline asks of
the winners of a search what the project asks of itself: four of five confirmed and none refuted.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from moesim.measured.check import source_scores, winner_verdicts
from moesim.measured.recalibrate import Recalibration
from moesim.measured.sources import CONFIRMED_WITHIN, REFUTED_BEYOND, WIDE, CheckRow

#: share of the winners that must be confirmed for the headline to say that the simulator holds
HOLDS = 0.8
_NAMES = {"layer": "whole layers", "experts": "experts", "gate": "gates"}


def headline(winners: Iterable[CheckRow], where: str) -> str:
    """Return one sentence on the winners of a search.

    Args:
        winners: Rows of the winners.
        where: Name of the machine, such as ``this GPU``.
    """
    found = list(winner_verdicts(winners).values())
    confirmed, refuted, unknown = (
        found.count(verdict) for verdict in ("confirmed", "refuted", "not_measured")
    )
    measured = len(found) - unknown
    if not measured:
        return f"None of the {len(found)} winners was measured on {where}: nothing can be said."
    counted = f"{confirmed} of {measured} winners are confirmed, {refuted} refuted"
    if not refuted and confirmed >= HOLDS * measured:
        return f"The simulator holds on {where}: {counted}."
    if not refuted:
        return f"The simulator holds on {where} with reservations: {counted}."
    return f"Do not rely on the simulator on {where}: {counted}."


def sentences(
    rows: Sequence[tuple[str, CheckRow]],
    where: str,
    *,
    beside: Sequence[Mapping[str, Any]] = (),
    recalibration: Recalibration | None = None,
) -> list[str]:
    """Return what a closed loop found, the headline first.

    Args:
        rows: Pairs of role (``winner`` or ``random``) and row.
        where: Name of the machine.
        beside: Rows with ``candidate``, ``library`` (``moesim`` first) and ``ratio``, moesim's time
            over the library's.
        recalibration: What factors fitted to half of the designs do for the other half, if they
            were fitted.
    """
    lines = [headline((row for role, row in rows if role == "winner"), where)]
    scores = {
        score["quantity"].removesuffix("_time_us"): score
        for score in source_scores(row for _, row in rows)
    }
    for part, name in _NAMES.items():
        if part in scores:
            score = scores[part]
            way = "short" if score["bias"] < 0 else "long"
            lines.append(
                f"Simulated times of {name} are off by {score['median']:.0f} % in the median and "
                f"{score['p90']:.0f} % at P90, and {abs(score['bias']):.0f} % too {way} "
                f"({score['rows']:.0f} designs)."
            )
    if "kendall_tau" in scores.get("layer", {}):
        lines.append(_ranks(scores["layer"]))
    if beside:
        lines.append(_beside(beside))
    if recalibration is not None:
        lines.append(
            "Factors fitted to half of the designs take the mean error of the other half from "
            f"{recalibration.before['mape']:.0f} to {recalibration.after['mape']:.0f} % (moesim "
            "check --recalibrate)."
        )
    lines.append(
        f"Confirmed: within {CONFIRMED_WITHIN:.0f} %, or inside an 80 % interval narrower than a "
        f"factor of {WIDE:g}; refuted: more than {REFUTED_BEYOND:.0f} % off and outside the "
        "interval."
    )
    return lines


def _ranks(score: Mapping[str, Any]) -> str:
    regret = 100.0 * score["regret"]
    best = "is the fastest measured"
    if regret >= 0.05:
        best = f"is {regret:.1f} % slower than the fastest measured"
    return (
        f"The design simulated as the fastest {best}; of pairs of designs "
        f"{50 * (1 + score['kendall_tau']):.0f} % are ranked rightly."
    )


def _beside(beside: Sequence[Mapping[str, Any]]) -> str:
    """Compare moesim's kernels with the fastest other library on each design."""
    best: dict[str, Mapping[str, Any]] = {}
    for row in beside:
        if row["library"] != "moesim":
            known = best.get(row["candidate"])
            if known is None or row["ratio"] > known["ratio"]:
                best[row["candidate"]] = row
    if not best:
        return "No other library's kernels could be timed beside moesim's."
    ratios = np.array([row["ratio"] for row in best.values()])
    worst = max(best.values(), key=lambda row: row["ratio"])
    return (
        f"moesim's expert phase takes {np.exp(np.log(ratios).mean()):.2f} times as long as that of "
        f"the fastest other library (geometric mean of {len(best)} designs; at worst "
        f"{worst['ratio']:.2f} times {worst['library']})."
    )
