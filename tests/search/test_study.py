"""Studies: the same trials however they were run, and what a trial leaves behind."""

import numpy as np
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.study import load_study
from optuna.trial import TrialState

from moesim import Workload, simulate
from moesim.errors import ConfigError, UnknownNameError
from moesim.search.study import TRIAL_COLUMNS


def test_one_worker_or_two(study, rows, whole, tmp_path):
    assert rows(study(tmp_path, num_trials=120, num_workers=2)) == rows(whole)


def test_fewer_trials_are_the_first_of_more(study, rows, whole, tmp_path):
    for count in (1, 49, 50, 51):
        assert rows(study(tmp_path / str(count), num_trials=count)) == rows(whole)[:count]


def test_another_seed_asks_for_other_points(study, rows, whole, tmp_path):
    assert rows(study(tmp_path, seed=4)) != rows(whole)[:60]


def test_all_three_states_occur_and_say_what_they_mean(whole):
    states = {row["state"]: row for row in (t.row() for t in whole.trials)}
    assert set(states) == {"fits", "over_memory", "infeasible"}
    assert states["fits"]["memory_over_gib"] <= 0 < states["over_memory"]["memory_over_gib"]
    assert states["infeasible"]["memory_over_gib"] is None
    for trial in whole.trials:
        assert tuple(trial.row()) == TRIAL_COLUMNS
        assert bool(trial.row()["reason"]) == (trial.row()["state"] == "infeasible")
        assert trial.wall_s >= 0
    assert [t.number for t in whole.trials] == list(range(120))


def test_points_that_do_not_go_together_are_rows_with_the_reason(whole):
    reasons = {
        (t.params["num_experts"], t.params["top_k"], t.params["gate"]): t.evaluation.reason
        for t in whole.trials
    }
    assert reasons[8, 16, "flat"] == "layer.top_k: expected at most num_experts = 8, got 16"
    for (experts, top_k, gate), reason in reasons.items():
        kept = experts // 2 if gate != "flat" else experts
        assert bool(reason) == (top_k > kept), (experts, top_k, gate, reason)
    trial = next(t for t in whole.trials if t.evaluation.reason)
    assert {name: trial.row()[name] for name in trial.params} == trial.params
    assert trial.row()["layer_time_us"] is None


def test_rows_are_those_of_the_simulation(whole, hgx):
    trial = next(t for t in whole.trials if t.feasible)
    candidate, _ = whole.space.decode(trial.params, hgx)
    expected = simulate(
        candidate, hgx, Workload(num_tokens_per_device=32, phase="decode", routing="zipf:0.8")
    ).row()
    row = trial.row()
    for name, value in expected.items():
        assert row[name] == value or name == "num_replicas", name


def test_the_journal_is_optuna_s_and_holds_the_memory_constraint(study, whole, tmp_path):
    study(tmp_path)
    kept = load_study(
        study_name="moesim",
        storage=JournalStorage(JournalFileBackend(str(tmp_path / "study.journal"))),
    ).trials
    assert len(kept) == 60
    for record, trial in zip(kept, whole.trials, strict=False):
        assert record.params == trial.params
        if trial.evaluation.reason:
            assert record.state == TrialState.FAIL
        else:
            assert record.state == TrialState.COMPLETE
            assert record.constraints == trial.evaluation.violations
            assert record.values == trial.evaluation.values(
                ["loss", "layer_tokens_per_s_per_device"]
            )
    assert any(r.constraints.get("memory_over_gib", 0) > 0 for r in kept)


def test_pareto_front_against_brute_force(whole):
    feasible = [t for t in whole.trials if t.row()["state"] == "fits"]
    best = set()
    points = [
        (t.evaluation.row["loss"], -t.evaluation.row["layer_tokens_per_s_per_device"])
        for t in feasible
    ]
    for trial, (loss, cost) in zip(feasible, points, strict=True):
        if not any(
            other[0] <= loss and other[1] <= cost and other != (loss, cost) for other in points
        ):
            best.add(trial.evaluation.row["candidate"])
    found = whole.pareto_trials()
    assert {t.evaluation.row["candidate"] for t in found} == best
    assert len(found) == len(best) > 1, "each candidate once"
    losses = [t.evaluation.row["loss"] for t in found]
    assert losses == sorted(losses)


