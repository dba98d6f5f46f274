"""A few layers stand for all of them, and their error is known."""

import pytest

from moesim.design.step import Step
from moesim.simulation.steps.chain import Run, chain_error_s, runs_of, stretches
from moesim.simulation.steps.simulate import simulate_every_layer, simulate_step
from moesim.testing.models import DENSE, NARROW, SPARSE


@pytest.mark.parametrize(
    ("blocks", "runs"),
    [
        ((DENSE,) * 3 + (SPARSE,) * 58, [((DENSE,), 3), ((SPARSE,), 58)]),
        ((NARROW, SPARSE) * 18, [((NARROW, SPARSE), 18)]),
        ((DENSE, SPARSE, DENSE), [((DENSE,), 1), ((SPARSE,), 1), ((DENSE,), 1)]),
        ((NARROW, NARROW, NARROW, SPARSE) * 4, [((NARROW, NARROW, NARROW, SPARSE), 4)]),
        ((SPARSE,) * 2, [((SPARSE,), 2)]),
    ],
)
def test_layers_are_runs_of_patterns(blocks, runs):
    found = runs_of(blocks)
    assert found == [Run(pattern, repeats) for pattern, repeats in runs]
    assert sum((run.pattern * run.repeats for run in found), ()) == blocks


def test_stretches_stand_for_all_repetitions():
    runs = [Run((DENSE,), 2), Run((SPARSE,), 11)]
    # begin, two dense layers, three of eleven others
    found = stretches(runs, [1.0, 2.0, 3.0, 5.0, 6.0, 7.0], 7.5)
    total = sum((s.end_s - s.begin_s) * s.weight for s in found)
    # 1 before, 1 + 1, then 2 for the first and 1 for each of ten more, .5 behind
    assert total == pytest.approx(1.0 + 2.0 + 2.0 + 10.0 + 0.5)


def test_what_stands_for_others_has_their_error():
    """Two repetitions of 4 and 6 seconds (s^2 = 2) stand for eight more, by hand: sqrt(2 (8^2 / 2 +
    8)); a run that is lowered whole adds nothing.
    """
    runs = [Run((DENSE,), 2), Run((SPARSE,), 11)]
    assert chain_error_s(runs, [0.0, 1.0, 2.0, 9.0, 13.0, 19.0]) == pytest.approx(80.0**0.5)
    assert chain_error_s([Run((DENSE,), 3)], [0.0, 1.0, 3.0, 4.0]) == 0.0


@pytest.mark.parametrize("layout", ["tp4", "tp4 ep4", "dp8 ep8"])
@pytest.mark.parametrize("phase", ["prefill", "decode"])
def test_a_short_chain_is_near_the_whole(small, hgx, layout, phase):
    step = (
        Step(prefills=1, new_tokens=2048) if phase == "prefill" else Step(sequences=32, context=1e3)
    )
    served = small(DENSE, *[NARROW, SPARSE] * 6, layout=layout)
    short = simulate_step(served, hgx, step)
    whole = simulate_every_layer(served, hgx, step)
    assert short.time_s == pytest.approx(whole.time_s, rel=0.02)
    for name, seconds in whole.phase_time_s.items():
        if seconds > 0.05 * whole.time_s:
            assert short.phase_time_s[name] == pytest.approx(seconds, rel=0.06), name
