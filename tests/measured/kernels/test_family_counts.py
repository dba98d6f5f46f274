"""What the timed rank of a row computes: slots, blocks of rows, and tokens that are known."""

from dataclasses import replace

import pytest

from moesim.measured.kernels.family_counts import timed_counts
from moesim.measured.kernels.family_records import FAMILIES

PREFILL, DECODE, WIDE = (
    FAMILIES[name]
    for name in ("deepep-deepgemm-contiguous", "deepep-deepgemm-masked", "wideep-cutlass")
)
ROW = {
    "dataset": "sglang/0.5.10",
    "num_tokens": 4096,
    "topk": 8,
    "num_experts": 256,
    "moe_ep_size": 8,
    "distribution": "uniform",
}


def test_prefill_fills_blocks_of_an_expert_before_the_next():
    counts, entering, present = timed_counts(ROW | {"num_tokens": 2050}, 0, PREFILL)
    # 2,050 tokens x 8 choices over 8 ranks: 16 blocks of 128 rows, and 2 rows
    assert counts.tolist() == [128] * 16 + [2] + [0] * 15
    assert (entering, present) == (2050.0, 2050.0)
    counts, _, _ = timed_counts(ROW | {"num_tokens": 8192}, 0, PREFILL)
    assert counts.tolist() == [256] * 32


def test_decode_spreads_rows_evenly_and_only_chosen_tokens_enter():
    counts, entering, present = timed_counts(ROW | {"num_tokens": 16}, 0, DECODE)
    # 16 tokens x 8 choices: 16 of this rank's 32 experts have one row each
    assert sorted(counts.tolist()) == [0] * 16 + [1] * 16
    assert 0 < entering < 16 == present


def test_known_tokens_scale_the_draw():
    row = ROW | {"distribution": "power_law_1.2", "num_tokens": 8192}
    drawn, expected, _ = timed_counts(row, 0, WIDE)
    counts, entering, present = timed_counts(row | {"rank0_num_tokens": 3000}, 0, WIDE)
    assert entering == present == 3000
    assert expected > 3000
    assert counts.sum() == pytest.approx(drawn.sum() * 3000 / expected, rel=0.01)
    unknown = timed_counts(row | {"rank0_num_tokens": float("nan")}, 0, WIDE)
    assert unknown[0].tolist() == drawn.tolist()
    other = timed_counts(row | {"rank0_num_tokens": 3000}, 0, DECODE)
    assert other[0].tolist() == drawn.tolist()


def test_slots_balance_ranks():
    row = ROW | {"distribution": "power_law_1.2", "num_tokens": 8192, "moe_ep_size": 32}
    alone, _, _ = timed_counts(row, 0, WIDE)
    placed, _, _ = timed_counts(row | {"distribution": "power_law_1.2_eplb"}, 0, WIDE)
    slots = row | {"distribution": "power_law_1.2_eplb", "num_slots": 288}
    copied, _, _ = timed_counts(slots, 0, WIDE)
    assert (len(alone), len(placed), len(copied)) == (8, 8, 9)
    assert alone.sum() > placed.sum() > copied.sum()
    assert copied.sum() == pytest.approx(8192 * 8 / 32, rel=0.05)


def test_left_over_choices_go_to_the_first_experts():
    row = ROW | {"distribution": "power_law_1.2", "num_tokens": 1, "moe_ep_size": 32}
    first, _, _ = timed_counts(row, 0, WIDE)
    spread, _, _ = timed_counts(row, 0, replace(WIDE, first_take_rest=False))
    assert first.tolist() == [1] * 8
    assert spread.sum() < 8
