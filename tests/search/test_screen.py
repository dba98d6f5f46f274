"""Screening: the same best points as simulating everything, fewer simulations, and how far off it
was.
"""

import itertools
import json

import numpy as np
import pytest

from moesim import Workload
from moesim.search.evaluate import Problem
from moesim.search.executors import evaluator
from moesim.search.objectives import Constraint, costs_of
from moesim.search.pareto import front
from moesim.search.screen import fidelity, screened_points
from moesim.search.trial import Trial

pytestmark = pytest.mark.full

OBJECTIVES = ["loss", "layer_tokens_per_s_per_device"]


@pytest.fixture(scope="module")
def problem(make_space, hgx):
    space = make_space(
        num_experts=[8, 64, 256], top_k=[2, 4, 16], expert_intermediate_size=[512, 1024, 4096]
    )
    return Problem(
        space=space,
        cluster=hgx,
        workload=Workload(num_tokens_per_device=64, routing="zipf:0.8"),
        objectives=OBJECTIVES,
    )


@pytest.fixture(scope="module")
def every(problem):
    """All designs of the space, each simulated."""
    space = problem.space
    points = {}
    for choice in itertools.product(*space.choices().values()):
        point = space.applicable(dict(zip(space.choices(), choice, strict=True)))
        points[str(point)] = point
    return [
        Trial(number=i, params=p, evaluation=problem.evaluate(p), wall_s=0.0)
        for i, p in enumerate(points.values())
    ]


def screened(problem, num_points, keep, workers=1, seed=0):
    with evaluator(problem, None, workers) as evaluates:
        return screened_points(problem, num_points, keep, seed, evaluates)


def test_the_front_of_the_space_is_among_the_first(problem, every):
    feasible = [t for t in every if t.feasible]
    costs = np.array([costs_of(OBJECTIVES, t.evaluation.row) for t in feasible])
    best = {text(feasible[i].params) for i in front(costs)}
    kept = [text(p) for p in screened(problem, problem.space.size, 3 * len(best))]
    assert len(set(kept)) == len(kept)
    assert len(set(kept) & best) >= 0.9 * len(best)


def text(point):
    return json.dumps(point, sort_keys=True)


def test_workers_and_order_change_nothing(problem):
    whole = screened(problem, problem.space.size, 50)
    assert screened(problem, problem.space.size, 50, workers=2) == whole
    some = screened(problem, 100, 20, seed=4)
    assert screened(problem, 100, 20, seed=4) == some
    assert screened(problem, 100, 20, seed=5) != some


def test_constraints_come_before_what_is_best(problem, every):
    times = [t.evaluation.row["layer_time_us"] for t in every if t.feasible]
    bound = float(np.quantile(times, 0.3))
    capped = Problem(
        space=problem.space,
        cluster=problem.cluster,
        workload=problem.workload,
        objectives=["loss"],
        constraints=(Constraint.parse(f"layer_time_us <= {bound}"),),
    )
    [first] = screened(capped, capped.space.size, 1)
    found = capped.evaluate(first)
    assert found.violations[f"layer_time_us <= {bound:g}"] <= 0.02, (
        "the bound may be a little below the simulation"
    )
    best = min(
        t.evaluation.row["loss"]
        for t in every
        if t.feasible and t.evaluation.row["layer_time_us"] <= bound
    )
    assert found.row["loss"] <= best + 1e-9


def test_fidelity_is_that_of_the_bound(problem, every):
    some = [t for t in every if not t.evaluation.reason][:40]
    found = fidelity(some)
    assert found["trials"] == 40
    assert 0.5 < found["ratio_p10"] <= found["ratio_median"] <= found["ratio_p90"] <= 1.0 + 1e-9
    assert found["spearman"] > 0.97
    assert fidelity(some[:1]) == {}


def test_a_screened_study_beats_the_same_without(study, tmp_path):
    """Its first fifty trials hold a better best throughput than fifty by chance."""

    def best(found):
        return max(
            t.evaluation.row["layer_tokens_per_s_per_device"]
            for t in found.trials[:50]
            if t.feasible
        )

    options = {"objectives": ["layer_tokens_per_s_per_device"], "num_trials": 50}
    assert best(study(tmp_path / "a", screen=2000, **options)) >= best(
        study(tmp_path / "b", **options)
    )


def test_hardware_is_screened_too(study, make_space, tmp_path):
    space = make_space(hardware={"hbm_gb_per_s": ["1x", "2x"], "nvlink_gb_per_s": [225.0, 450.0]})
    found = study(tmp_path, space=space, screen=500, num_trials=60)
    assert {"hbm_gb_per_s", "nvlink_gb_per_s"} <= set(found.trials[0].params)
    clusters = {
        t.evaluation.row["cluster"] for t in found.trials if t.evaluation.row.get("layer_time_us")
    }
    assert len(clusters) > 1
    assert all(t.row()["calibration"] == "spec_sheet" for t in found.trials if t.feasible)
    candidate, cluster = found.designs(1)[0]
    assert candidate.layer.num_experts in space.num_experts
    assert cluster.is_what_if
