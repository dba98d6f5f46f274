"""Proposals: none twice, learned from what is known, whatever the sampler."""

import itertools
import json

import numpy as np
import pytest

from moesim.errors import ConfigError
from moesim.search.evaluate import Evaluation
from moesim.search.objectives import costs_of
from moesim.search.pareto import hypervolume
from moesim.search.points import num_designs
from moesim.search.samplers import BATCH, Proposer, sampler_for
from moesim.search.storage import read_study
from moesim.search.trial import Trial

OBJECTIVES = ["loss", "layer_tokens_per_s_per_device"]


def evaluated(number, point):
    """A made-up landscape: more experts are better, wide ones do not fit."""
    loss = 3.0 - 0.1 * point["num_experts"] ** 0.3 + 0.01 * point["top_k"]
    speed = 1e5 / point["top_k"] - 10.0 * point["num_experts"] ** 0.5
    over = 1.0 if point["expert_intermediate_size"] == 8192 else -1.0
    found = Evaluation(
        row={"loss": loss, OBJECTIVES[1]: speed}, violations={"memory_over_gib": over}
    )
    if point["num_experts"] == 8 and point["top_k"] == 16:
        found = Evaluation(row={}, reason="no candidate")
    return Trial(number=number, params=point, evaluation=found, wall_s=0.0)


def run(proposer, batches):
    trials = []
    for number in range(batches):
        batch = [evaluated(len(trials) + i, p) for i, p in enumerate(proposer.batch(number))]
        proposer.learn(batch)
        trials += batch
    return trials


def text(point):
    return json.dumps(point, sort_keys=True)


@pytest.mark.parametrize(
    "sampler", ["random", "nsga2", "tpe", pytest.param("gp", marks=pytest.mark.long)]
)
def test_no_point_twice_and_the_same_again(make_space, sampler):
    batches = {"random": 5, "nsga2": 5, "tpe": 6, "gp": 1}[sampler]
    first, second = (run(Proposer(make_space(), OBJECTIVES, sampler, 1), batches) for _ in range(2))
    assert first == second
    assert len({text(t.params) for t in first}) == len(first) == batches * BATCH[sampler]
    assert run(Proposer(make_space(), OBJECTIVES, sampler, 2), batches) != first


@pytest.mark.parametrize("sampler", ["random", "every", "nsga2"])
def test_a_space_is_exhausted_and_then_nothing_is_left(make_space, sampler):
    space = make_space(expert_intermediate_size=[512, 8192], top_k=[2, 16])
    proposer = Proposer(space, OBJECTIVES, sampler, 0)
    trials = run(proposer, 10)
    every = {
        text(space.applicable(dict(zip(space.choices(), point, strict=True))))
        for point in itertools.product(*space.choices().values())
    }
    assert {text(t.params) for t in trials} == every
    assert len(trials) == len(every) == num_designs(space) < space.size
    assert proposer.batch(11) == []


