"""Winners out of a table, simulated again; and what a comparison says of one."""

from dataclasses import replace

import pytest

from moesim import Workload, simulate
from moesim.design.schedule import Schedule
from moesim.errors import ConfigError
from moesim.measured.sources import CheckRow
from moesim.measured.winners import read_winners
from moesim.model import Precision
from moesim.model.gate import Gate
from moesim.report.tables import write_csv

WORK = Workload(num_tokens_per_device=256, routing="zipf:0.8", seed=3)
CASES = {
    "plain": {},
    "groups, fp8": {"gate": Gate.parse("group_limited:4:2"), "precision": Precision.named("fp8")},
    "widths, capacity": {
        "expert_intermediate_size": (512,) * 8 + (256,) * 8,
        "capacity_factor": 1.25,
    },
    "replicas": {"placement": "eplb", "num_replicas": 8, "num_shared_experts": 1},
}


@pytest.mark.parametrize("case", CASES)
def test_a_row_read_back_simulates_to_the_same_row(hgx, make_candidate, tmp_path, case):
    candidate = replace(
        make_candidate(**{"num_experts": 16, "top_k": 2, **CASES[case]}),
        schedule=Schedule(exchange="deepep_normal", num_micro_batches=2),
    )
    row = simulate(candidate, hgx, WORK).row()
    write_csv(tmp_path / "winners.csv", [row])
    (winner,) = read_winners(tmp_path / "winners.csv")
    assert simulate(winner.candidate, winner.cluster, winner.workload).row() == row


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "hidden_size",
            "hidden",
            "winners.csv: hidden_size: expected this column, got candidate, ",
        ),
        (",flat,", ",flit,", "winners.csv: row 0: gate: expected 'flat'"),
        (",zipf:0.8,", ",zopf,", "winners.csv: row 0: routing: expected"),
        (",hgx-h100-8,", ",hgx-h100-80,", "winners.csv: row 0: unknown cluster 'hgx-h100-80'"),
    ],
)
def test_bad_tables_are_one_line(hgx, make_candidate, tmp_path, old, new, message):
    path = tmp_path / "winners.csv"
    write_csv(path, [simulate(make_candidate(num_experts=16, top_k=2), hgx, WORK).row()])
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    with pytest.raises(ConfigError) as caught:
        read_winners(path)
    assert str(caught.value).startswith(message)


def row(**fields):
    return CheckRow(
        candidate="x", source="silicon", quantity="experts_time_us", status="checked", **fields
    )


@pytest.mark.parametrize(
    ("fields", "verdict"),
    [
        (
            {"simulated": 100.0, "simulated_low": 90.0, "simulated_high": 134.0, "measured": 133.0},
            "confirmed",
        ),
        # a wide interval confirms nothing, and refutes nothing inside it
        (
            {"simulated": 100.0, "simulated_low": 90.0, "simulated_high": 150.0, "measured": 149.0},
            "inconclusive",
        ),
        (
            {"simulated": 100.0, "simulated_low": 10.0, "simulated_high": 900.0, "measured": 100.1},
            "confirmed",
        ),
        (
            {"simulated": 100.0, "simulated_low": 99.0, "simulated_high": 101.0, "measured": 110.0},
            "confirmed",
        ),
        (
            {"simulated": 100.0, "simulated_low": 99.0, "simulated_high": 101.0, "measured": 125.0},
            "inconclusive",
        ),
        (
            {
                "simulated": 150.0,
                "simulated_low": 140.0,
                "simulated_high": 160.0,
                "measured": 100.0,
            },
            "refuted",
        ),
        ({"simulated": 100.0}, "not_measured"),
        ({"measured": 0.01, "limit": 0.02}, "confirmed"),
        ({"measured": 0.03, "limit": 0.02}, "refuted"),
    ],
)
def test_verdicts(fields, verdict):
    assert row(**fields).verdict == verdict
