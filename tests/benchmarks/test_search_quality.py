"""How good what a search finds is, on a space of 4,800 designs that is also evaluated exhaustively.

Figures of the README: `extra_info` holds the gaps of ten seeds.
"""

import itertools

import numpy as np
import pytest

from moesim import Workload, load_cluster
from moesim.search import Space
from moesim.search.evaluate import Problem
from moesim.search.executors import evaluator
from moesim.search.objectives import Constraint, costs_of
from moesim.search.pareto import hypervolume
from moesim.search.samplers import Proposer
from moesim.search.screen import screened_points
from moesim.search.trial import Trial

OBJECTIVES = ["loss", "layer_tokens_per_s_per_device"]
SPACE = Space(
    dense_part="qwen3-235b-a22b",
    num_layers=32,
    train_tokens=2e12,
    hidden_size=4096,
    num_experts=[16, 32, 64, 128, 256],
    top_k=[2, 4, 6, 8],
    expert_intermediate_size=[1024, 1536, 2048, 2688, 4096],
    gate=["flat", "group_limited:8:4", "two_level:8:4"],
    placement=["contiguous", "balanced", "eplb"],
    num_replicas=[0, 8],
    parallelism=["tp1", "tp2"],
    precision=["bf16", "fp8"],
)
SEEDS = range(10)


def text(point):
    return str(sorted(point.items()))


@pytest.fixture(scope="module")
def problem():
    work = Workload(
        num_tokens_per_device=1024, routing="power_law:1.2", kv_tokens_per_device=131072, seed=0
    )
    return Problem(
        space=SPACE, cluster=load_cluster("hgx-h100-8"), workload=work, objectives=OBJECTIVES
    )


@pytest.fixture(scope="module")
def every(problem):
    """Every design, simulated: text of the point -> trial."""
    found = {}
    for choice in itertools.product(*SPACE.choices().values()):
        point = SPACE.applicable(dict(zip(SPACE.choices(), choice, strict=True)))
        if text(point) not in found:
            found[text(point)] = Trial(
                number=len(found), params=point, evaluation=problem.evaluate(point), wall_s=0.0
            )
    return found


def search(every, sampler, seed, budget, objectives=OBJECTIVES, screened=()):
    """The first trials of a search, as `run_study` would make them: a batch is asked before the
    last is known.
    """
    proposer = Proposer(SPACE, objectives, sampler, seed, screened=screened)
    trials, under_way, number = [], [], 0
    while len(trials) < budget:
        while len(under_way) < 2:
            under_way.append(proposer.batch(number))
            number += 1
        batch = [every[text(point)] for point in under_way.pop(0)]
        proposer.learn(batch)
        trials += batch
    return trials[:budget]


def test_gap_of_the_hypervolume(problem, every, benchmark):
    """At 1,000 evaluations NSGA-II's gap to the exhaustive front is at most half of random
    search's.
    """
    feasible = [t for t in every.values() if t.feasible]
    costs = np.array([costs_of(OBJECTIVES, t.evaluation.row) for t in feasible])
    # the reference: the worst of the space in each
    worst, span = costs.max(axis=0), np.ptp(costs, axis=0)

    def volume(trials):
        values = np.array([costs_of(OBJECTIVES, t.evaluation.row) for t in trials if t.feasible])
        return hypervolume((values - worst) / span, np.zeros(2))

    whole = volume(feasible)

    def gaps(sampler):
        return [1.0 - volume(search(every, sampler, seed, 1000)) / whole for seed in SEEDS]

    by_chance, learned = gaps("random"), benchmark.pedantic(gaps, args=("nsga2",), rounds=1)
    benchmark.extra_info.update(random=by_chance, nsga2=learned)
    assert np.median(learned) <= 0.5 * np.median(by_chance)
    assert np.mean(learned) <= 0.5 * np.mean(by_chance)


def test_best_under_a_cap_of_loss(problem, every, benchmark):
    """500 evaluations of what the bound picked find the best throughput under a cap within 1 %, and
    beat 500 random.
    """
    objective = ["layer_tokens_per_s_per_device"]
    losses = [t.evaluation.row["loss"] for t in every.values() if t.feasible]
    cap = float(np.quantile(losses, 0.25))
    capped = Problem(
        space=SPACE,
        cluster=problem.cluster,
        workload=problem.workload,
        objectives=objective,
        constraints=(Constraint.parse(f"loss <= {cap}"),),
    )

    def best(trials):
        return max(
            (
                t.evaluation.row[objective[0]]
                for t in trials
                if t.feasible and t.evaluation.row["loss"] <= cap
            ),
            default=0.0,
        )

    true = best(every.values())

    def screened(seed):
        with evaluator(capped, None, 1) as evaluates:
            # half of the space, drawn by the seed
            points = screened_points(capped, 2400, 1000, seed, evaluates)
        return best(search(every, "random", seed, 500, objective, points)) / true

    found = benchmark.pedantic(lambda: [screened(seed) for seed in SEEDS], rounds=1)
    by_chance = [best(search(every, "random", seed, 500)) / true for seed in SEEDS]
    with evaluator(capped, None, 1) as evaluates:
        whole = screened_points(capped, SPACE.size, 1000, 0, evaluates)
    from_all = best(search(every, "random", 0, 500, objective, whole)) / true
    benchmark.extra_info.update(screened_half=found, screened_all=from_all, random=by_chance)
    assert from_all >= 0.99
    assert np.median(found) > np.median(by_chance)
