"""Propose what to try next: ask Optuna's samplers for batches of untried points.

A batch depends only on the seed, its number and the trials it may know. Each batch comes from a
fresh study in memory that holds those trials (for the genetic sampler, the survivors among them).
Therefore a search that was stopped continues with the same points, and shared searches need no
state except their trials.

Samplers see numeric choices as their index in ascending order, since steps of a range seldom have
equal size. NSGA-II breeds without Optuna's loop (`moesim.search.breeding`), and a budget for every
design needs no sampler: ``every`` goes through them, those of one routing next to each other.
"""

from collections.abc import Iterable, Iterator
from importlib.util import find_spec
from itertools import islice
from typing import Any, Literal

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, IntDistribution
from optuna.samplers import BaseSampler, GPSampler, TPESampler
from optuna.trial import TrialState, create_trial

from moesim.errors import ConfigError, UnknownNameError
from moesim.search.breeding import children, dominance
from moesim.search.objectives import DIRECTIONS, costs_of
from moesim.search.pareto import survivors
from moesim.search.points import distinct_points
from moesim.search.problem import SearchSpace
from moesim.search.trial import Trial

SamplerName = Literal["random", "every", "tpe", "nsga2", "gp"]
#: sampler -> points of a batch; batches are small for samplers that learn much from each trial
BATCH = {"random": 50, "every": 50, "tpe": 10, "nsga2": 50, "gp": 5}
#: survivors of a generation
POPULATION = 50
#: share of a batch that comes from a screening as long as it has points
_SCREENED_SHARE = 0.8
#: points to ask the sampler for per point wanted, before random draws take over
_ASKS = 6
#: largest space whose untried points are listed when random draws find nothing new
_LISTED = 1_000_000


def sampler_for(name: str, num_trials: int, size: int) -> SamplerName:
    """Return the sampler that a name stands for.

    Args:
        name: A key of `BATCH`, or ``auto``: every design if the budget allows, TPE for up to a
            hundred trials, and NSGA-II beyond. (A trial costs TPE about 5 ms and NSGA-II about .1
            ms. Gaussian processes cost over a second and are used only by name.)
        num_trials: Budget of trials.
        size: Number of distinct designs of the space.

    Raises:
        UnknownNameError: There is no such sampler.
        ConfigError: It is ``gp``, whose Gaussian processes Optuna computes with torch, and torch is
            not installed.
    """
    if name == "auto":
        if num_trials >= size:
            return "every"
        return "tpe" if num_trials <= 100 else "nsga2"
    if name not in BATCH:
        raise UnknownNameError("sampler", name, ["auto", *BATCH])
    if name == "gp" and find_spec("torch") is None:
        raise ConfigError("sampler gp: torch not installed: pip install torch, or take tpe")
    return name  # type: ignore[return-value]