def test_pareto_candidates_are_spread_with_both_ends(whole):
    every, four = whole.pareto(), whole.pareto(limit=4)
    assert len(four) == min(4, len(every))
    assert (four[0], four[-1]) == (every[0], every[-1])
    assert [c for c in every if c in four] == four


def test_ties_are_what_the_intervals_do_not_tell_apart(whole):
    among = whole.pareto_trials()
    for trial in among:
        row, ties = trial.evaluation.row, 0
        for other in (t.evaluation.row for t in among if t is not trial):
            apart = (
                other["loss_low"] > row["loss_high"]
                or other["loss_high"] < row["loss_low"]
                or other["layer_time_low_us"] > row["layer_time_high_us"]
                or other["layer_time_high_us"] < row["layer_time_low_us"]
            )
            ties += not apart
        assert whole.num_ties(trial, among) == ties


def test_on_trial_sees_every_trial_in_order_recorded_ones_too(study, tmp_path):
    seen = []
    study(tmp_path, num_trials=20)
    study(tmp_path, num_trials=60, on_trial=lambda t: seen.append(t.number))
    assert seen == list(range(60))


def test_enqueued_points_come_first(study, tmp_path):
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
    found = study(tmp_path, enqueue=[point, {"num_experts": 8, "top_k": 2}], num_trials=3)
    assert found.trials[0].params == point
    assert (found.trials[1].params["num_experts"], found.trials[1].params["top_k"]) == (8, 2)


def test_the_search_prefers_what_fits(study, tmp_path):
    """Memory steers: of 250 trials the last hundred are over memory less often than the first."""
    found = study(tmp_path, num_trials=250)
    over = np.array([t.state == "over_memory" for t in found.trials])
    assert over[:100].mean() > 1.2 * over[-100:].mean()


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (
            {"objectives": ["loss", "layer_time"]},
            UnknownNameError,
            "unknown objective 'layer_time': did you mean layer_time_us?",
        ),
        ({"objectives": []}, ConfigError, None),
        (
            {"num_trials": 0},
            ConfigError,
            "study: expected 1 to 1,048,576 trials and 1 to 1,024 workers, got 0 and 1",
        ),
        (
            {"num_workers": 0},
            ConfigError,
            "study: expected 1 to 1,048,576 trials and 1 to 1,024 workers, got 60 and 0",
        ),
        ({"engine": "flwo"}, UnknownNameError, "unknown engine 'flwo': did you mean flow?"),
        ({"seed": -1}, ConfigError, None),
        ({"enqueue": [{"num_experts": 7}]}, ConfigError, None),
        ({"enqueue": [{"num_expert": 8}]}, ConfigError, None),
    ],
)
def test_wrong_options(study, tmp_path, options, error, message):
    """Said before the first trial, in one line, and not recorded as 60 points that cannot be
    simulated.
    """
    with pytest.raises(error) as caught:
        study(tmp_path / "out", **options)
    assert "\n" not in str(caught.value)
    assert message is None or str(caught.value) == message


def test_designs_that_differ_in_one_choice_are_all_on_the_front(study, tmp_path, make_space):
    """Dropless, capacity 1 and capacity 1.25 trade loss against throughput; their label once left
    the capacity out.
    """
    space = make_space(
        capacity_factor=[0.0, 1.0, 1.25],
        num_experts=[64],
        top_k=[8],
        expert_intermediate_size=[1024],
        gate=["flat"],
        placement=["contiguous"],
        num_replicas=[0],
        precision=["bf16"],
    )
    workload = Workload(num_tokens_per_device=2048, routing="zipf:0.8")
    found = study(tmp_path, space=space, num_trials=3, workload=workload)
    front = found.pareto()
    assert sorted(c.layer.capacity_factor or 0.0 for c in front) == [0.0, 1.0, 1.25]
    assert len({c.label for c in front}) == len({c.key for c in front}) == 3


def test_what_does_not_decide_the_design_is_no_second_winner(study, tmp_path, make_space):
    """A point that spells the cluster's own layout in words is the design that names it
    in numbers.
    """
    space = make_space(
        parallelism=["ep8", "tp1"],
        num_experts=[64],
        top_k=[8],
        expert_intermediate_size=[1024],
        gate=["flat"],
        placement=["contiguous"],
        num_replicas=[0],
        precision=["bf16"],
    )
    found = study(tmp_path, space=space, num_trials=2)
    assert len(found.trials) == 2
    assert len(found.pareto()) == 1
