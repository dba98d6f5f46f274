"""Children: those of Optuna's NSGA-II sampler, draw for draw."""

from itertools import islice

import numpy as np
import optuna
import pytest
from optuna.distributions import CategoricalDistribution, IntDistribution
from optuna.trial import TrialState, create_trial

from moesim.search.breeding import children, dominance

NAMES = ["width", "gate", "experts", "placement", "axis"]
SIZES = [4, 3, 7, 2, 5]
NUMERIC = [True, False, True, False, True]


class OfOptuna(optuna.samplers.NSGAIISampler):
    """Optuna's sampler, told which trials are the parents."""

    def get_trial_generation(self, study, trial):
        return 1

    def get_parent_population(self, study, generation):
        return study.get_trials(deepcopy=False, states=[TrialState.COMPLETE])


def optunas(parents, costs, broken, seed, count):
    spaces = {
        name: IntDistribution(0, size - 1) if number else CategoricalDistribution(range(size))
        for name, size, number in zip(NAMES, SIZES, NUMERIC, strict=True)
    }
    study = optuna.create_study(
        directions=["minimize", "maximize"], sampler=OfOptuna(population_size=50, seed=seed)
    )
    for parent, (a, b), over in zip(parents, costs, broken, strict=True):
        study.add_trial(
            create_trial(
                params=dict(zip(NAMES, map(int, parent), strict=True)),
                distributions=spaces,
                values=[a, -b],
                constraints={"one": float(over), "two": -1.0},
            )
        )
    found = []
    for i in range(count):
        asked = study.ask(spaces)
        found.append([asked.params[name] for name in NAMES])
        if i % 3 == 0:
            study.tell(asked, state=TrialState.FAIL)
    return found


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("count", [2, 3, 50])
def test_children_are_those_of_optuna(count, seed):
    rng = np.random.default_rng([seed, count])
    parents = rng.integers(SIZES, size=(count, len(SIZES)))
    # few values, so that equal and incomparable parents meet; a third breaks a constraint
    costs = rng.integers(4, size=(count, 2)).astype(float)
    broken = np.maximum(rng.integers(-4, 3, size=count), 0).astype(float)
    born = children(parents.tolist(), dominance(costs, broken), NAMES, SIZES, NUMERIC, seed)
    assert list(islice(born, 60)) == optunas(parents, costs, broken, seed, 60)


def test_a_single_parent_has_children_too():
    born = children([[0] * 5], np.zeros((1, 1), dtype=bool), NAMES, SIZES, NUMERIC, 0)
    assert len({tuple(child) for child in islice(born, 50)}) > 1


def test_nothing_to_vary():
    assert next(children([[], []], np.zeros((2, 2), dtype=bool), [], [], [], 0)) == []
