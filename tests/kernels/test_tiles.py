"""Tile counts and tile sizes: plain arithmetic, checked against brute force."""

import itertools

import numpy as np
import pytest
from moesim_kernels.tiles.tiles import LIMITS, Tile, tile_bound, tile_config, tiles_per_expert


def test_tiles_per_expert_rounds_up():
    assert tiles_per_expert([0, 1, 15, 16, 17, 160], 16).tolist() == [0, 1, 1, 1, 2, 10]


@pytest.mark.parametrize(("counts", "block_m"), [([1], 0), ([-1], 16)])
def test_tiles_per_expert_refuses(counts, block_m):
    with pytest.raises(ValueError, match="block_m >= 1 and counts >= 0"):
        tiles_per_expert(counts, block_m)


@pytest.mark.parametrize("block_m", [1, 2, 4])
def test_tile_bound_is_the_worst_case_exactly(block_m):
    for num_experts in (1, 2, 3):
        worst = {}
        for counts in itertools.product(range(8), repeat=num_experts):
            tiles = int(tiles_per_expert(counts, block_m).sum())
            worst[sum(counts)] = max(worst.get(sum(counts), 0), tiles)
        # Beyond 7 rows the enumeration lacks splits with more than 7 rows on one expert.
        for num_rows in range(8):
            assert tile_bound(num_rows, num_experts, block_m) == worst[num_rows]


def test_tile_bound_refuses():
    with pytest.raises(ValueError, match="num_experts >= 1"):
        tile_bound(4, 0, 16)


@pytest.mark.parametrize(
    ("tokens", "block_m"), [(0, 16), (16, 16), (16.1, 32), (33, 64), (100, 128), (1e6, 128)]
)
def test_block_m_follows_the_load(tokens, block_m):
    assert tile_config(tokens, 4096).block_m == block_m


@pytest.mark.parametrize("target", LIMITS)
@pytest.mark.parametrize(("bits", "accumulators"), [(16, 1), (16, 2), (32, 1), (32, 2), (8, 2)])
def test_tile_fits_its_gpu(target, bits, accumulators):
    limits = LIMITS[target]
    for tokens, columns in itertools.product((1, 64, 1000), (1, 37, 4096)):
        tile = tile_config(
            tokens, columns, operand_bits=bits, num_accumulators=accumulators, limits=limits
        )
        stage = (tile.block_m + accumulators * tile.block_n) * tile.block_k * bits // 8
        assert stage * tile.num_stages <= limits.shared_bytes
        assert (
            tile.block_m * tile.block_n * accumulators <= limits.elements_per_warp * tile.num_warps
        )
        halved = target == "sm_120" and bits == 16 and accumulators == 2 and tile.block_m == 128
        assert tile.block_k * bits == (512 if halved else 1024)
        assert tile.num_stages <= limits.most_stages
        assert tile.block_n < 2 * max(columns, 16)


def test_group_m_covers_one_experts_tiles():
    assert [tile_config(tokens, 4096).group_m for tokens in (1, 128, 300, 1e5)] == [1, 1, 3, 8]


def test_planned_block_m_wins():
    assert tile_config(1000, 4096, block_m=32).block_m == 32


def test_tile_config_refuses():
    with pytest.raises(ValueError, match="block_n: expected a power of two, got 48"):
        Tile(block_m=16, block_n=48, block_k=64)
    with pytest.raises(ValueError, match="group_m: expected an integer >= 1"):
        Tile(block_m=16, block_n=64, block_k=64, group_m=0)
    with pytest.raises(ValueError, match="positive sizes"):
        tile_config(1, 0)


def test_numpy_counts_are_accepted():
    assert tiles_per_expert(np.array([3, 0], dtype=np.int32), 2).dtype == np.int64
