"""What a search's answer says is what its trials say."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moesim.search.pareto import compromise, front
from moesim.search.points import num_designs
from moesim.search.session.answer import study_answer
from moesim.search.session.watch import importances, write_study


@given(costs=st.lists(st.tuples(*[st.integers(1, 9)] * 3), min_size=1, max_size=20))
def test_a_compromise_is_on_the_front_and_no_scale_moves_it(costs):
    costs = np.array(costs, dtype=float)
    found = costs[front(costs)]
    assert compromise(found) == compromise(found * [1e6, 1.0, 1e-3])
    # an end of two ends gives up everything of the other
    ends = np.array([[1.0, 9.0], [3.0, 3.0], [9.0, 1.0]])
    assert compromise(ends) == compromise(-1 / ends) == 1


def test_the_answer_names_the_design_its_ties_and_the_search(whole):
    answer, chosen = study_answer(whole), whole.chosen()
    others = whole.pareto_trials()
    assert answer.build.startswith(" ".join(chosen.evaluation.row["candidate"].split()[:3]))
    assert f"loss {chosen.evaluation.row['loss']:.3f}" in answer.build
    ties = whole.num_ties(chosen, others)
    said = f"{ties} of the {len(others) - 1} others" if ties else "tell it apart from all"
    assert said in answer.confidence
    assert answer.confidence.endswith("No winner was checked against a measurement.")
    assert "moesim check winners.csv" in answer.next_step
    assert any("hgx-h100-8" in said for said in answer.assumptions)


@pytest.mark.parametrize(("parallelism", "doubted"), [("ep2tp4", True), ("ep4tp2", False)])
def test_a_design_that_engines_may_refuse_is_built_with_a_word(
    study, make_space, tmp_path, parallelism, doubted
):
    """Experts of 768 neurons are six blocks, which four devices do not share."""
    choices = {name: make_space().choices()[name][:1] for name in ("top_k", "gate", "placement")}
    space = make_space(
        **choices,
        num_experts=[64],
        expert_intermediate_size=[768],
        num_replicas=[0],
        precision=["fp8"],
        parallelism=[parallelism],
    )
    said = study_answer(study(tmp_path, space=space, num_trials=10)).confidence
    assert ("; it may not run as it is: experts of 768 over tp 4 are 192 wide" in said) == doubted


def test_checks_of_the_chosen_design_change_what_comes_next(whole):
    key = whole.chosen().evaluation.row["design"]
    row = {"role": "winner", "design": key, "quantity": "experts_time_us", "detail": ""}
    confirmed = study_answer(whole, [row | {"verdict": "confirmed"}])
    assert confirmed.confidence.endswith("1 of 1 winner has a measurement: 1 confirmed.")
    assert confirmed.next_step.startswith("Measure it end to end")
    refuted = study_answer(whole, [row | {"verdict": "refuted"}])
    assert refuted.next_step.startswith("Find out why 1 of the winners are refuted")


@pytest.mark.parametrize("state", ["over_memory", "infeasible"])
def test_a_study_without_a_candidate_says_so(whole, state):
    broken = replace(whole, trials=[t for t in whole.trials if t.state == state][:5])
    answer = study_answer(broken)
    assert answer.build.startswith(f"Nothing yet: none of {len(broken.trials)} trials is feasible")
    assert study_answer(replace(whole, trials=[])).build.endswith("(no trial has ended).")


def test_winners_hold_the_chosen_design_and_both_ends(whole):
    found = whole.pareto_trials()
    for limit in range(2, len(found) + 2):
        winners = whole.winners(limit)
        assert len(winners) == min(limit, len(found))
        assert any(t is whole.chosen() for t in winners)
        places = [found.index(t) for t in winners]
        assert places == sorted(set(places))
        if limit > 2:
            assert (places[0], places[-1]) == (0, len(found) - 1)


SMALL = {
    "num_experts": [64],
    "top_k": [4, 8],
    "expert_intermediate_size": [512],
    "gate": ["flat"],
    "placement": ["eplb", "contiguous", "balanced"],
    "num_replicas": [8, 0],
    "parallelism": ["ep1tp8", "ep8"],
    "precision": ["bf16"],
}


@pytest.fixture(scope="module")
def exhausted(study, make_space, tmp_path_factory):
    return study(
        tmp_path_factory.mktemp("exhausted"),
        space=make_space(**SMALL),
        sampler="every",
        num_trials=1000,
    )


def test_placements_that_cannot_differ_are_one_design(exhausted):
    """One rank holds all experts, however they are placed and copied."""
    space = exhausted.space
    # of each top-k: one on a single rank; on eight eplb with and without copies, and two others
    assert num_designs(space) == len(exhausted.trials) == 2 * (1 + 2 + 2)
    alone = [t for t in exhausted.trials if t.params["parallelism"] == "ep1tp8"]
    assert [set(t.params) & {"placement", "num_replicas"} for t in alone] == [set(), set()]
    placed = {(t.evaluation.row["placement"], t.evaluation.row["num_replicas"]) for t in alone}
    assert placed == {("contiguous", 0)}


def test_designs_alike_but_for_their_placement_are_one_on_the_front(whole):
    first = next(t for t in whole.pareto_trials() if "placement" in t.params)
    twin = replace(
        first,
        number=10_000,
        params=first.params | {"placement": "balanced"},
        evaluation=replace(
            first.evaluation, row=first.evaluation.row | {"design": "another", "num_replicas": 4}
        ),
    )
    doubled = replace(whole, trials=[*whole.trials, twin])
    assert len(doubled.pareto_trials()) == len(whole.pareto_trials())
    wider = replace(twin, params=twin.params | {"top_k": 1})
    assert len(replace(whole, trials=[*whole.trials, wider]).pareto_trials()) == 1 + len(
        whole.pareto_trials()
    )


def test_an_exhausted_space_says_so(exhausted, tmp_path, capsys):
    assert "all 10 designs of the space were tried" in study_answer(exhausted).next_step
    write_study(exhausted, tmp_path)
    assert "all 10 designs of the space were tried" in " ".join(capsys.readouterr().err.split())


def test_importance_is_not_reported_where_there_can_be_none(whole):
    rows = importances(whole)
    of_loss = {row["parameter"]: row for row in rows if row["objective"] == "loss"}
    assert of_loss["placement"] == {
        "objective": "loss",
        "parameter": "placement",
        "importance": None,
        "why_not": "loss cannot depend on it",
    }
    shares = [row["importance"] for row in of_loss.values() if row["importance"] is not None]
    assert sum(shares) == pytest.approx(1.0)
    rates = [row for row in rows if row["objective"] == "layer_tokens_per_s_per_device"]
    assert all(row["importance"] is not None for row in rates)
