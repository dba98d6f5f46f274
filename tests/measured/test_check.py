"""The check as a table: columns frozen, statuses honest, rankings only where there is enough."""

import csv

from moesim import Candidate, MoELayer, Parallelism, Workload, load_cluster
from moesim.measured.check import CHECK_COLUMNS, check_all, silicon_summary, write_check
from moesim.measured.silicon_source import Silicon
from moesim.measured.sources import CheckRow


class Nothing:
    """A source that cannot run: what a machine without a GPU has."""

    name = "triton_gpu"

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
    )


def test_check_all_and_its_file(tmp_path):
    workload = Workload(num_tokens_per_device=1024, routing="power_law:1.2", seed=7)
    rows = check_all(
        [candidate(), candidate(1552)],
        [candidate(), candidate(placement="balanced")],
        load_cluster("hgx-h100-8"),
        workload,
        {"silicon": Silicon(), "triton_gpu": Nothing()},
        lambda _: None,
    )
    assert [(role, r.source, r.status) for role, r in rows] == [
        ("winner", "silicon", "checked"),
        ("winner", "silicon", "not_measured"),
        ("winner", "triton_gpu", "unavailable"),
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
