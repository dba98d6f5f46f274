"""What a search's answer says is what its trials say."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moesim.search.pareto import compromise, front
from moesim.search.session.answer import study_answer


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
