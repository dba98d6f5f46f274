"""Layers whose experts differ, and gates of product keys, from the candidate to the result."""

from dataclasses import replace

import pytest

from moesim import Gate, Workload, load_preset, simulate
from moesim.simulation.memory import memory_of
from moesim.simulation.prepare import prepare

WORK = Workload(num_tokens_per_device=512, routing="zipf:0.8")
DENSE = load_preset("qwen3-30b-a3b").dense_part


def candidate_with(make_candidate, widths, **changes):
    return make_candidate(
        **{"hidden_size": 2048, "num_experts": 32, "top_k": 4, "expert_intermediate_size": widths}
        | changes
    )


@pytest.mark.parametrize("tp", [1, 2])
@pytest.mark.parametrize("placement", ["contiguous", "balanced", "eplb"])
def test_equal_widths_are_one_width(hgx, make_candidate, tp, placement):
    one, each = (
        candidate_with(
            make_candidate,
            widths,
            ep=8 // tp,
            tp=tp,
            placement=placement,
            num_shared_experts=1,
            dense_part=DENSE,
        )
        for widths in (768, (768,) * 32)
    )
    rows = [simulate(c, hgx, WORK).row() for c in (one, each)]
    different = {k for k in rows[0] if rows[0][k] != pytest.approx(rows[1][k])}
    assert different == {"candidate", "design", "expert_intermediate_size"}
    assert rows[1]["expert_intermediate_size"] == "32x768"


def test_narrow_experts_take_less_time_and_memory(hgx, make_candidate):
    wide, mixed = (
        # the same kernels: libraries whose experts have one width may be faster for all that
        replace(candidate_with(make_candidate, widths, dense_part=DENSE), kernels="sglang-triton")
        for widths in (2048, (2048, 256) * 16)
    )
    slow, fast = (simulate(c, hgx, WORK) for c in (wide, mixed))
    assert fast.experts_time_s < slow.experts_time_s
    assert fast.peak_memory_bytes < slow.peak_memory_bytes
    assert (fast.phase_time_s["gate"], fast.load_imbalance) == (
        slow.phase_time_s["gate"],
        slow.load_imbalance,
    )


def test_pruned_experts_get_no_rows_and_hold_no_weights(hgx, make_candidate):
    whole = candidate_with(make_candidate, 1024, dense_part=DENSE)
    pruned = candidate_with(make_candidate, (1024,) * 24 + (0,) * 8, dense_part=DENSE)
    prepared = prepare(pruned, hgx, WORK)
    placement, traffic = prepared.placement, prepared.traffic
    rows_P = traffic.counts_DL.ravel()
    assert rows_P[placement.expert_of_slot_P >= 24].sum() == 0
    assert rows_P.sum() == 8 * 512 * 4
    assert prepare(whole, hgx, WORK).traffic.counts_DL.ravel()[24:].sum() > 0
    # the device with most memory holds four experts of 24, those of the last two devices none
    assert memory_of(prepared).need.experts_bytes == 48 * 4 * whole.layer.bytes_per_expert
    spread = replace(pruned, placement="balanced")
    assert simulate(spread, hgx, WORK).layer_time_s < simulate(pruned, hgx, WORK).layer_time_s


def test_work_is_balanced_not_rows(hgx, make_candidate):
    """Uniform rows, one expert in four eight times as wide: a plan by rows x width spreads the wide
    ones.
    """
    candidate = candidate_with(make_candidate, (2048,) * 8 + (256,) * 24, placement="balanced")
    work = replace(WORK, routing="uniform")
    placement = prepare(candidate, hgx, work).placement
    wide = placement.rank_of_slot_P[placement.expert_of_slot_P < 8]
    assert sorted(wide.tolist()) == list(range(8))
    apart = simulate(candidate, hgx, work).experts_time_s
    assert (
        apart
        < 0.75 * simulate(replace(candidate, placement="contiguous"), hgx, work).experts_time_s
    )


@pytest.mark.parametrize("engine", ["bound", "flow", "event"])
def test_product_keys_from_gate_to_result(hgx, make_candidate, engine):
    flat, keys = (
        simulate(
            candidate_with(make_candidate, 64, num_experts=65536, gate=Gate.parse(gate)),
            hgx,
            WORK,
            engine=engine,
        )
        for gate in ("flat", "product_key")
    )
    assert keys.phase_time_s["gate"] < 0.2 * flat.phase_time_s["gate"]
    assert keys.row()["gate"] == "product_key:8:256"
    assert keys.load_imbalance == flat.load_imbalance