@pytest.mark.parametrize("sampler", ["nsga2", "tpe"])
def test_learning_beats_chance(make_space, sampler):
    """Two bowls in 32,768 points: between their bottoms lies the front."""
    space = make_space(
        num_experts={"low": 1, "high": 64, "step": 1},
        top_k={"low": 1, "high": 16, "step": 1},
        expert_intermediate_size=list(range(1, 33)),
        gate=["flat"],
        placement=["contiguous"],
        precision=["bf16"],
    )

    def bowl(point, at):
        return sum(
            (point[name] / size - x) ** 2
            for name, size, x in zip(
                ("num_experts", "top_k", "expert_intermediate_size"), (64, 16, 32), at, strict=True
            )
        )

    every = np.array(
        [
            [bowl(p, (0.3, 0.3, 0.3)), bowl(p, (0.5, 0.6, 0.7))]
            for p in (
                {"num_experts": e, "top_k": k, "expert_intermediate_size": i}
                for e in range(1, 65)
                for k in range(1, 17)
                for i in range(1, 33)
            )
        ]
    )
    reference = np.full(2, 0.5)
    whole = hypervolume(every, reference)

    def gap(name, seed):
        proposer = Proposer(space, OBJECTIVES, name, seed)
        costs = []
        for number in range(300 // BATCH[name]):
            batch = [
                Trial(
                    number=0,
                    params=p,
                    wall_s=0.0,
                    evaluation=Evaluation(
                        row={
                            "loss": bowl(p, (0.3, 0.3, 0.3)),
                            OBJECTIVES[1]: -bowl(p, (0.5, 0.6, 0.7)),
                        },
                        violations={"memory_over_gib": -1.0},
                    ),
                )
                for p in proposer.batch(number)
            ]
            proposer.learn(batch)
            costs += [costs_of(OBJECTIVES, t.evaluation.row) for t in batch]
        return 1.0 - hypervolume(np.array(costs), reference) / whole

    for seed in range(2):
        assert gap(sampler, seed) < 0.8 * gap("random", seed)


def test_enqueued_and_screened_points_come_first(make_space):
    point = {
        "num_experts": 64,
        "top_k": 4,
        "expert_intermediate_size": 512,
        "gate": "flat",
        "placement": "eplb",
        "num_replicas": 8,
        "parallelism": "tp1",
        "precision": "fp8",
    }
    screened = [point | {"top_k": 8}, point | {"top_k": 2}, point]
    proposer = Proposer(make_space(), OBJECTIVES, "nsga2", 0, [point, {"num_experts": 8}], screened)
    batch = proposer.batch(0)
    assert batch[0] == point
    assert batch[1]["num_experts"] == 8
    assert batch[2:4] == screened[:2], "what was tried does not come again"
    assert len(batch) == BATCH["nsga2"]


def test_what_does_not_apply_is_left_out(make_space):
    for point in Proposer(make_space(), OBJECTIVES, "random", 0).batch(0):
        assert ("num_replicas" in point) == (point["placement"] == "eplb")


def test_samplers_by_budget():
    assert [sampler_for("auto", trials, 10_000) for trials in (10, 100, 101, 9_999, 10_000)] == [
        "tpe",
        "tpe",
        "nsga2",
        "nsga2",
        "every",
    ]
    assert sampler_for("tpe", 10**6, 10) == "tpe"


def test_a_study_that_another_budget_samples_otherwise_is_refused(study, tmp_path):
    """Ten trials begin with TPE; 110 in one go would not, so that the word is needed."""
    study(tmp_path, sampler="auto", num_trials=10)
    with pytest.raises(ConfigError, match="--sampler tpe continues it, --fresh starts over"):
        study(tmp_path, sampler="auto", num_trials=110)
    found = study(tmp_path, sampler="tpe", num_trials=110)
    assert len(found.trials) == 110
    assert read_study(tmp_path).settings["sampler"] == "tpe"


def test_a_budget_for_every_design_goes_through_them_routing_by_routing(
    study, make_space, tmp_path
):
    """No sampler and no screening; what is enqueued still comes first, and it continues."""
    space = {"num_experts": [8, 64], "top_k": [2, 4], "expert_intermediate_size": [512, 1024]}
    options = dict(space=make_space(**space), sampler="auto", screen=1000, num_trials=1000)
    found = study(tmp_path / "a", **options)
    trials = found.trials
    assert len(trials) == num_designs(found.space) < found.space.size
    routings = [(t.params["gate"], t.params["num_experts"], t.params["top_k"]) for t in trials]
    changes = sum(one != other for one, other in itertools.pairwise(routings))
    assert changes + 1 == len(set(routings))
    begun = study(tmp_path / "b", **options | {"num_trials": num_designs(found.space)})
    assert [t.params for t in begun.trials] == [t.params for t in trials]
    stored = read_study(tmp_path / "a")
    assert stored.settings["sampler"] == "every"
    assert stored.user_attrs["screened"] == []
