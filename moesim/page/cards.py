"""Cards of the candidates that the verdict is about: their figures with intervals, how they differ,
and what each rests on.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from moesim.page.folder import StudyFolder
from moesim.page.metrics import interval, metric
from moesim.page.shown import ShownTrial, plainest
from moesim.report.verdicts import winners_measured
from moesim.search.evaluate import Problem
from moesim.search.serving_problem import ServingProblem
from moesim.search.session.answer import design_name
from moesim.search.study import Study
from moesim.search.trial import Trial

_HEADINGS = {
    "winner": ("Winner", "What the verdict recommends."),
    "tie": ("Tie", "Its intervals overlap the winner's: the two cannot be told apart."),
    "runner-up": (
        "Runner-up",
        "The design next to the winner on the front; its intervals do not overlap the winner's.",
    ),
    "baseline": ("Baseline", "The plainest design that was tried and fits."),
}
_TONES = {"confirmed": "good", "refuted": "bad", "inconclusive": "fair", "not_measured": "plain"}
_CALIBRATED = {"calibrated": "good", "few_shot": "fair", "spec_sheet": "fair", "none": "bad"}
_GRADES = {"A": "good", "B": "good", "C": "fair", "D": "bad"}


def cards(
    folder: StudyFolder, front: Sequence[Trial], shown: Sequence[ShownTrial]
) -> list[dict[str, Any]]:
    """Return a card for each of the named candidates.

    Args:
        folder: The folder of the study.
        front: Its Pareto front.
        shown: The candidates.
    """
    study = folder.study
    measured = winners_measured(folder.checks).verdicts
    winner = shown[0].trial if shown else None
    found = []
    for one in shown:
        if one.role not in _HEADINGS:
            continue
        heading, says = _HEADINGS[one.role]
        if one.role == "winner" and plainest(study, one.trial).number == one.trial.number:
            says += " It is also the plainest design that was tried."
        elif one.role == "baseline" and study.num_ties(one.trial, [shown[0].trial]):
            says += " Its intervals overlap the winner's."
        found.append(
            {
                "role": one.role,
                "heading": heading,
                "says": says,
                "name": design_name(one.trial, front),
                "trial": one.trial.number,
                "facts": _facts(study, one.trial),
                "differs": _differences(winner, one.trial) if one.trial is not winner else [],
                "badges": _badges(folder, one.trial, measured),
            }
        )
    return found


def _facts(study: Study, trial: Trial) -> list[dict[str, Any]]:
    more = ["train_usd", "mfu", "peak_memory_gib"]
    if isinstance(study.problem, Problem):
        more = ["layer_time_us", "peak_memory_gib"]
    elif isinstance(study.problem, ServingProblem):
        more = ["ttft_ms", "tpot_ms", "usd_per_million_tokens"]
    row = trial.evaluation.row
    found = []
    for name in dict.fromkeys([*study.objectives, *more]):
        if row.get(name) is not None:
            about, ends = metric(name), interval(row, name)
            found.append(
                {
                    "label": about.label,
                    "unit": about.unit,
                    "says": about.says,
                    "value": row[name],
                    "ends": list(ends) if ends and ends[0] != ends[1] else None,
                    "objective": name in study.objectives,
                }
            )
    return found


def _differences(winner: Trial | None, other: Trial) -> list[dict[str, str]]:
    if winner is None:
        return []
    names = dict.fromkeys([*winner.params, *other.params])
    return [
        {
            "label": metric(name).label,
            "here": str(other.params.get(name, "none")),
            "there": str(winner.params.get(name, "none")),
        }
        for name in names
        if winner.params.get(name) != other.params.get(name)
    ]


def _badge(text: str, tone: str, says: str) -> dict[str, str]:
    return {"text": text, "tone": tone, "says": says}


def _badges(folder: StudyFolder, trial: Trial, measured: Mapping[str, str]) -> list[dict[str, str]]:
    """Return what a candidate rests on, a badge each."""
    row = trial.evaluation.row
    found = [_badge(str(row["evidence"]), "plain", metric("evidence").says)]
    verdict = measured.get(str(row.get("design")), "not_measured")
    text = "not measured" if verdict == "not_measured" else f"measured: {verdict}"
    says = "What check.csv says of this very design; scaled-down stand-ins do not count."
    found.append(_badge(text, _TONES[verdict], says))
    if row.get("calibration"):
        level = str(row["calibration"])
        says = metric("calibration").says
        text = "not calibrated" if level == "none" else level.replace("_", " ")
        found.append(_badge(text, _CALIBRATED.get(level, "plain"), says))
    if row.get("grade"):
        letter = str(row["grade"])
        rests = f" Rests on: {row['rests_on']}." if row.get("rests_on") else ""
        found.append(
            _badge(f"grade {letter}", _GRADES.get(letter, "bad"), metric("grade").says + rests)
        )
    if row.get("loss_extrapolated"):
        says = f"The loss law was fitted within narrower ranges: {row.get('loss_outside')}."
        found.append(_badge("loss extrapolated", "fair", says))
    ratio_name, finer = folder.study.problem.confirmed[1:]
    again = next((w for w in folder.winners if w["design"] == row.get("design")), None)
    if again is not None and again.get(ratio_name):
        ratio = float(again[ratio_name])
        says = f"winners.csv: the {finer} gives {ratio:.4f} times the time that the search gave."
        found.append(_badge(f"{finer} x {ratio:.3f}", "plain", says))
    return found