class Proposer:
    """Propose batches of points, none of them twice.

    Args:
        space: The choices of the search.
        objectives: Names of the objectives.
        sampler: Name of the sampler, as `sampler_for` returns it.
        seed: Seed of all random decisions.
        enqueue: Points, or parts of points, to try first.
        screened: Points that a screening found best, best first.
    """

    def __init__(
        self,
        space: SearchSpace,
        objectives: list[str],
        sampler: SamplerName,
        seed: int,
        enqueue: Iterable[dict[str, Any]] = (),
        screened: Iterable[dict[str, Any]] = (),
    ) -> None:
        self.space, self.objectives, self.sampler, self.seed = space, objectives, sampler, seed
        self._first, self._screened = list(enqueue), iter(list(screened))
        self._known: list[Trial] = []
        self._seen: set[tuple] = set()
        self._every = (point for _, point in distinct_points(space))
        self._ordered = {name for name, choices in space.choices().items() if _are_numbers(choices)}
        self._choices = {
            name: sorted(choices) if name in self._ordered else choices
            for name, choices in space.choices().items()
        }
        self._place = {
            name: {value: i for i, value in enumerate(self._choices[name])}
            for name in self._choices
        }
        # nothing can be learned about a parameter with a single choice
        self._varied = {n: choices for n, choices in self._choices.items() if len(choices) > 1}

    @property
    def batch_size(self) -> int:
        """The number of points of a batch."""
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
        """Return the points of batch ``number``; fewer, or none, once the space is exhausted."""
        rng = np.random.default_rng([self.seed, number])
        first = [self._completed(point, rng) for point in self._first] if number == 0 else []
        points = self._new(first)
        wanted = max(self.batch_size, len(points))
        if self.sampler == "every":
            return points + self._next_new(self._every, wanted - len(points))
        points += self._next_new(self._screened, round(_SCREENED_SHARE * (wanted - len(points))))
        if self.sampler != "random" and self._known:
            propose = self._bred if self.sampler == "nsga2" else self._asked
            points += propose(wanted - len(points), int(rng.integers(1 << 31)))
        tries = 0
        while len(points) < wanted and tries < 50 * wanted:
            points += self._new([self._completed({}, rng)])
            tries += 1
        if len(points) < wanted and self.space.size <= _LISTED:
            points += self._left(wanted - len(points), rng)
        return points

    def _new(self, points: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
        """Return the untried points without what does not apply, and mark them as tried."""
        found = []
        for point in points:
            plain = self.space.applicable(point)
            if (key := _key(plain)) not in self._seen:
                self._seen.add(key)
                found.append(plain)
        return found

    def _next_new(self, points: Iterator[dict[str, Any]], count: int) -> list[dict[str, Any]]:
        """Return the next ``count`` untried points of an iterator, or all that are left."""
        found: list[dict[str, Any]] = []
        while len(found) < count and (point := next(points, None)) is not None:
            found += self._new([point])
        return found

    def _places(self, trial: Trial) -> dict[str, int]:
        """Return the place of each varied parameter's choice in a trial.

        Parameters that do not apply take their first choice: samplers need points with the same
        names.
        """
        return {
            name: self._place[name][trial.params.get(name, choices[0])]
            for name, choices in self._varied.items()
        }

    def _completed(self, point: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        return {
            name: point[name] if name in point else choices[int(rng.integers(len(choices)))]
            for name, choices in self._choices.items()
        }

    def _left(self, count: int, rng: np.random.Generator) -> list[dict[str, Any]]:
        """Return untried points of a space that is nearly exhausted."""
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

    def _bred(self, count: int, seed: int) -> list[dict[str, Any]]:
        """Return children of the survivors, by NSGA-II."""
        varied, known = self._varied, self._known
        costs = np.array([costs_of(self.objectives, t.evaluation.row) for t in known])
        born = children(
            [list(self._places(trial).values()) for trial in known],
            dominance(costs, np.array([t.broken for t in known])),
            list(varied),
            [len(choices) for choices in varied.values()],
            [name in self._ordered for name in varied],
            seed,
        )
        points = (
            {name: choices[0] for name, choices in self._choices.items()}
            | {n: choices[p] for (n, choices), p in zip(varied.items(), child, strict=True)}
            for child in islice(born, _ASKS * count)
        )
        return self._next_new(points, count)

    def _asked(self, count: int, seed: int) -> list[dict[str, Any]]:
        """Return points that one of Optuna's samplers proposes."""
        varied = self._varied
        distributions: dict[str, BaseDistribution] = {
            name: IntDistribution(0, len(choices) - 1)
            if name in self._ordered
            else CategoricalDistribution(choices)
            for name, choices in varied.items()
        }
        directions = [DIRECTIONS[name] for name in self.objectives]
        study = optuna.create_study(directions=directions, sampler=self._make(seed))
        for trial in self._known:
            places = self._places(trial)
            study.add_trial(
                create_trial(
                    params={
                        name: place if name in self._ordered else varied[name][place]
                        for name, place in places.items()
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
        if self.sampler == "gp":
            return GPSampler(seed=seed, n_startup_trials=0)
        return TPESampler(seed=seed, multivariate=True, constant_liar=True, n_startup_trials=0)


def _are_numbers(choices: list) -> bool:
    return all(isinstance(c, int | float) and not isinstance(c, bool) for c in choices)


def _key(params: dict[str, Any]) -> tuple:
    return tuple(sorted(params.items()))
