"""Tables of the page: every trial by columns, and rows of the front, winners, and checks."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from moesim.page.metrics import metric
from moesim.search.evaluate import Problem
from moesim.search.serving_problem import ServingProblem
from moesim.search.study import Study

#: characters of a reason in the table of trials
_REASON = 160
#: columns of a trial beside its choices, objectives and intervals, where it has them
_FOUND = (
    "bottleneck",
    "limited_by",
    "load_imbalance",
    "peak_memory_gib",
    "memory_over_gib",
    "dropped_token_fraction",
    "bubble_fraction",
    "exposed_communication_fraction",
    "loss_extrapolated",
    "kernels",
    "calibration",
    "grade",
    "broken_constraints",
    "design",
    "reason",
)
_WHOLE = ("ttft_ms", "tpot_ms", "usd_per_million_tokens")
_TRAINED = ("train_usd", "mfu", "tokens_per_s_per_device", "layout", "plan")
_LAYERS = ("layer_time_us", "layer_usd_per_million_tokens")


def trial_columns(study: Study) -> list[str]:
    """Return the columns of the table of trials: choices, objectives, intervals, findings."""
    more: tuple[str, ...] = _TRAINED
    if isinstance(study.problem, Problem):
        more = _LAYERS
    elif isinstance(study.problem, ServingProblem):
        more = _WHOLE
    known = set(study.problem.columns)
    wanted = (
        "number",
        "state",
        *study.space.choices(),
        *study.objectives,
        *(end for pair in study.problem.intervals for end in pair),
        *more,
        *_FOUND,
    )
    return [name for name in dict.fromkeys(wanted) if name in known]


def by_columns(rows: Sequence[Mapping[str, Any]], columns: Iterable[str]) -> dict[str, Any]:
    """Return a table by columns: numbers as an array, anything else as texts and an index of each.

    Args:
        rows: Rows, as flat mappings.
        columns: Their columns.
    """
    found: dict[str, Any] = {}
    for name in columns:
        cells = [row.get(name) for row in rows]
        about = metric(name)
        entry: dict[str, Any] = {"label": about.titled, "says": about.says}
        if all(_is_number(cell) or cell is None for cell in cells):
            entry["numbers"] = np.array([np.nan if c is None else c for c in cells], dtype=float)
        else:
            texts = ["" if c is None else str(c)[:_REASON] for c in cells]
            names = list(dict.fromkeys(texts))
            index = {text: i for i, text in enumerate(names)}
            entry["texts"] = names
            entry["codes"] = np.array([index[text] for text in texts], dtype=np.int32)
        found[name] = entry
    return found


def _is_number(cell: Any) -> bool:
    return isinstance(cell, int | float | np.number) and not isinstance(cell, bool)
