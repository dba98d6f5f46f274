"""Tabulated steps are near simulated ones, whatever a request loop asks."""

import pytest

from moesim.design.step import Step
from moesim.simulation.steps.simulate import simulate_step
from moesim.simulation.steps.times import PER_OCTAVE, StepTable, _around, _between

ASKED = [
    dict(prefill_tokens=0, prefill_context=0.0, sequences=37, context=5000.0),
    dict(prefill_tokens=3000, prefill_context=1499.5, sequences=0, context=0.0),
    dict(prefill_tokens=777, prefill_context=4000.0, sequences=21, context=900.0),
    dict(prefill_tokens=0, prefill_context=0.0, sequences=3, context=123.0),
    dict(prefill_tokens=0, prefill_context=0.0, sequences=24, context=800.0, tokens_per_sequence=2),
]


@pytest.mark.parametrize("layout", ["tp4", "dp8 ep8"])
@pytest.mark.parametrize("asked", ASKED, ids=range(len(ASKED)))
def test_a_table_is_near_the_simulation(small, hgx, layout, asked):
    served = small(layout=layout)
    table = StepTable(served, hgx)
    new = asked["prefill_tokens"]
    step = Step(
        prefills=1.0 if new else 0.0,
        new_tokens=new,
        cached_tokens=max(asked["prefill_context"] - (new - 1) / 2, 0.0) if new else 0.0,
        sequences=asked["sequences"],
        context=asked["context"],
        tokens_per_sequence=asked.get("tokens_per_sequence", 1),
    )
    layers = served.spec.num_layers if new else 0
    expected = table.engine.time_s(
        simulate_step(served, hgx, step).time_s, asked["sequences"] + (new > 0), layers
    )
    assert table.step_s(**asked) == pytest.approx(expected, rel=0.04)


def test_nodes_are_simulated_once(small, hgx):
    table = StepTable(small(), hgx)
    for sequences in (40, 41, 42, 43, 44):
        table.step_s(prefill_tokens=0, prefill_context=0, sequences=sequences, context=3000)
    assert table.simulated == 2


def test_several_prompts_cost_less_attention_than_one(small, hgx):
    table = StepTable(small(), hgx)
    one = table.step_s(prefill_tokens=8192, prefill_context=4095.5, sequences=0, context=0)
    eight = table.step_s(prefill_tokens=8192, prefill_context=511.5, sequences=0, context=0)
    assert eight < one


def test_a_prompt_of_one_rank_has_the_experts_of_all(small, hgx):
    table = StepTable(small(layout="dp8 ep8"), hgx)
    asked = dict(prefill_tokens=4096, prefill_context=2047.5, sequences=0, context=0)
    everywhere = table.step_s(**asked)
    alone = table.among(512.0).step_s(**asked)
    eighth = table.step_s(**asked | dict(prefill_tokens=512, prefill_context=255.5))
    assert eighth < alone < everywhere
    # the rank computes all but its experts for eight times as many tokens
    assert alone - eighth == pytest.approx(
        table._own_s(4096)
        - table._own_s(512)
        + table._looking(4096, 2047.5, 0, 0.0, 1)
        - table._looking(512, 255.5, 0, 0.0, 1)
    )
    assert table.among(4096.0).step_s(**asked) == everywhere


@pytest.mark.parametrize("number", [0, 1, 7, 8, 9, 11, 100, 1023, 4097])
def test_numbers_lie_between_nodes(number):
    assert sum(node * share for node, share in _between(number, PER_OCTAVE)) == pytest.approx(
        number
    )
    assert sum(node * share for node, share in _around(float(number))) == pytest.approx(number)
    assert sum(share for _, share in _between(number, PER_OCTAVE)) == pytest.approx(1.0)
