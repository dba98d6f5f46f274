"""Say what a search found: what to build, how sure that is, and what to measure or change next."""

from collections.abc import Iterable, Mapping
from typing import Any

from moesim.report.answer import Answer, print_answer
from moesim.report.labels import without_common_end
from moesim.report.verdicts import WinnerVerdicts, winners_measured
from moesim.search.objectives import in_words
from moesim.search.points import num_designs
from moesim.search.study import Study
from moesim.search.trial import Trial

#: what tells designs of whole models apart: column -> how a value of it reads
NAMED = {
    "layout": "{}",
    "pools": "pools {}",
    "prefill_layout": "prefill {}",
    "serving_engine": "{}",
    "concurrency": "{} clients",
    "num_micro_batches": "{} micro-batches",
    "placement": "{}",
    "kv_format": "KV {}",
}
#: values that go without saying
_PLAIN = {"pools": "colocated", "prefill_layout": "same", "num_micro_batches": 1}
#: share of a space's designs below which a search is called small
_SMALL = 0.05
#: number of parameters that a sentence names
_LISTED = 2
#: beginning of a column of an interval -> what it is of
_OF = {
    "layer_time": "layer time",
    "train_days": "training time",
    "loss": "loss",
    "peak_memory": "memory",
    "output_tokens_per_s_per_device": "tokens/s per device",
    "output_tokens_per_s_per_user": "tokens/s per user",
    "ttft": "TTFT",
    "tpot": "TPOT",
    "joules": "energy",
    "usd": "price",
}
#: variable of the loss law -> its name
_VARIABLES = {
    "E_eff": "numbers of experts",
    "active_params": "active parameters",
    "train_tokens": "training tokens",
    "tokens_per_param": "tokens per parameter",
}


def study_answer(study: Study, checks: Iterable[Mapping[str, Any]] = ()) -> Answer:
    """Return what a study found, finished or not.

    Args:
        study: The study.
        checks: Rows as in check.csv, of the study's winners.
    """
    assumptions = tuple(filter(None, study.problem.assumptions()))
    chosen = study.chosen()
    if chosen is None:
        return _nothing(study, assumptions)
    front = study.pareto_trials()
    measured = winners_measured(checks)
    return Answer(
        build=_build(study, chosen, front),
        confidence=_confidence(study, chosen, front, measured),
        next_step=_next(study, chosen, measured),
        assumptions=assumptions,
    )


def show_answer(study: Study, checks: Iterable[Mapping[str, Any]] = ()) -> None:
    """Print `study_answer`."""
    print_answer(study_answer(study, checks))


def design_name(trial: Trial, among: Iterable[Trial] = ()) -> str:
    """Return the name of a trial's design, without the words that all of several designs share at
    the end.

    Args:
        trial: The trial.
        among: Trials that it is told apart from.
    """
    row = trial.evaluation.row
    if row.get("candidate"):
        label = str(row["candidate"])
        others = [str(t.evaluation.row["candidate"]) for t in among]
        if "layer_time_us" not in row:  # a training run, whose label ends with its plan
            return label
        return without_common_end([label, *others])[0][0]
    return ", ".join(
        text.format(row[name])
        for name, text in NAMED.items()
        if row.get(name) is not None and row[name] != _PLAIN.get(name)
    )


def _build(study: Study, chosen: Trial, front: list[Trial]) -> str:
    """Name the design, its objectives, and why it is the one."""
    name = design_name(chosen, front)
    found = in_words(study.objectives, chosen.evaluation.row)
    limit = _limit(chosen.evaluation.row)
    if len(study.objectives) == 1:
        why = f"the best of {len(study.trials):,} trials"
    elif len(front) == 1:
        why = f"of {len(study.trials):,} trials none is better in any objective"
    else:
        why = (
            f"of the {len(front)} designs that no trial beats in every objective it gives up the "
            "least in its worst one"
        )
    return f"{name}: {found}; {why}{limit}."


def _limit(row: Mapping[str, Any]) -> str:
    limit = row.get("bottleneck") or row.get("limited_by")
    return f"; its time goes to {limit}" if limit else ""


