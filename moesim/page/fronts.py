"""The chart that people think in: two quantities of every trial, with the front, its intervals and
the candidates of the report.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from moesim.page.charts import Axis, Series, XYChart
from moesim.page.metrics import interval, metric
from moesim.page.shown import ShownTrial
from moesim.search.objectives import DIRECTIONS
from moesim.search.serving_problem import ServingProblem
from moesim.search.study import Study
from moesim.search.training_problem import TrainingProblem
from moesim.search.trial import Trial

#: role -> color, symbol and size of a point
_STYLES = {
    "winner": ("orange", "star", 17.0),
    "tie": ("purple", "diamond", 13.0),
    "runner-up": ("purple", "diamond", 13.0),
    "baseline": ("ink", "square", 11.0),
}
#: ratio of ends from which on an axis is logarithmic
_WIDE = 8.0


def front_axes(study: Study) -> tuple[str, str]:
    """Return the columns along x and y: what people compare designs of this kind by, where trials
    differ in it; otherwise the objectives.
    """
    names = study.objectives
    if isinstance(study.problem, ServingProblem):
        wanted = ["tokens_per_s_per_user", "tokens_per_s_per_device", *names]
    elif isinstance(study.problem, TrainingProblem):
        wanted = ["train_days", "loss", *names, "peak_memory_gib", "mfu"]
        if "loss" not in names:
            wanted.remove("loss")
    else:
        wanted = ["layer_tokens_per_s_per_device", "loss", *names, "layer_joules_per_token"]
    rows = [t.evaluation.row for t in study.trials if t.feasible]
    varying = [
        name
        for name in dict.fromkeys(wanted)
        if len({row.get(name) for row in rows if row.get(name) is not None}) > 1
    ]
    first, second = [*varying, *(n for n in dict.fromkeys(wanted) if n not in varying)][:2]
    return first, second


def front_chart(
    study: Study, pareto: Sequence[Trial], shown: Sequence[ShownTrial], place: dict[int, int]
) -> XYChart:
    """Return the chart of a study.

    Args:
        study: The study.
        pareto: Its Pareto front.
        shown: The candidates of the report.
        place: Number of a trial -> its index in the table of trials.
    """
    x, y = front_axes(study)

    def drawn(trial: Trial) -> bool:
        # answers of one token have no pace
        row = trial.evaluation.row
        return trial.feasible and row.get(x) is not None and row.get(y) is not None

    named = {one.trial.number: one.role for one in shown if one.role in _STYLES}
    front = [t for t in pareto if drawn(t)]
    on_front = {t.number for t in front}
    others = [t for t in study.trials if drawn(t) and t.number not in on_front]
    plain = [t for t in front if t.number not in named]
    series = [
        _series(
            "dominated trials", [t for t in others if t.number not in named], (x, y), place,
            color="muted", size=5.0, cloud=True,
        ),
        _series("Pareto front", plain, (x, y), place, color="blue", size=9.0),
    ]  # fmt: skip
    for one in shown:
        if one.role in _STYLES and drawn(one.trial):
            color, symbol, size = _STYLES[one.role]
            series.append(
                _series(one.role, [one.trial], (x, y), place, color=color, symbol=symbol, size=size)
            )
    first, second = metric(x), metric(y)
    better = " and ".join(
        f"{'less' if DIRECTIONS.get(name) == 'minimize' else 'more'} {one.label}"
        for name, one in ((x, first), (y, second))
    )
    note = " ".join(
        [
            *(f"{one.label[:1].upper()}{one.label[1:]}: {one.says}" for one in (first, second)),
            f"Better is {better}. Bars are P10 to P90; without a bar no interval is known.",
        ]
    )
    if set(study.objectives) - {x, y}:
        rest = ", ".join(metric(n).label for n in study.objectives if n not in (x, y))
        note += f" A design may be on the front for its {rest}, which this chart does not show."
    return XYChart(
        key="front",
        title=f"{second.label[:1].upper()}{second.label[1:]} against {first.label}",
        note=note,
        x=Axis(label=first.titled, log=_is_wide([t.evaluation.row[x] for t in [*front, *others]])),
        y=Axis(label=second.titled, log=_is_wide([t.evaluation.row[y] for t in [*front, *others]])),
        series=tuple(one for one in series if len(one.x)),
    )


def _series(
    name: str,
    trials: Sequence[Trial],
    columns: tuple[str, str],
    place: dict[int, int],
    *,
    color: str,
    size: float,
    symbol: str = "circle",
    cloud: bool = False,
) -> Series:
    rows = [t.evaluation.row for t in trials]
    ends: dict[str, Any] = {}
    for along, column in zip("xy", columns, strict=True):
        found = [interval(row, column) for row in rows]
        if not cloud and any(found):
            # a point without an interval ends at itself
            both = [one or (row[column],) * 2 for one, row in zip(found, rows, strict=True)]
            ends[f"{along}_low"] = [low for low, _ in both]
            ends[f"{along}_high"] = [high for _, high in both]
    return Series(
        name=name,
        x=np.array([row[columns[0]] for row in rows], dtype=float),
        y=np.array([row[columns[1]] for row in rows], dtype=float),
        rows=np.array([place[t.number] for t in trials], dtype=np.int32),
        color=color,
        size=size,
        symbol=symbol,
        cloud=cloud,
        **ends,
    )


def _is_wide(values: Sequence[float]) -> bool:
    return bool(values) and min(values) > 0 and max(values) > _WIDE * min(values)
