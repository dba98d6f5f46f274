"""What to try next: Optuna's samplers, asked for batches of points that nobody tried.

A batch depends on the seed, its number and the trials it may know, nothing else: each is asked of a
fresh study in memory that holds those trials (for the genetic sampler, the survivors among them),
so that a search that was stopped continues with the same points and shared searches need no state
but their trials.

Numbers are asked for by their place in ascending order, since steps of a range seldom have equal
size.
"""

from collections.abc import Iterable
from typing import Any, Literal

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, IntDistribution
from optuna.samplers import BaseSampler, GPSampler, NSGAIISampler, TPESampler
from optuna.trial import FrozenTrial, TrialState, create_trial

from moesim.errors import UnknownNameError
from moesim.search.objectives import OBJECTIVES, costs_of
from moesim.search.pareto import survivors
from moesim.search.space import Space
from moesim.search.trial import Trial

SamplerName = Literal["random", "tpe", "nsga2", "gp"]
#: sampler -> points of a batch; small ones for samplers that learn much from each trial
BATCH = {"random": 50, "tpe": 10, "nsga2": 50, "gp": 5}
#: survivors of a generation
POPULATION = 50
#: of a batch, what comes from a screening as long as it has any
_SCREENED_SHARE = 0.8
#: points asked for each that is wanted, before chance takes over
_ASKS = 6
#: most points of a space whose rest is listed when chance finds none that is new
_LISTED = 1_000_000


def sampler_for(name: str, num_trials: int, size: int) -> SamplerName:
    """The sampler that a name stands for.

    Args:
        name: One of `BATCH`, or ``auto``: every point where the budget allows, TPE for up to a
            hundred trials, NSGA-II beyond (a trial costs them some 5 and 1 ms; Gaussian processes,
            over a second, come by name only).
        num_trials: Budget.
        size: Points of the space.

    Raises:
        UnknownNameError: Another name.
    """
    if name == "auto":
        if num_trials >= size:
            return "random"
        return "tpe" if num_trials <= 100 else "nsga2"
    if name not in BATCH:
        raise UnknownNameError("sampler", name, ["auto", *BATCH])
    return name  # type: ignore[return-value]


class _Generation(NSGAIISampler):
    """NSGA-II's children of a population that somebody else selected."""

    def get_trial_generation(self, study: optuna.Study, trial: FrozenTrial) -> int:
        return 1

    def get_parent_population(self, study: optuna.Study, generation: int) -> list[FrozenTrial]:
        return study.get_trials(deepcopy=False, states=[TrialState.COMPLETE])


