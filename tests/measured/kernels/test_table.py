"""Row semantics by hand, and the permitted set."""

from dataclasses import replace

import numpy as np
import pytest

from moesim import Candidate, MoELayer, Parallelism, Precision, Workload, load_cluster, load_profile
from moesim.costs.devices.primitives import kernels_for
from moesim.measured.kernels import table as silicon
from moesim.measured.kernels.draws import draw_rows
from moesim.measured.kernels.groups import collect, fit_groups, may_fit
from moesim.measured.kernels.scoreboard import roofline_s
from moesim.measured.kernels.source import Silicon, measured_architectures
from moesim.measured.scores import error_scores
from moesim.simulation.prepare import prepare

ROW = {
    "system": "h100_sxm",
    "dataset": "sglang/0.5.14",
    "kernel_source": "sglang_fused_moe_triton",
    "moe_dtype": "bfloat16",
    "num_tokens": 64,
    "hidden_size": 4096,
    "inter_size": 14336,
    "topk": 2,
    "num_experts": 8,
    "moe_tp_size": 1,
    "moe_ep_size": 1,
    "distribution": "balanced",
}


def test_balanced_routing_as_the_collector_defines_it():
    # stride ceil(8/2) = 4; token t goes to t and t + 4, modulo 8
    assert silicon.loads("balanced", 4, 8, 2, 0).tolist() == [1] * 8
    # fewer tokens than the stride: token t starts at t * 4 // 2
    assert silicon.loads("balanced", 2, 8, 2, 0).tolist() == [1, 0, 1, 0, 1, 0, 1, 0]


def test_one_rank_computes_all_choices():
    counts, tokens = silicon.local_counts(ROW, 0)
    assert counts.sum() == 128
    assert tokens == 64


def test_clamped_path_computes_every_choice_of_the_tokens_that_enter():
    counts, tokens = silicon.local_counts(ROW | {"moe_ep_size": 2}, 0)
    assert len(counts) == 4
    assert counts.sum() == pytest.approx(tokens * 2)
    assert tokens <= 64


def test_masked_path_lets_all_tokens_in_but_computes_local_choices_only():
    row = ROW | {
        "hidden_size": 4096,
        "inter_size": 2048,
        "topk": 8,
        "num_experts": 256,
        "moe_ep_size": 8,
        "num_tokens": 512,
        "distribution": "power_law_1.2",
    }
    counts, tokens = silicon.local_counts(row, 0)
    assert tokens == 512
    loads = silicon.loads("power_law_1.2", 512, 256, 8, 0).reshape(8, 32)
    assert counts.sum() == loads.sum(axis=1).max()


def test_permitted_set_is_a100_and_h100_only():
    assert {key[0] for key in fit_groups()} == {"a100_sxm", "h100_sxm"}
    assert may_fit(ROW)
    assert not may_fit(ROW | {"inter_size": 1536, "topk": 8, "num_experts": 128})
    assert not may_fit(ROW | {"system": "h200_sxm"})


def test_what_is_collected_for_a_fit_is_permitted():
    groups = [*collect("sglang"), *collect("vllm")]
    assert len(groups) == len(fit_groups())
    for group in groups:
        permitted = {(key[0], key[3], key[4:]) for key in fit_groups()}
        assert (group.system, group.precision, group.shape) in permitted
        assert group.measured_s.min() >= 50e-6


def test_predictions_beat_the_roofline_by_far_on_rows_never_fitted():
    profile = load_profile("h100-sxm")
    rows = silicon.load_rows("h100_sxm", "sglang/0.5.14")
    rows = rows[
        (rows["latency_ms"] >= 0.05) & (rows["inter_size"] == 1536) & (rows["hidden_size"] == 4096)
    ]
    rows = rows[rows["moe_dtype"] == "bfloat16"].sample(300, random_state=3)
    records = rows.to_dict("records")
    assert not any(may_fit(r) for r in records)
    draws, measured = draw_rows(records, profile), rows["latency_ms"].to_numpy() * 1e-3
    model = error_scores(draws.price(kernels_for(profile)), measured)
    roofline = error_scores(roofline_s(draws, profile), measured)
    assert model["mape"] < 15
    assert model["mape"] < roofline["mape"] / 3