def _confidence(study: Study, chosen: Trial, front: list[Trial], measured: WinnerVerdicts) -> str:
    """Say what intervals overlap, what is extrapolated, and what was measured."""
    row = chosen.evaluation.row
    ties, of = study.num_ties(chosen, front), _intervals(study)
    others = len(front) - 1
    if not others:
        told = "It is alone on the front"
    elif ties:
        told = f"{ties} of the {others} others on the front cannot be told apart from it, since"
        told += f" the intervals of {of} overlap"
    else:
        told = f"The intervals of {of} tell it apart from all {others} others on the front"
    if row.get("loss_extrapolated") and "loss" in study.objectives:
        told += f"; its loss is extrapolated, beyond the law's {_outside(row['loss_outside'])}"
    grade = row.get("grade")
    if grade in ("C", "D"):
        told += f"; its time has grade {grade} of A to D"
        told += f" ({row['rests_on']})" if row.get("rests_on") else ""
    doubt = study.problem.doubt(chosen.params)
    told += f"; it may not run as it is: {doubt}" if doubt else ""
    return f"{told}. {measured.sentence()}"


def _outside(text: str) -> str:
    """Return the variables of ``active_params 4e9 outside 8e7-3e9; ...`` by name."""
    names = [part.split()[0] for part in text.split("; ") if part]
    return _listed([_VARIABLES.get(name, name.replace("_", " ")) for name in names])


def _listed(words: list[str]) -> str:
    return " and ".join([", ".join(words[:-1]), words[-1]] if words[:-1] else words)


def _intervals(study: Study) -> str:
    names = dict.fromkeys(
        next((said for start, said in _OF.items() if low.startswith(start)), low.replace("_", " "))
        for low, _ in study.problem.intervals
    )
    return _listed(list(names))


def _next(study: Study, chosen: Trial, measured: WinnerVerdicts) -> str:
    """Name what would change the decision most: a refutation, then an edge of the space, then a
    missing measurement.
    """
    row = chosen.evaluation.row
    total = num_designs(study.space)
    if measured.count("refuted"):
        return (
            f"Find out why {measured.count('refuted')} of the winners are refuted (check.csv says "
            "by what) before you build any of them."
        )
    first = "Measure it"
    if row.get("layer_time_us") is not None:
        where = study.problem.cluster.profile.name
        verdict = measured.verdicts.get(str(row["design"]), "not_measured")
        first = (
            f"Measure it: `moesim check winners.csv` on a machine with {where}"
            if verdict == "not_measured"
            else "Measure it end to end"
        )
    elif row.get("train_days") is not None:
        first = "Time a few steps of it on the cluster, and compare them with step_s in pareto.csv"
    else:
        first = "Launch it with `moesim study export`, and compare TTFT and TPOT under your load"
    edges = _edges(study, chosen)
    if edges:
        return f"{first}; then widen {' and '.join(edges[:_LISTED])}, where it is at the end."
    tried = len(study.trials)
    if tried >= total:
        return f"{first}; all {total:,} designs of the space were tried, so widen its choices."
    if tried < _SMALL * total:
        return f"{first}; then raise --trials: {tried:,} of {total:,} designs were tried."
    return f"{first}; {tried:,} of {total:,} designs were tried."


def _edges(study: Study, chosen: Trial) -> list[str]:
    """Return the ranges of numbers at whose end the chosen design lies, such as ``num_experts
    beyond 512``.
    """
    found = []
    for name, choices in study.space.choices().items():
        value = chosen.params.get(name)
        numbers = [c for c in choices if isinstance(c, int | float) and not isinstance(c, bool)]
        if len(choices) < 3 or len(numbers) < len(choices) or value is None:
            continue
        for end, way in ((max(numbers), "beyond"), (min(numbers), "below")):
            # nothing lies below one or none
            if value == end and not (way == "below" and end <= 1):
                found.append(f"{name} {way} {end:,}")
    return found


def _nothing(study: Study, assumptions: tuple[str, ...]) -> Answer:
    """Return the answer of a study in which nothing is feasible."""
    over = sum(t.state == "over_memory" for t in study.trials)
    reasons = [t.evaluation.reason for t in study.trials if t.evaluation.reason]
    broken = [t.row()["broken_constraints"] for t in study.trials if t.state == "over_constraint"]
    why = [f"{over} over memory"] if over else []
    why += [f"{len(broken)} over a constraint"] if broken else []
    why += [f"{len(reasons)} no candidate, such as: {reasons[0]}"] if reasons else []
    return Answer(
        build=f"Nothing yet: none of {len(study.trials):,} trials is feasible "
        f"({'; '.join(why) or 'no trial has ended'}).",
        confidence="Memory and constraints are checked on simulated values; no winner was checked "
        "against a measurement.",
        next_step="Loosen the constraint that most trials break, add devices, or add choices that "
        "need less memory.",
        assumptions=assumptions,
    )


__all__ = ["design_name", "show_answer", "study_answer"]
