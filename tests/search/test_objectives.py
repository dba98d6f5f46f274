"""What may be asked for: objectives, bounds on columns, and what they mean for a trial."""

import math

import numpy as np
import pytest

from moesim.errors import ConfigError, UnknownNameError
from moesim.hardware.economics import PRICED
from moesim.search.objectives import OBJECTIVES, Constraint, costs_of


@pytest.mark.parametrize(
    ("text", "name", "sign", "bound"),
    [
        ("loss<=1.9", "loss", "<=", 1.9),
        (" layer_tokens_per_s_per_device >= 1e5 ", "layer_tokens_per_s_per_device", ">=", 1e5),
    ],
)
def test_constraints_are_read(text, name, sign, bound):
    found = Constraint.parse(text)
    assert (found.name, found.sign, found.bound) == (name, sign, bound)
    assert Constraint.parse(str(found)) == found


@pytest.mark.parametrize(
    "text", ["", "loss", "loss < 1", "loss <= x", "loss <= nan", "loss <= inf", "1 <= loss"]
)
def test_other_forms_are_refused(text):
    with pytest.raises(ConfigError, match="expected 'NAME <= NUMBER' or 'NAME >= NUMBER'"):
        Constraint.parse(text)


def test_an_unknown_column_is_refused():
    with pytest.raises(
        UnknownNameError, match="unknown constraint 'layer_time': did you mean layer_time_us"
    ):
        Constraint.parse("layer_time <= 3")


def test_violations_are_shares_of_the_bound():
    most, least = (
        Constraint.parse("layer_time_us <= 200"),
        Constraint.parse("watts_per_device >= 100"),
    )
    assert most.violation(250.0) == 0.25
    assert most.violation(200.0) == 0.0
    assert most.violation(150.0) == -0.25
    assert least.violation(50.0) == 0.5
    assert most.violation(math.nan) == math.inf
    assert most.violation(np.array([250.0, math.nan, 100.0])).tolist() == [0.25, math.inf, -0.5]


def test_costs_are_less_is_better():
    columns = {"loss": 2.0, "layer_tokens_per_s_per_device": 5.0}
    assert costs_of(["loss", "layer_tokens_per_s_per_device"], columns) == [2.0, -5.0]


def test_every_objective_can_be_searched(study, tmp_path):
    """Each is a column of every trial with a result, finite and > 0."""
    found = study(tmp_path, objectives=list(OBJECTIVES), num_trials=30)
    for trial in found.trials:
        if not trial.evaluation.reason:
            assert all(0 < value < math.inf for value in trial.evaluation.values(list(OBJECTIVES)))
            row = trial.row()
            assert row["layer_joules_per_token"] == pytest.approx(
                row["wall_watts_per_device"]
                * row["layer_time_us"]
                * 1e-6
                / row["num_tokens_per_device"]
            )
            assert row["layer_usd_per_million_tokens"] == pytest.approx(
                24.0 / 3600 * row["layer_time_us"] / row["num_tokens_per_device"] / 8
            )
            assert set(PRICED) <= set(row)
    assert found.pareto_trials()


def test_constraints_decide_what_is_feasible(study, whole, tmp_path):
    times = [t.row()["layer_time_us"] for t in whole.trials if t.feasible]
    bound = float(np.median(times))
    found = study(
        tmp_path, num_trials=120, constraints=[f"layer_time_us <= {bound}", "loss <= 2.5"]
    )
    states = {t.state for t in found.trials}
    assert {"fits", "over_constraint"} <= states
    for trial in found.trials:
        row = trial.row()
        if trial.state == "over_constraint":
            assert row["layer_time_us"] > bound or row["loss"] > 2.5
            assert row["broken_constraints"]
        elif trial.state == "fits":
            assert row["layer_time_us"] <= bound
            assert row["loss"] <= 2.5
            assert not row["broken_constraints"]
    assert all(t.evaluation.row["layer_time_us"] <= bound for t in found.pareto_trials())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"constraints": ["loss < 3"]}, "constraint: expected"),
        ({"objectives": ["loss", "loss"]}, "expected each objective once"),
        ({"economics": "nowhere"}, "unknown economics 'nowhere'"),
        ({"sampler": "nsga3"}, "unknown sampler 'nsga3': did you mean nsga2"),
        ({"screen": -1}, "study.screen"),
    ],
)
def test_wrong_options(study, tmp_path, options, message):
    with pytest.raises(ConfigError, match=message):
        study(tmp_path, **options)
    assert not (tmp_path / "study.journal").exists()
