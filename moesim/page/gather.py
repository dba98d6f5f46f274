"""Gather everything that the page of a study shows, as plain data."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from moesim.page.cards import cards
from moesim.page.charts import PALETTE, Chart, plain
from moesim.page.checks import check_chart, compared, left_out
from moesim.page.folder import StudyFolder
from moesim.page.fronts import front_axes, front_chart
from moesim.page.layer import Anatomy
from moesim.page.metrics import interval, metric
from moesim.page.parts import Strip, anatomy_of, bottleneck_chart, strips_of
from moesim.page.progress import history_charts, importance_chart, parallel_chart
from moesim.page.repeat import commands, study_file
from moesim.page.shown import ShownTrial, shown_trials
from moesim.page.tables import by_columns, trial_columns
from moesim.report.answer import Answer
from moesim.search.evaluate import Problem
from moesim.search.serving_problem import ServingProblem
from moesim.search.session.answer import design_name, study_answer
from moesim.search.session.watch import counts_of, importances
from moesim.search.study import Study
from moesim.search.trial import Trial

#: choices of a parameter up to which it is a filter
_MOST_CHOICES = 24
_CHECKED = (
    "candidate",
    "role",
    "source",
    "quantity",
    "simulated",
    "measured",
    "error_percent",
    "verdict",
    "detail",
)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Gathered:
    """What is shown of a study.

    Attributes:
        title: Title of the page.
        answer: The verdict.
        charts: Every chart that there is data for, in the order of the page.
        data: Everything as plain data for the page's script, the charts included.
    """

    title: str
    answer: Answer
    charts: tuple[Chart, ...]
    data: dict[str, Any]


def gather(folder: StudyFolder) -> Gathered:
    """Gather what is shown of a study; only the few candidates that it looks at closely are
    simulated again.
    """
    study = folder.study
    answer = study_answer(study, folder.checks)
    front = study.pareto_trials()
    shown = shown_trials(study, study.chosen(), front)
    place = {trial.number: index for index, trial in enumerate(study.trials)}
    layer = anatomy_of(study, shown[0].trial) if shown else _nothing()
    rows = folder.importances if folder.importances is not None else importances(study)
    search: list[Chart | None] = [*history_charts(study), importance_chart(rows)]
    search.append(parallel_chart(study, front, shown, place))
    sections: dict[str, list[Chart]] = {
        "front": [front_chart(study, front, shown, place)] if shown else [],
        "bottleneck": [bottleneck_chart(study, _strips(study, shown))] if shown else [],
        "layer": list(layer.charts),
        "search": [chart for chart in search if chart is not None],
        "check": [chart for chart in [check_chart(folder.checks)] if chart is not None],
    }
    title = f"{_kind(study)} on {study.problem.cluster.name}"
    columns = trial_columns(study)
    data = {
        "title": title,
        "palette": PALETTE,
        "cards": cards(folder, front, shown),
        "sections": sections,
        "notes": list(layer.notes),
        "trials": by_columns([trial.row() for trial in study.trials], columns),
        "choices": list(study.space.choices()),
        "objectives": study.objectives,
        "filters": _filters(study),
        "shown": [{"role": one.role, "trial": one.trial.number} for one in shown],
        "front": _front_table(folder, front, shown),
        "stragglers": layer.stragglers,
        "checks": [{name: row[name] for name in _CHECKED} for row in folder.checks],
        "checkable": isinstance(study.problem, Problem),
        "compared": len(compared(folder.checks)),
        "left_out": left_out(folder.checks),
        "states": counts_of(study.trials),
        "finished": folder.finished,
        "reproduce": _reproduced(folder),
    }
    return Gathered(
        title=title,
        answer=answer,
        charts=tuple(chart for charts in sections.values() for chart in charts),
        data=plain(data),
    )


def _nothing() -> Anatomy:
    note = "No trial fits, so there is no candidate to take apart."
    return Anatomy(phase_s={}, stragglers=[], charts=(), notes=(note,))


def _kind(study: Study) -> str:
    if isinstance(study.problem, Problem):
        return "MoE layers"
    model = study.problem.blank_row(study.problem.cluster)["model"]
    serves = isinstance(study.problem, ServingProblem)
    return f"{'Serving' if serves else 'Training'} {model}"


def _strips(study: Study, shown: Iterable[ShownTrial]) -> list[Strip]:
    return [
        strip
        for one in shown
        for strip in strips_of(study, one, f"{one.role} (trial {one.trial.number})")
    ]


def _filters(study: Study) -> list[str]:
    """Return the parameters that a filter can choose by: those with few choices that occur."""
    found = []
    for name, choices in study.space.choices().items():
        there = {str(t.params.get(name)) for t in study.trials if t.feasible}
        if len(there) > 1 and len(choices) <= _MOST_CHOICES:
            found.append(name)
    return found


def _front_table(
    folder: StudyFolder, front: list[Trial], shown: Sequence[ShownTrial]
) -> dict[str, Any]:
    """Return the front and the named candidates as rows with definitions of their columns."""
    study = folder.study
    _, ratio, finer = study.problem.confirmed
    again = {row["design"]: float(row[ratio]) for row in folder.winners if row.get(ratio)}
    groups = dict(zip([t.number for t in front], study.groups(front), strict=True))
    roles = {one.trial.number: one.role for one in shown}
    others = [one.trial for one in shown if one.trial.number not in groups]
    quantities = list(dict.fromkeys([*study.objectives, *front_axes(study)]))
    found = ["bottleneck"] if isinstance(study.problem, Problem) else ["limited_by"]
    found += [name for name in ("calibration", "grade") if name in study.problem.columns]
    rows = []
    for trial in [*front, *others]:
        row = trial.evaluation.row
        cells: dict[str, Any] = {
            "number": trial.number,
            "role": roles.get(trial.number, "front"),
            "design": design_name(trial, front),
            "group": groups.get(trial.number),
        }
        for name in quantities:
            cells[name] = row.get(name)
            ends = interval(row, name)
            if ends and ends[0] != ends[1]:
                cells[f"{name}:ends"] = list(ends)
        cells |= {name: row.get(name) for name in found}
        rows.append(cells | {ratio: again.get(str(row.get("design")))})
    names = ["number", "role", "design", "group", *quantities, *found]
    names += [ratio] if again else []
    own = {
        ratio: (
            f"{finer} / search",
            f"winners.csv: the time by the {finer} over that of the search, for winners that were "
            "simulated again.",
        ),
        "design": ("design", "Name of the design."),
        "role": ("role", "Its part in this report; front: on the front, without a card."),
    }
    columns = [
        {
            "name": name,
            "label": own[name][0] if name in own else metric(name).titled,
            "says": own[name][1] if name in own else metric(name).says,
        }
        for name in names
    ]
    return {"columns": columns, "rows": rows}


def _reproduced(folder: StudyFolder) -> dict[str, Any]:
    """Return the study file, the commands, and what all of it rests on."""
    settings, study = folder.settings, folder.study
    problem = study.problem
    notes = []
    if settings["enqueued"]:
        notes.append(
            "This study first tried points that its script chose; a study file cannot hold them. "
            "Run that script again for the same trials."
        )
    if settings["workload"]["seed"] != settings["seed"]:
        notes.append(
            f"Its tokens were drawn with seed {settings['workload']['seed']}; a study file takes "
            "the seed of the search for both."
        )
    if problem.cluster.digest != settings["cluster"]["digest"]:
        notes.append(
            "The files of the cluster are not those that the trials were made with: where the time "
            "goes, stragglers and loads are simulated with the present ones."
        )
    hashes = dict.fromkeys(str(t.evaluation.row.get("profile_hash")) for t in study.trials)
    facts = {
        "moesim version": settings.get("version", "-"),
        "seed": settings["seed"],
        "sampler": settings["sampler"],
        "search engine": settings["engine"],
        "cluster": f"{problem.cluster.name} (hash {settings['cluster']['digest']})",
        "profile hash": ", ".join(hashes) or "-",
        "economics": f"{settings['economics']['name']} (hash {settings['economics']['digest']})",
        "constraints": "; ".join(settings["constraints"]) or "memory only",
    }
    return {
        "study_file": study_file(settings),
        "commands": commands(settings, folder.path, len(study.trials)),
        "facts": [[name, str(value)] for name, value in facts.items()],
        "notes": notes,
    }