class Proposer:
    """Batches of points, none twice.

    Args:
        space: What may vary.
        objectives: Names.
        sampler: Resolved name.
        seed: Of everything that chance decides.
        enqueue: Points, or parts of points, to try first.
        screened: Points that a screening found best, best first.
    """

    def __init__(
        self,
        space: Space,
        objectives: list[str],
        sampler: SamplerName,
        seed: int,
        enqueue: Iterable[dict[str, Any]] = (),
        screened: Iterable[dict[str, Any]] = (),
    ) -> None:
        self.space, self.objectives, self.sampler, self.seed = space, objectives, sampler, seed
        self._first, self._screened = list(enqueue), list(screened)
        self._known: list[Trial] = []
        self._seen: set[tuple] = set()
        self._next_screened = 0
        self._ordered = {name for name, choices in space.choices().items() if _are_numbers(choices)}
        self._choices = {
            name: sorted(choices) if name in self._ordered else choices
            for name, choices in space.choices().items()
        }
        self._place = {
            name: {value: i for i, value in enumerate(self._choices[name])}
            for name in self._ordered
        }

    @property
    def batch_size(self) -> int:
        """Points of a batch."""
        return BATCH[self.sampler]

    def learn(self, trials: Iterable[Trial]) -> None:
        """Take finished trials into account."""
        for trial in trials:
            self._seen.add(_key(trial.params))
            if not trial.evaluation.reason:
                self._known.append(trial)
        if self.sampler == "nsga2" and len(self._known) > POPULATION:
            costs = np.array([costs_of(self.objectives, t.evaluation.row) for t in self._known])
            broken = np.array([t.broken for t in self._known])
            kept = survivors(costs, broken, POPULATION)
            self._known = [self._known[i] for i in kept]

    def batch(self, number: int) -> list[dict[str, Any]]:
        """Points of batch ``number``; fewer, or none, once the space has no others."""
        rng = np.random.default_rng([self.seed, number])
        first = [self._completed(point, rng) for point in self._first] if number == 0 else []
        points = self._new(first)
        wanted = max(self.batch_size, len(points))
        points += self._from_screening(round(_SCREENED_SHARE * (wanted - len(points))))
        if self.sampler != "random" and self._known:
            points += self._asked(wanted - len(points), int(rng.integers(1 << 31)))
        tries = 0
        while len(points) < wanted and tries < 50 * wanted:
            points += self._new([self._completed({}, rng)])
            tries += 1
        if len(points) < wanted and self.space.size <= _LISTED:
            points += self._left(wanted - len(points), rng)
        return points

    def _new(self, points: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
        """Those that nobody tried, without what does not apply; from now on they count as tried."""
        found = []
        for point in points:
            plain = self.space.applicable(point)
            if (key := _key(plain)) not in self._seen:
                self._seen.add(key)
                found.append(plain)
        return found

    def _from_screening(self, count: int) -> list[dict[str, Any]]:
        points: list[dict[str, Any]] = []
        while len(points) < count and self._next_screened < len(self._screened):
            points += self._new([self._screened[self._next_screened]])
            self._next_screened += 1
        return points

    def _completed(self, point: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        return {
            name: point[name] if name in point else choices[int(rng.integers(len(choices)))]
            for name, choices in self._choices.items()
        }

    def _left(self, count: int, rng: np.random.Generator) -> list[dict[str, Any]]:
        """Points left of a space that is nearly exhausted."""
        names = list(self._choices)
        sizes = [len(self._choices[name]) for name in names]
        found: list[dict[str, Any]] = []
        for flat in rng.permutation(self.space.size):
            places = np.unravel_index(int(flat), sizes)
            found += self._new(
                [{n: self._choices[n][int(p)] for n, p in zip(names, places, strict=True)}]
            )
            if len(found) == count:
                break
        return found

    def _asked(self, count: int, seed: int) -> list[dict[str, Any]]:
        """Points that Optuna's sampler proposes."""
        # what only one choice is left of cannot be learned from
        varied = {name: choices for name, choices in self._choices.items() if len(choices) > 1}
        distributions: dict[str, BaseDistribution] = {
            name: IntDistribution(0, len(choices) - 1)
            if name in self._ordered
            else CategoricalDistribution(choices)
            for name, choices in varied.items()
        }
        directions = [OBJECTIVES[name] for name in self.objectives]
        study = optuna.create_study(directions=directions, sampler=self._make(seed))
        for trial in self._known:
            # what does not apply stands at its first choice: samplers learn from points that all
            # have the same names
            at = {name: trial.params.get(name, choices[0]) for name, choices in varied.items()}
            study.add_trial(
                create_trial(
                    params={
                        name: self._place[name][value] if name in self._ordered else value
                        for name, value in at.items()
                    },
                    distributions=distributions,
                    values=trial.evaluation.values(self.objectives),
                    constraints=trial.evaluation.violations,
                )
            )
        points: list[dict[str, Any]] = []
        for _ in range(_ASKS * count):
            if len(points) == count:
                break
            asked = study.ask(distributions)
            point = {
                name: choices[asked.params[name]]
                if name in varied and name in self._ordered
                else asked.params.get(name, choices[0])
                for name, choices in self._choices.items()
            }
            new = self._new([point])
            points += new
            if not new:
                study.tell(asked, state=TrialState.FAIL)
        return points

    def _make(self, seed: int) -> BaseSampler:
        if self.sampler == "nsga2":
            return _Generation(population_size=POPULATION, seed=seed)
        if self.sampler == "gp":
            return GPSampler(seed=seed, n_startup_trials=0)
        return TPESampler(seed=seed, multivariate=True, constant_liar=True, n_startup_trials=0)


def _are_numbers(choices: list) -> bool:
    return all(isinstance(c, int | float) and not isinstance(c, bool) for c in choices)


def _key(params: dict[str, Any]) -> tuple:
    return tuple(sorted(params.items()))
