"""What every source of measurements keeps to, whatever it measures: the installed ones, and those a user adds."""

import pytest

from moesim.design.candidate import Candidate, Parallelism, Workload
from moesim.hardware import load_cluster
from moesim.measured.check import check_candidate
from moesim.measured.sources import QUANTITIES, STATUSES, VERDICTS, installed_sources
from moesim.model import Gate, MoELayer, Precision

NAMES = ("gloo", "interpret", "silicon", "torch-cpu", "triton")
HGX, ALONE = load_cluster("hgx-h100-8"), load_cluster("h100-sxm")
WORK = Workload(num_tokens_per_device=64, routing="zipf:0.8", seed=11)


def candidate(ep=8, gate="flat", **sizes):
    sizes = {"hidden_size": 128, "expert_intermediate_size": 64, "num_experts": 32, "top_k": 2} | sizes
    return Candidate(layer=MoELayer(gate=Gate.parse(gate), **sizes), parallelism=Parallelism(ep=ep))


CANDIDATES = {
    "plain": (candidate(), HGX),
    "one device": (candidate(ep=1), ALONE),
    "fp8": (candidate(precision=Precision.named("fp8")), HGX),
    "capacity, shared": (candidate(capacity_factor=1.25, num_shared_experts=1), HGX),
    "different widths": (candidate(expert_intermediate_size=(64,) * 16 + (32,) * 16), HGX),
    "two matrices": (candidate(gated=False), HGX),
    "odd product keys": (candidate(ep=1, gate="product_key:3:8", num_experts=49, top_k=4), ALONE),
    "two experts": (candidate(ep=1, num_experts=2), ALONE),
    "one expert": (candidate(ep=1, num_experts=1, top_k=1), ALONE),
    "options of a gate": (candidate(gate="two_level:8:4+noisy_top_k:1+bias+share_tokens:4"), HGX),
}


@pytest.fixture(scope="module")
def sources():
    found = installed_sources()
    found["torch-cpu"].budget_s = 1.0
    return found


def test_the_sources_are_found_by_their_names(sources):
    assert set(NAMES) <= set(sources)
    assert {name: source.name for name, source in sources.items()} == {name: name for name in sources}


@pytest.mark.parametrize("name", NAMES)
def test_a_source_that_is_not_here_says_why_in_one_line(sources, name):
    reason = sources[name].unavailable_because()
    assert reason is None or (reason.strip() and "\n" not in reason)


#: sources that start processes for every check, and what they are asked
SLOW, ASKED = ("gloo", "interpret"), ("plain", "different widths", "odd product keys", "one expert")


@pytest.mark.parametrize(("name", "case"), [(name, case) for name in NAMES for case in CANDIDATES
                                            if name not in SLOW or case in ASKED])
def test_rows_keep_the_contract(sources, name, case):
    asked, cluster = CANDIDATES[case]
    source = sources[name]
    rows = check_candidate(source, asked, cluster, WORK)
    assert rows
    for row in rows:
        assert (row.candidate, row.source, row.seed) == (asked.label, name, WORK.seed)
        assert row.status in STATUSES
        assert row.quantity in QUANTITIES
        assert row.verdict in VERDICTS
        assert row.detail
        assert "\n" not in row.detail
        assert row.engine
        assert len(row.profile_hash) == 12
        assert (row.measured is None) == (row.status != "checked")
        assert row.evidence == ("simulated" if row.measured is None else "measured")
        if row.status != "checked":
            assert (row.simulated, row.verdict) == (None, "not_measured")
        elif row.is_time:
            assert row.simulated_low <= row.simulated <= row.simulated_high
            assert row.measured > 0
            if name == "silicon":  # tables of means
                assert row.measured_low is None
                assert "a mean" in row.detail
            else:
                assert 0 < row.measured_low <= row.measured <= row.measured_high
        else:
            assert row.limit > 0
    statuses = {row.status for row in rows}
    assert len(statuses) == 1
    assert statuses == {"unavailable"} or source.unavailable_because() is None
    if name == "interpret":
        assert not any(row.is_time for row in rows)
