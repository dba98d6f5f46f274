"""Tiles and what follows from a histogram: blocks, idle blocks, CTAs, and which tile is taken."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moesim.costs.load import Load, idle_blocks
from moesim.costs.tiles import Tile, heuristic_tile, num_blocks, sglang_tile, tuned_tile, vllm_tile
from moesim.errors import ConfigError

BLOCKS = st.sampled_from([16, 32, 64, 128])


@given(
    counts=st.lists(st.lists(st.integers(0, 1000), min_size=4, max_size=4), min_size=1, max_size=5),
    block_m=BLOCKS,
)
def test_blocks_are_counted_expert_by_expert(counts, block_m):
    assert num_blocks(np.array(counts), block_m).tolist() == [
        sum(math.ceil(c / block_m) for c in row) for row in counts
    ]


@pytest.mark.parametrize(
    ("counts", "blocks"),
    [([0, 0], 0), ([1, 0], 1), ([16, 16], 2), ([17, 1], 3), ([911, 1025], 57 + 65)],
)
def test_blocks_by_hand(counts, blocks):
    assert num_blocks(np.array([counts]), 16).tolist() == [blocks]


@given(
    counts=st.lists(st.integers(0, 500), min_size=1, max_size=40),
    masked=st.integers(0, 800),
    block_m=BLOCKS,
)
def test_load_sums_and_the_worst_case_grid(counts, masked, block_m):
    """The grid of moe_align_block_size: padded for every expert, or a block per choice if choices
    are fewer.
    """
    counts_L = np.array(counts)
    slots = int(counts_L.sum()) + masked
    load = Load.of(counts_L[None], np.array([slots]), block_m)
    assert load.rows_D.tolist() == [counts_L.sum()]
    assert load.active_D.tolist() == [(counts_L > 0).sum()]
    assert load.masked_rows_D.tolist() == [masked]
    grid = (
        slots if slots < len(counts) else math.ceil((slots + len(counts) * (block_m - 1)) / block_m)
    )
    used = sum(math.ceil(c / block_m) for c in counts) + math.ceil(masked / block_m)
    assert load.idle_blocks_D.tolist() == [max(grid - used, 0)]


def test_no_choices_no_blocks():
    load = Load.of(np.zeros((2, 8), dtype=int), np.zeros(2), 64)
    for name in ("rows_D", "active_D", "blocks_D", "masked_rows_D", "idle_blocks_D"):
        assert getattr(load, name).tolist() == [0, 0], name
    assert idle_blocks(np.array([0]), np.array([0]), np.array([0]), 8, 64).tolist() == [0]


@pytest.mark.parametrize(
    ("tile", "element_bytes", "shared", "ctas"),
    [
        # 64 x 64 over 128 threads: 32 + 64 registers; 65536 / (96 * 128) = 5.3; (3 - 1) * 128 *
        # 32 * 2 + 1024 = 17 KiB
        (Tile(block_m=64, block_n=64, block_k=32, num_warps=4, num_stages=3), 2.0, 228 * 1024, 5),
        (Tile(block_m=64, block_n=64, block_k=32, num_warps=4, num_stages=3), 2.0, 40 * 1024, 2),
        # 128 x 256 over 256 threads: 255 registers at most: 65536 / (255 * 256) = 1.004
        (Tile(block_m=128, block_n=256, block_k=64, num_warps=8, num_stages=3), 2.0, 228 * 1024, 1),
        # never less than one, even where shared memory would not hold it
        (Tile(block_m=128, block_n=256, block_k=128, num_warps=8, num_stages=5), 2.0, 64 * 1024, 1),
        # 16 x 16 over 512 threads: warps are the limit, 64 / 16
        (Tile(block_m=16, block_n=16, block_k=16, num_warps=16, num_stages=2), 1.0, 228 * 1024, 1),
    ],
)
def test_ctas_per_sm_by_hand(tile, element_bytes, shared, ctas):
    assert tile.ctas_per_sm(element_bytes, shared) == ctas


@pytest.mark.parametrize(
    ("field", "value", "rule"),
    [
        ("block_m", 48, "a power of two"),
        ("block_n", 0, "a power of two"),
        ("block_k", -32, "a power of two"),
        ("num_warps", 3, "a power of two"),
        ("num_stages", 0, "an integer >= 1"),
        ("group_m", 0, "an integer >= 1"),
    ],
)
def test_wrong_tiles(field, value, rule):
    with pytest.raises(ConfigError, match=rf"^tile.{field}: expected {rule}, got {value}$"):
        Tile(**{"block_m": 64, "block_n": 64, "block_k": 64} | {field: value})


@given(tokens=st.floats(0.0, 1e6), element_bytes=st.sampled_from([1.0, 2.0, 4.0]))
def test_heuristic_tiles_fit_the_load(tokens, element_bytes):
    tile = heuristic_tile(tokens, element_bytes)
    assert 16 <= tile.block_m <= 128
    assert tile.block_m >= min(tokens, 128)
    assert tile.block_m == 16 or tile.block_m < 2 * tokens
    assert tile.block_k * element_bytes == 128


def test_tuned_tiles_are_those_of_the_nearest_token_count():
    assert tuned_tile("a100-sxm", "bfloat16", 1, 1792, 24) == Tile(
        block_m=32, block_n=64, block_k=128, group_m=1, num_warps=4, num_stages=5
    )
    assert tuned_tile("a100-sxm", "bfloat16", 1, 1792, 25) == tuned_tile(
        "a100-sxm", "bfloat16", 1, 1792, 24
    )
    assert tuned_tile("a100-sxm", "bfloat16", 1, 1792, 10**9) == tuned_tile(
        "a100-sxm", "bfloat16", 1, 1792, 58368
    )
    assert tuned_tile("a100-sxm", "bfloat16", 3, 1793, 64) is None


def test_frameworks_fall_back_to_their_defaults():
    assert (
        sglang_tile("a100-sxm", "bfloat16", 64, 1793, 64).block_m,
        sglang_tile("a100-sxm", "bfloat16", 64, 1793, 65).block_m,
    ) == (16, 64)
    assert sglang_tile("a100-sxm", "fp8_block", 64, 1793, 64).block_k == 128
    assert [vllm_tile("bfloat16", 8, t).block_m for t in (32, 33, 97, 513)] == [16, 32, 64, 128]
    assert [vllm_tile("fp8_block", 8, t).block_m for t in (64, 65)] == [16, 64]
