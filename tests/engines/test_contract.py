"""Every engine keeps the contract of `moesim.testing.engines`, and the contract catches engines
that do not.
"""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest

from moesim.engines import ENGINES
from moesim.engines.run import run
from moesim.errors import UnknownNameError
from moesim.testing import check_engine
from moesim.testing.engine_cases import CASES
from moesim.testing.engines import CHECKS, tiny_demand_waits_its_turn

KINDS = {"bound": "bound", "flow": "fluid", "event": "chunked", "event_compiled": "chunked"}


def name_of(value):
    return getattr(value, "name", None) or getattr(value, "__name__", None)


@pytest.mark.parametrize("case", CASES, ids=name_of)
@pytest.mark.parametrize("check", CHECKS, ids=name_of)
@pytest.mark.parametrize("engine", ENGINES)
def test_contract(engine, check, case):
    check(lambda program: run(program, engine), KINDS[engine], case)


@pytest.mark.parametrize("engine", ENGINES)
def test_tiny_demand_on_a_saturated_resource_waits_its_turn(engine):
    tiny_demand_waits_its_turn(lambda program: run(program, engine))


@pytest.mark.parametrize("engine", ENGINES)
def test_engines_say_who_they_are(engine):
    assert all(run(case.program, engine).engine == engine for case in CASES)


def late(program):
    found = run(program, "flow")
    return replace(found, end_s_N=found.end_s_N + 1e-6)


def lost(program):
    found = run(program, "flow")
    return replace(found, busy_s_R=found.busy_s_R * 0.5)


def whole_seconds(program):
    found = run(program, "flow")
    return replace(found, start_s_N=found.start_s_N.astype(np.int64))


def boastful(program):
    return replace(run(program, "flow"), exact=False)


@pytest.mark.parametrize(
    ("engine", "message"),
    [
        (
            late,
            (
                "expected a resource that nobody uses: start and end of each op at (0, 1) to be "
                "0.25, got 0.250001"
            ),
        ),
        (lost, "expected roofline of one op: the work of each resource at (0,) to be 8, got 4"),
        (
            whole_seconds,
            r"expected empty: start_s_N to be float64 of shape (0,), got ('int64', (0,))",
        ),
        (boastful, "expected empty: Timeline.exact to be True, got False"),
    ],
)
def test_the_suite_catches(engine, message):
    with pytest.raises(AssertionError) as caught:
        check_engine(engine, kind="fluid")
    assert str(caught.value) == message


def test_the_whole_suite_at_once():
    check_engine(partial(run, engine="flow"), kind="fluid")
    with pytest.raises(
        ValueError, match=r"^kind: expected one of bound, fluid, chunked, got 'fast'$"
    ):
        check_engine(partial(run, engine="flow"), kind="fast")


def test_unknown_engine_names_the_near_one():
    with pytest.raises(UnknownNameError, match=r"^unknown engine 'flwo': did you mean flow\?$"):
        run(CASES[0].program, "flwo")
