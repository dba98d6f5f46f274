"""Choose the few candidates that the report looks at closely: winner, tie, baseline, and the front
between its ends.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from moesim.search.pareto import spread
from moesim.search.study import Study
from moesim.search.trial import Trial

#: the plainest choice of a parameter, where it has one
_PLAINEST: dict[str, Any] = {
    "placement": "contiguous",
    "gate": "flat",
    "num_replicas": 0,
    "redundant_per_rank": 0,
    "num_micro_batches": 1,
    "precision": "bf16",
    "formats": "bf16",
    "pools": "colocated",
    "draft_length": 0,
    "pruned_fraction": 0.0,
    "cold_fraction": 0.0,
    "resident_fraction": 1.0,
    "kv_format": "bfloat16",
    "pipeline": "1f1b",
    "recompute": "none",
    "overlap_exchange": False,
    "optimizer": "adamw",
    "zero": 1,
    "pp": 1,
}
#: candidates of the front that the report takes apart, the named ones included
MOST = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class ShownTrial:
    """A candidate of the report.

    Attributes:
        role: ``winner``, ``tie``, ``runner-up``, ``baseline`` or ``front``.
        trial: Its trial.
    """

    role: str
    trial: Trial


def shown_trials(study: Study, winner: Trial | None, front: Sequence[Trial]) -> list[ShownTrial]:
    """Return the candidates, each once: the winner first, then a tie of it (or else the design next
    to it on the front), the baseline, and others of the front up to `MOST`.

    A baseline that is the winner itself has no place of its own; one that ties comes as baseline.

    Args:
        study: The study.
        winner: The trial that the verdict recommends; None where nothing fits.
        front: The Pareto front.
    """
    if winner is None:
        return []
    found = [ShownTrial(role="winner", trial=winner)]
    baseline = plainest(study, winner)
    others = [t for t in front if t.number not in (winner.number, baseline.number)]
    tied = [t for t in others if study.num_ties(winner, [winner, t])]
    if tied:
        found.append(ShownTrial(role="tie", trial=tied[0]))
    elif others:
        place = [t.number for t in front].index(winner.number)
        after = [t for t in front[place + 1 :] if t in others]
        found.append(ShownTrial(role="runner-up", trial=(after or others[::-1])[0]))
    if baseline.number != winner.number:
        found.append(ShownTrial(role="baseline", trial=baseline))
    named = {one.trial.number for one in found}
    rest = [t for t in front if t.number not in named]
    found += [ShownTrial(role="front", trial=t) for t in spread(rest, max(MOST - len(found), 0))]
    return found


def plainest(study: Study, winner: Trial) -> Trial:
    """Return the plainest design that was tried and fits: the one with the fewest choices that are
    not the plainest, and among those the one most like the winner.
    """

    def cost(trial: Trial) -> tuple[int, int, int]:
        params = trial.params
        fancy = sum(params[name] != plain for name, plain in _PLAINEST.items() if name in params)
        other = sum(
            params.get(name) != value
            for name, value in winner.params.items()
            if name not in _PLAINEST
        )
        return fancy, other, trial.number

    return min((t for t in study.trials if t.feasible), key=cost)
