"""Timelines of days with failures: slices sum up to what the days came to."""

from pathlib import Path

import pytest

import moesim
from moesim.operations.failure_rates import DAY_S
from moesim.operations.plan import planned_training
from moesim.operations.plan_file import read_plan
from moesim.operations.plan_serving import planned_serving
from moesim.operations.serving_days import simulate_serving_days
from moesim.operations.training_days import simulate_days
from moesim.report.chrome_trace import write_trace
from moesim.testing.traces import CheckedTrace
from moesim.timeline.days import JOB, days_sheet, serving_days_sheet

STUDIES = Path(moesim.__file__).parent.parent / "studies"


@pytest.mark.parametrize("seed", range(3))
def test_states_sum_up_to_the_days(seed, tmp_path):
    plan = read_plan(STUDIES / "operate_plan.toml")
    result = simulate_days(planned_training(plan, "plan"), seed)
    found = CheckedTrace(write_trace(tmp_path / "t.json", days_sheet(result)))
    seconds = found.seconds(*JOB)
    assert result.lost_steps > 0
    steps = {"useful": 0, "lost": 0}
    for one in found.slices[JOB]:
        if one["cat"] in steps:
            steps[one["cat"]] += one["args"]["steps"]
    assert steps == {"useful": result.useful_steps, "lost": result.lost_steps}
    extra = result.slow_s + result.replication_s
    computed = result.computed_steps * result.job.step_s + extra
    assert seconds["useful"] + seconds["lost"] == pytest.approx(computed, rel=1e-3)
    assert seconds["checkpoint"] == pytest.approx(result.checkpoint_s, rel=1e-3)
    assert seconds["down"] == pytest.approx(result.down_s, rel=1e-3)
    assert seconds.get("cut", 0.0) == pytest.approx(result.cut_s, rel=1e-3)
    assert sum(seconds.values()) == pytest.approx(result.days * DAY_S, rel=1e-3)
    assert found.facts["days_shown"] == result.days
    assert len(found.slices[JOB]) < 200_000


def test_stops_of_a_server_are_those_of_its_availability(tmp_path):
    plan = read_plan(STUDIES / "operate_serving.toml")
    result = simulate_serving_days(planned_serving(plan, "plan"), 0)
    found = CheckedTrace(write_trace(tmp_path / "t.json", serving_days_sheet(result)))
    seconds = found.seconds(*JOB)
    assert seconds["down"] == pytest.approx(sum(result.down_s_by_cause.values()), rel=1e-3)
    tokens = sum(
        one["dur"] * 1e-6 * one["args"]["tokens_per_s"]
        for one in found.slices[JOB]
        if one["cat"] == "serving"
    )
    assert tokens == pytest.approx(result.tokens, rel=1e-3)
