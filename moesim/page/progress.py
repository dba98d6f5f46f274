"""Charts of the search itself: how the best values came, what parameters decide, and the choices of
the front.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from moesim.page.charts import CYCLE, Axis, BarChart, ParallelChart, Series, XYChart
from moesim.page.metrics import metric
from moesim.page.shown import ShownTrial
from moesim.search.objectives import DIRECTIONS
from moesim.search.study import Study
from moesim.search.trial import Trial

#: parameters of an objective, and axes, that are drawn at most
_PARAMETERS, _AXES = 12, 9
_COLORS = {"winner": "orange", "tie": "purple", "runner-up": "purple", "baseline": "ink"}


def history_charts(study: Study) -> list[XYChart]:
    """Return the best value of each objective so far, over the trials."""
    found = []
    fits = [t for t in study.trials if t.feasible]
    for place, name in enumerate(study.objectives):
        meaning = metric(name)
        numbers = [t.number for t in fits if t.evaluation.row.get(name) is not None]
        values = np.array([t.evaluation.row[name] for t in fits if t.evaluation.row.get(name) is not None], dtype=float)  # fmt: skip  # noqa: E501
        if not len(values):
            continue
        least = DIRECTIONS[name] == "minimize"
        best = np.minimum.accumulate(values) if least else np.maximum.accumulate(values)
        # where the best changes, and the end
        steps = np.flatnonzero(np.diff(best, prepend=np.nan, append=np.nan)[:-1] != 0)
        steps = np.unique([*steps, len(best) - 1])
        found.append(
            XYChart(
                key=f"history_{name}",
                title=f"Best {meaning.label} so far",
                note=f"{meaning.says} Only trials that fit count; "
                f"{'less' if least else 'more'} is better.",
                x=Axis(label="trial"),
                y=Axis(label=meaning.titled),
                series=(
                    Series(
                        name="trials that fit",
                        x=np.array(numbers, dtype=float),
                        y=values,
                        color="muted",
                        size=4.0,
                        cloud=True,
                    ),
                    Series(
                        name="best so far",
                        x=np.array(numbers, dtype=float)[steps],
                        y=best[steps],
                        color=CYCLE[place % len(CYCLE)],
                        mode="steps",
                    ),
                ),
                most=400,
            )
        )
    return found


def importance_chart(rows: Sequence[Mapping[str, Any]]) -> BarChart | None:
    """Return what each parameter decides.

    Args:
        rows: Rows as in importance.csv; those without a number are left out, and named in the
            note.
    """
    without = [row for row in rows if row["importance"] is None]
    rows = [row for row in rows if row["importance"] is not None]
    if not any(row["importance"] > 0 for row in rows):
        return None
    objectives = list(dict.fromkeys(row["objective"] for row in rows))
    value = {(row["objective"], row["parameter"]): row["importance"] for row in rows}
    names = list(dict.fromkeys(row["parameter"] for row in rows if row["importance"] > 0))
    names.sort(key=lambda name: -max(value.get((o, name), 0.0) for o in objectives))
    return BarChart(
        key="importance",
        title="What each parameter decides",
        note=(
            "Share of what sets the best tenth of the trials apart from all, for each objective "
            "(PED-ANOVA); the shares of an objective sum to 1. It describes the trials that were "
            f"made, not causes.{_left_out(without)}"
        ),
        x=Axis(label="importance (share)"),
        rows=tuple(metric(name).label for name in names[:_PARAMETERS]),
        parts={
            metric(o).label: [value.get((o, name), 0.0) for name in names[:_PARAMETERS]]
            for o in objectives
        },
        colors={metric(o).label: CYCLE[i % len(CYCLE)] for i, o in enumerate(objectives)},
        stacked=False,
    )


def _left_out(rows: Sequence[Mapping[str, Any]]) -> str:
    """Name the parameters that have no importance for an objective, and why."""
    reasons: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        key = metric(row["objective"]).label, str(row.get("why_not") or "not known")
        reasons.setdefault(key, []).append(metric(row["parameter"]).label)
    return "".join(
        f" Without importance for {objective}: {', '.join(names)} ({why})."
        for (objective, why), names in reasons.items()
    )


def parallel_chart(
    study: Study, front: Sequence[Trial], shown: Sequence[ShownTrial], place: dict[int, int]
) -> ParallelChart | None:
    """Return the choices and objectives of the front and of the named candidates, a line each.

    Args:
        study: The study.
        front: Its Pareto front.
        shown: The candidates of the report.
        place: Number of a trial -> its index in the table of trials.
    """
    roles = {one.trial.number: one.role for one in shown if one.role in _COLORS}
    trials = {t.number: t for t in [*front, *(one.trial for one in shown)]}
    # the named ones are drawn last, on top
    ordered = sorted(trials.values(), key=lambda t: (t.number in roles, t.number))
    if not ordered:
        return None
    choices = {
        name: values
        for name, values in study.space.choices().items()
        if len({str(t.params.get(name)) for t in ordered}) > 1
    }
    axes, values = [], []
    for name in list(choices)[: _AXES - len(study.objectives)]:
        # what does not apply to a point has a place of its own, the lowest
        given = [t.params.get(name) for t in ordered]
        names = [one for one in choices[name] if one in given]
        listed = [*(["-"] if None in given and None not in names else []), *map(str, names)]
        axes.append(Axis(label=metric(name).label, names=tuple(listed)))
        values.append([float(listed.index("-" if one is None else str(one))) for one in given])
    for name in study.objectives:
        column = [t.evaluation.row.get(name) for t in ordered]
        if any(one is None for one in column) or len(set(column)) < 2:
            continue
        numbers = [float(one) for one in column]  # type: ignore[arg-type]
        wide = min(numbers) > 0 and max(numbers) > 8 * min(numbers)
        axes.append(Axis(label=metric(name).titled, log=wide))
        values.append(numbers)
    if len(axes) < 2:
        return None
    return ParallelChart(
        key="parallel",
        title="Choices of the front",
        note=(
            "A line is a design of the front, or one of the candidates above; an axis is a choice "
            "that differs among them, or an objective."
        ),
        axes=tuple(axes),
        values=tuple(values),
        rows=[place[t.number] for t in ordered],
        colors=tuple(_COLORS.get(roles.get(t.number, ""), "sky") for t in ordered),
        names={"sky": "front"} | {_COLORS[role]: role for role in roles.values()},
    )