def test_source_checks_exact_shapes_and_never_substitutes():
    cluster = load_cluster("hgx-h100-8")
    workload = Workload(num_tokens_per_device=1024, routing="power_law:1.2")
    layer = MoELayer(hidden_size=4096, expert_intermediate_size=1536, num_experts=128, top_k=8)
    (exact,) = Silicon().check(
        Candidate(layer=layer, parallelism=Parallelism(ep=8)), cluster, workload
    )
    assert exact.status == "checked"
    assert exact.evidence == "measured"
    assert exact.in_fit_set is False
    assert exact.simulated_low < exact.simulated < exact.simulated_high
    nearly = MoELayer(hidden_size=4096, expert_intermediate_size=1552, num_experts=128, top_k=8)
    (other,) = Silicon().check(
        Candidate(layer=nearly, parallelism=Parallelism(ep=8)), cluster, workload
    )
    assert other.status == "not_measured"
    assert other.measured is None


def test_a_design_is_checked_against_the_kernels_it_runs():
    """By the library that auto picks, or the one that is named; none of it without its rows."""
    cluster = load_cluster("hgx-h100-8")
    workload = Workload(num_tokens_per_device=1024, routing="power_law:1.2")
    layer = MoELayer(hidden_size=4096, expert_intermediate_size=1536, num_experts=128, top_k=8)

    def row(kernels, **changes):
        candidate = Candidate(
            layer=replace(layer, **changes), parallelism=Parallelism(ep=8), kernels=kernels
        )
        return Silicon().check(candidate, cluster, workload)[0]

    own, triton = row("trtllm-cutlass"), row("sglang-triton")
    assert "moe_torch_flow_cutlass" in own.detail
    assert "sglang_fused_moe_triton" in triton.detail
    assert own.measured != triton.measured
    assert own.simulated_low < own.simulated < own.simulated_high
    auto = row("auto")
    name = prepare(Candidate(layer=layer, parallelism=Parallelism(ep=8)), cluster, workload).kernels
    assert auto.measured == row(name).measured
    nothing = row("trtllm-cutlass", expert_intermediate_size=1552)
    assert nothing.status == "not_measured"
    assert nothing.detail.startswith("no row of trtllm-cutlass of exactly this shape on h100-sxm")


def test_measured_architectures_cover_both_formats_and_all_layouts():
    points = measured_architectures(
        load_cluster("hgx-h100-8"),
        Workload(num_tokens_per_device=1024, routing="power_law:1.2"),
        4096,
    )
    assert {p["precision"] for p in points} == {"bf16", "fp8"}
    assert {p["parallelism"] for p in points} >= {"ep8tp1", "ep1tp8"}
    assert len({tuple(p.values()) for p in points}) == len(points)


def test_fp8_weights_are_priced_below_bf16():
    cluster = load_cluster("hgx-h100-8")
    workload = Workload(num_tokens_per_device=64)
    times = [
        Silicon()
        .check(
            Candidate(
                parallelism=Parallelism(ep=8),
                layer=MoELayer(
                    hidden_size=4096,
                    expert_intermediate_size=2048,
                    num_experts=256,
                    top_k=8,
                    precision=Precision.named(p),
                ),
            ),
            cluster,
            workload,
        )[0]
        .simulated
        for p in ("fp8", "bf16")
    ]
    assert times[0] < times[1]
    assert np.isfinite(times).all()


def test_only_tokens_are_interpolated_and_the_row_says_so():
    cluster = load_cluster("hgx-h100-8")
    layer = MoELayer(hidden_size=4096, expert_intermediate_size=1536, num_experts=128, top_k=8)

    candidate = Candidate(layer=layer, parallelism=Parallelism(ep=8))

    def at(tokens):
        (found,) = Silicon().check(
            candidate, cluster, Workload(num_tokens_per_device=tokens, routing="power_law:1.2")
        )
        return found

    low, between, high = at(512), at(600), at(1024)
    assert [row.evidence for row in (low, between, high)] == [
        "measured",
        "interpolated",
        "measured",
    ]
    assert low.measured < between.measured < high.measured
    assert between.detail.endswith("interpolated between 4096 and 6144 tokens")
    assert low.simulated < between.simulated < high.simulated
    assert at(1 << 20).status == "not_measured"
