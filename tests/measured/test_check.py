"""The check as a table: columns frozen, statuses honest, rankings only where there is enough."""

import csv

from moesim import Candidate, MoELayer, Parallelism, Workload, load_cluster
from moesim.errors import ConfigError
from moesim.measured.check import (
    CHECK_COLUMNS,
    check_all,
    check_candidate,
    silicon_summary,
    source_scores,
    winner_verdicts,
    write_check,
)
from moesim.measured.kernels.source import Silicon
from moesim.measured.sources import CheckRow


class Nothing:
    """A source that cannot run: what a machine without a GPU has."""

    name = "triton"

    def unavailable_because(self):
        return "no GPU"

    def check(self, candidate, cluster, workload):
        raise AssertionError("an unavailable source must not be asked")


def candidate(width=1536, placement="contiguous"):
    layer = MoELayer(hidden_size=4096, expert_intermediate_size=width, num_experts=128, top_k=8)
    return Candidate(layer=layer, parallelism=Parallelism(ep=8), placement=placement)


def test_columns_are_frozen():
    assert CHECK_COLUMNS == (
        "candidate",
        "role",
        "source",
        "quantity",
        "status",
        "simulated",
        "simulated_low",
        "simulated_high",
        "measured",
        "measured_low",
        "measured_high",
        "error_percent",
        "verdict",
        "limit",
        "in_fit_set",
        "detail",
        "evidence",
        "calibration",
        "seed",
        "engine",
        "version",
        "profile_hash",
        "design",
        "workload",
    )


def test_check_all_and_its_file(tmp_path):
    workload = Workload(num_tokens_per_device=1024, routing="power_law:1.2", seed=7)
    rows = check_all(
        [candidate(), candidate(1552)],
        [candidate(), candidate(placement="balanced")],
        load_cluster("hgx-h100-8"),
        workload,
        {"silicon": Silicon(), "triton": Nothing()},
        lambda _: None,
    )
    assert [(role, r.source, r.status) for role, r in rows] == [
        ("winner", "silicon", "checked"),
        ("winner", "silicon", "not_measured"),
        ("winner", "triton", "unavailable"),
        ("measured", "silicon", "checked"),
    ]
    write_check(tmp_path / "check.csv", rows)
    written = list(csv.DictReader((tmp_path / "check.csv").open()))
    assert tuple(written[0]) == CHECK_COLUMNS
    assert [r["evidence"] for r in written] == ["measured", "simulated", "simulated", "measured"]
    assert {r["seed"] for r in written} == {"7"}
    assert written[2]["detail"] == "no GPU"
    for column in ("evidence", "calibration", "seed", "engine", "version", "profile_hash"):
        assert all(r[column] for r in written), column


def row(number, simulated, measured, fitted=False):
    return CheckRow(
        candidate=str(number),
        source="silicon",
        quantity="experts_time_us",
        status="checked",
        simulated=simulated,
        measured=measured,
        in_fit_set=fitted,
        extra={"row": number},
    )


def test_summary_counts_each_measured_row_once_and_needs_four_for_a_ranking():
    three = [row(1, 10, 10), row(1, 10, 10), row(2, 22, 20), row(3, 30, 30)]
    assert silicon_summary(three)["rows"] == 3
    assert silicon_summary(three)["kendall_tau"] == "n/a"
    four = silicon_summary([*three, row(4, 44, 40)])
    assert four["kendall_tau"] == 1.0
    assert four["regret"] == 0.0
    assert silicon_summary([])["median"] == "n/a"


class Refuses:
    name = "torch-cpu"

    def unavailable_because(self):
        return None

    def check(self, candidate, cluster, workload):
        raise ConfigError("layer: expected one width, got several")


def test_what_a_source_refuses_is_a_row():
    workload = Workload(num_tokens_per_device=8, seed=3)
    (found,) = check_candidate(Refuses(), candidate(), load_cluster("hgx-h100-8"), workload)
    assert (found.status, found.verdict, found.detail) == (
        "not_measured",
        "not_measured",
        "layer: expected one width, got several",
    )
    assert (found.candidate, found.source, found.engine, found.seed) == (
        candidate().label,
        "torch-cpu",
        "torch-cpu",
        3,
    )
    assert len(found.profile_hash) == 12


def timed(name, source, simulated, measured, quantity="layer_time_us", **more):
    return CheckRow(
        candidate=name,
        source=source,
        quantity=quantity,
        status="checked",
        simulated=simulated,
        measured=measured,
        **more,
    )


def numerical(name, error):
    return CheckRow(
        candidate=name,
        source="interpret",
        quantity="max_abs_error",
        status="checked",
        measured=error,
        limit=1.0,
    )


def test_one_verdict_for_each_winner():
    rows = [
        # a phase does not decide
        timed("a", "torch-cpu", 100, 104),
        timed("a", "torch-cpu", 9, 90, "gate_time_us"),
        timed("b", "torch-cpu", 100, 104),
        timed("b", "silicon", 100, 200, "experts_time_us"),
        timed("c", "torch-cpu", 100, 120),
        timed("c", "silicon", 100, 101, "experts_time_us"),
        numerical("d", 0.0),
        numerical("e", 2.0),
        timed("e", "torch-cpu", 100, 101),
        CheckRow(
            candidate="f", source="silicon", quantity="experts_time_us", status="not_measured"
        ),
    ]
    assert winner_verdicts(rows) == {
        "a": "confirmed",
        "b": "refuted",
        "c": "inconclusive",
        "d": "not_measured",
        "e": "refuted",
        "f": "not_measured",
    }


def test_scores_by_source_and_quantity():
    rows = [timed(str(i), "torch-cpu", 110.0 * i, 100.0 * i) for i in range(1, 5)]
    rows += [timed("1", "gloo", 90.0, 100.0, "dispatch_time_us")]
    layers, exchanges = source_scores(rows)
    assert (
        layers["source"],
        layers["quantity"],
        layers["rows"],
        layers["kendall_tau"],
        layers["regret"],
    ) == ("torch-cpu", "layer_time_us", 4, 1.0, 0.0)
    assert round(layers["mape"], 6) == 10.0
    assert (exchanges["quantity"], round(exchanges["bias"], 6), "kendall_tau" in exchanges) == (
        "dispatch_time_us",
        -10.0,
        False,
    )
