"""A finished trial: its point, its evaluation, and its form in a storage."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial

from moesim.search.evaluate import TRIAL_COLUMNS
from moesim.search.problem import MEMORY, Evaluation, SearchSpace


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """One finished trial.

    Attributes:
        number: Number of the trial, from 0, in the order of the proposals.
        params: The point.
        evaluation: The result at the point.
        wall_s: Seconds that the evaluation took.
        ended: Time of its end, in seconds since 1970.
    """

    number: int
    params: dict[str, Any]
    evaluation: Evaluation
    wall_s: float
    ended: float = field(default=0.0, compare=False)

    @property
    def broken(self) -> float:
        """The sum of all constraint violations; 0 if all constraints hold."""
        return sum(max(value, 0.0) for value in self.evaluation.violations.values())

    @property
    def feasible(self) -> bool:
        """Whether it is a candidate, fits in memory, and keeps every constraint."""
        return not self.evaluation.reason and self.broken == 0

    @property
    def state(self) -> str:
        """The state: ``fits``, ``over_memory``, ``over_constraint``, ``infeasible`` (no candidate)
        or ``failed``.
        """
        found = self.evaluation
        if found.reason:
            return "failed" if found.failed else "infeasible"
        if found.violations[MEMORY] > 0:
            return "over_memory"
        return "fits" if self.feasible else "over_constraint"

    def row(self, columns: Iterable[str] = TRIAL_COLUMNS) -> dict[str, Any]:
        """Return the flat row for trials.csv, whose wall-clock columns begin with ``wall_``.

        Args:
            columns: Columns that it has in any case.
        """
        found = self.evaluation
        # the point as proposed, even without a candidate; the columns ep and tp show what it became
        row = dict.fromkeys(columns) | found.row | self.params
        broken = [name for name, value in found.violations.items() if value > 0 and name != MEMORY]
        return row | {
            "number": self.number,
            "state": self.state,
            "reason": found.reason,
            "wall_s": self.wall_s,
            MEMORY: found.violations.get(MEMORY),
            "broken_constraints": "; ".join(broken),
        }


def to_record(trial: Trial, space: SearchSpace, objectives: list[str]) -> FrozenTrial:
    """Return a trial in the form of an Optuna storage, so that Optuna's dashboard shows it."""
    found = trial.evaluation
    choices = space.choices()
    distributions: dict[str, BaseDistribution] = {
        name: CategoricalDistribution(tuple(choices[name])) for name in trial.params
    }
    attrs = {
        "row": found.row,
        "violations": found.violations,
        "reason": found.reason,
        "failed": found.failed,
        "bound_us": found.bound_us,
        "wall_s": trial.wall_s,
        "number": trial.number,
    }
    state = TrialState.FAIL if found.reason else TrialState.COMPLETE
    record = create_trial(
        state=state,
        params=trial.params,
        distributions=distributions,
        user_attrs=attrs,
        values=None if found.reason else found.values(objectives),
        constraints=None if found.reason else found.violations,
    )
    record.datetime_start = datetime.fromtimestamp(trial.ended - trial.wall_s, UTC)
    record.datetime_complete = datetime.fromtimestamp(trial.ended, UTC)
    return record


def from_record(record: FrozenTrial, *, alone: bool = False) -> Trial:
    """Return the trial that a record holds.

    Args:
        record: The record.
        alone: Whether the study has a single writer, which numbers its trials itself: one that ran
            again since its record was damaged comes after the others. Otherwise the storage does.
    """
    attrs = record.user_attrs
    evaluation = Evaluation(
        row=attrs["row"],
        violations=attrs["violations"],
        reason=attrs["reason"],
        failed=attrs["failed"],
        # trials of earlier versions have none
        bound_us=attrs.get("bound_us"),
    )
    return Trial(
        number=attrs.get("number", record.number) if alone else record.number,
        params=dict(record.params),
        evaluation=evaluation,
        wall_s=attrs["wall_s"],
        ended=record.datetime_complete.timestamp() if record.datetime_complete else 0.0,
    )
