"""Every installed source keeps the contract of `moesim.testing.sources`, which catches those that
do not.
"""

import pytest

from moesim.errors import ConfigError
from moesim.measured.sources import CheckRow, installed_sources
from moesim.testing import check_source
from moesim.testing.sources import CASES, CHECKS, ask, name_and_reason_are_text

pytestmark = pytest.mark.full

NAMES = ("gloo", "interpret", "silicon", "torch-cpu", "triton")
#: sources that start processes for every check, and what they are asked
SLOW, ASKED = ("gloo", "interpret"), ("plain", "different widths", "odd product keys", "one expert")


@pytest.fixture(scope="module")
def sources():
    found = installed_sources()
    found["torch-cpu"].budget_s = 1.0
    return found


def test_the_sources_are_found_by_their_names(sources):
    assert set(NAMES) <= set(sources)
    assert {name: source.name for name, source in sources.items()} == {
        name: name for name in sources
    }


@pytest.mark.parametrize("name", NAMES)
def test_a_source_that_is_not_here_says_why_in_one_line(sources, name):
    name_and_reason_are_text(sources[name])


@pytest.mark.parametrize(
    ("name", "case"),
    [(name, case) for name in NAMES for case in CASES if name not in SLOW or case in ASKED],
)
def test_rows_keep_the_contract(sources, name, case):
    rows = ask(sources[name], CASES[case])  # once for all checks: it may take seconds
    for check in CHECKS:
        check(sources[name], CASES[case], rows)
    for row in rows:
        if row.status == "checked" and row.is_time:
            assert (row.measured_low is None) == (name == "silicon")  # a table of means
    if name == "interpret":
        assert not any(row.is_time for row in rows)


class Toy:
    """A source that keeps the contract, but for what a test changes."""

    name = "toy"

    def __init__(self, reason=None, **changed):
        self.reason, self.changed = reason, changed

    def unavailable_because(self):
        return self.reason

    def check(self, candidate, cluster, workload):
        if candidate.layer.num_experts == 1:
            raise ConfigError("toy: expected two experts, got 1")
        good = {
            "candidate": candidate.label,
            "source": "toy",
            "quantity": "layer_time_us",
            "status": "checked",
            "simulated": 10.0,
            "simulated_low": 9.0,
            "simulated_high": 11.0,
            "measured": 10.0,
            "measured_low": 9.5,
            "measured_high": 10.5,
            "detail": "a toy",
            "engine": "flow",
            "seed": workload.seed,
        }
        return [CheckRow(**(good | self.changed))]


def test_a_good_source_passes():
    check_source(Toy())
    check_source(Toy(reason="not here"))


@pytest.mark.parametrize(
    ("toy", "message"),
    [
        (Toy(reason=""), "expected toy: a reason of one line, got ''"),
        (Toy(quantity="speed"), "expected toy: a quantity of "),
        (Toy(detail="two\nlines"), "expected toy: a detail of one line, got 'two\\nlines'"),
        (Toy(seed=1), "expected toy: a row of "),
        (
            Toy(status="not_measured"),
            "expected toy: a measured value exactly where the status is checked, got ",
        ),
        (Toy(simulated_low=12.0), "expected toy: P10 <= simulated <= P90, got (12.0, 10.0, 11.0)"),
        (
            Toy(measured_low=None, measured_high=None),
            "expected toy: a detail that says 'a mean', got 'a toy'",
        ),
    ],
)
def test_the_suite_catches(toy, message):
    with pytest.raises(AssertionError) as caught:
        check_source(toy, ["plain"])
    assert str(caught.value).startswith(message)
