"""The search for tiles, with a clock of its own: what is timed fits, and the fastest wins."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from moesim_kernels.ops.layer import LayerWeights, expert_phase, expert_phase_reference
from moesim_kernels.ops.runtime import triton
from moesim_kernels.tiles.choice import Shape, default_tiles
from moesim_kernels.tiles.modeled import expert_sizes, tile_model
from moesim_kernels.tiles.tiles import LIMITS
from moesim_kernels.timing import tune
from moesim_kernels.timing.bench import random_ids
from moesim_kernels.timing.gemms import GroupedGemms, own_tiles
from moesim_kernels.timing.sweep import sweep

from moesim.costs.calibration import load_calibration
from moesim.costs.devices.tile_choice import compiled_tiles, tile_us_R
from moesim.costs.libraries import OWN_KERNELS
from moesim.costs.tiles import TILE_FIELDS
from moesim.hardware import load_profile
from moesim.measured.tiles.rows import read_tiles
from moesim.measured.tiles.validate import predicted
from moesim.model import MoELayer
from moesim.report.tables import write_csv


@pytest.mark.parametrize("target", LIMITS)
@pytest.mark.parametrize(("bits", "accumulators"), [(16, 1), (16, 2), (32, 2)])
def test_candidates_fit_their_gpu(target, bits, accumulators):
    limits = LIMITS[target]
    found = tune.candidates(4096, operand_bits=bits, num_accumulators=accumulators, limits=limits)
    assert len(found) == len(set(found)) >= 20
    for tile in found:
        stage = (tile.block_m + accumulators * tile.block_n) * tile.block_k * bits // 8
        assert stage * tile.num_stages <= limits.shared_bytes
        assert (
            tile.block_m * tile.block_n * accumulators <= limits.elements_per_warp * tile.num_warps
        )
    assert {tile.block_m for tile in found} == {16, 32, 64, 128}
    narrow = tune.candidates(20, operand_bits=bits, num_accumulators=accumulators, limits=limits)
    assert max(tile.block_n for tile in narrow) == 32


LAYER = MoELayer(hidden_size=64, expert_intermediate_size=48, num_experts=5, top_k=2)


def tune_shape(layer):
    return Shape(
        num_experts=layer.num_experts,
        top_k=layer.top_k,
        hidden_size=layer.hidden_size,
        expert_intermediate_size=layer.shared_width,
        dtype="bfloat16",
        operand_bits=16,
    )


class Clock:
    """Every timing takes a second; what a tile takes is told by a function."""

    def __init__(self, seconds):
        self.seconds, self.time, self.timed = seconds, 0.0, []

    def __call__(self, gemm, tile, call):
        self.time += 1.0
        self.timed.append((gemm, tile))
        return self.seconds(gemm, tile)

    def now(self):
        return self.time


def _tuned(seconds, budget_s=1000.0, tokens=(9,)):
    clock = Clock(seconds)
    rows = list(tune.tune(LAYER, tokens, seconds=budget_s, timer=clock, now=clock.now))
    return rows, clock


def test_the_fastest_pair_wins():
    rows, clock = _tuned(
        lambda gemm, tile: 1 + abs(tile.block_m - 64) + (gemm == "up") * abs(tile.block_n - 32)
    )
    up, down = rows[-1]
    assert (up["gemm"], up["block_m"], up["block_n"]) == ("swiglu", 64, 32)
    assert (down["gemm"], down["block_m"]) == ("down", 64)
    assert up["tuned_us"] == down["tuned_us"] == 2e6 < up["default_us"]
    assert len(clock.timed) == len(set(clock.timed)) > 20
    # Every yield is the best pair so far.
    best = [pair[0]["tuned_us"] for pair in rows]
    assert best == sorted(best, reverse=True)


def test_the_default_comes_first_wins_ties_and_is_beaten_by_what_fits():
    default = default_tiles("", tune_shape(LAYER), 9, LIMITS["sm_80"])
    rows, clock = _tuned(lambda gemm, tile: 1.0)
    assert clock.timed[:2] == [("up", default[0]), ("down", default[1])]
    for pair, tile in zip(rows[-1], default, strict=True):
        assert [pair[name] for name in TILE_FIELDS] == [getattr(tile, n) for n in TILE_FIELDS]


def test_time_is_kept_and_shared():
    rows, clock = _tuned(lambda gemm, tile: 1.0, budget_s=20.0, tokens=(1, 9))
    assert len(clock.timed) == 20
    assert [pair[0]["num_tokens"] for pair in rows].count(1) == 9
    # However little time there is, the pair to beat is timed.
    rows, clock = _tuned(lambda gemm, tile: 1.0, budget_s=0.5, tokens=(1, 9))
    assert [pair[0]["num_tokens"] for pair in rows] == [1, 9]


def test_refused_tiles_lose():
    told = triton.runtime.errors.OutOfResources(2**20, 2**17, "shared memory")

    def refuse(gemm, tile):
        if tile.block_n == 128:
            raise told
        return 1.0 / tile.block_n

    assert _tuned(refuse)[0][-1][0]["block_n"] == 64
    told = RuntimeError("PassManager::run failed")
    assert _tuned(refuse)[0][-1][0]["block_n"] == 64
    told = RuntimeError("device lost")
    with pytest.raises(RuntimeError, match="device lost"):
        _tuned(refuse)


def test_a_sweep_times_every_compiled_tile_and_predicts_as_it_reads(tmp_path):
    """Its rows are what `moesim validate tiles` reads: the same kernel, tile, and counts."""
    clock = Clock(lambda gemm, tile: tile.block_m * 1e-6)
    tokens = (9, 70)
    rows = list(sweep(LAYER, tokens, seconds=1e6, timer=clock, now=clock.now))
    tiles = {gemm: compiled_tiles("sm_80", 16, gemm) for gemm in ("up", "down")}
    assert len(rows) == len(tokens) * sum(map(len, tiles.values()))
    assert {row["median_us"] for row in rows} == {16.0, 32.0, 64.0, 128.0}
    named = [row | {"device": "NVIDIA A100-SXM4-80GB"} for row in rows]
    write_csv(tmp_path / "rows.csv", named)
    table = read_tiles(tmp_path / "rows.csv")
    profile = load_profile("a100-sxm")
    sizes = expert_sizes(64, 48, 2, 16)
    replay_us = load_calibration(OWN_KERNELS, profile)["replay_us"]
    for num_tokens in tokens:
        counts_E = np.bincount(random_ids(num_tokens, 5, 2).flatten().numpy(), minlength=5)
        for gemm in ("up", "down"):
            mine = [
                us - replay_us
                for row, us in zip(rows, predicted(table), strict=True)
                if (row["num_tokens"], row["gemm"]) == (num_tokens, gemm)
            ]
            # The table has no histogram, so groups of row blocks are told apart by the mean.
            flat = [replace(tile, group_m=1) for tile in tiles[gemm]]
            model_us = tile_us_R(tile_model(profile), counts_E, sizes, gemm, flat)
            assert sorted(mine) == pytest.approx(sorted(model_us), rel=0.3)
    short = Clock(lambda gemm, tile: 1e-6)
    rows = list(sweep(LAYER, tokens, seconds=6.0, timer=short, now=short.now))
    assert [row["num_tokens"] for row in rows] == [9] * 3 + [70] * 3


def test_what_is_timed_computes_the_layers_gemms(device):
    weights = LayerWeights.random(LAYER, 0, torch.bfloat16, device)
    gemms = GroupedGemms(LAYER, 9, weights, skew=0.0, seed=0)
    for gemm, columns in (("up", 48), ("down", 64)):
        tile = own_tiles(gemm, 16)[0]
        assert gemms.call(gemm, tile)().shape == (18, columns)


def test_candidates_compute_the_layer(device):
    layer = MoELayer(hidden_size=64, expert_intermediate_size=48, num_experts=5, top_k=2)
    weights = LayerWeights.random(layer, 0, torch.float32, device)
    ids_TK = random_ids(70, 5, 2, device=device)
    x_TH = torch.randn(70, 64, generator=torch.Generator().manual_seed(0)).to(device)
    weights_TK = torch.full((70, 2), 0.5, device=device)
    want_TH = expert_phase_reference(x_TH, ids_TK, weights_TK, weights)
    ups, downs = (
        tune.candidates(columns, operand_bits=32, num_accumulators=count, limits=LIMITS["sm_80"])
        for columns, count in ((48, 2), (64, 1))
    )
    for up in ups[:: len(ups) // 4]:
        down = next(tile for tile in downs if tile.block_m == up.block_m)
        out_TH = expert_phase(x_TH, ids_TK, weights_TK, weights, swiglu_tile=up, down_tile=down)
        torch.testing.assert_close(out_TH, want_TH, rtol=1e-5, atol=1e-5)


def test_refuses_without_a_gpu(device):
    if device.type != "cpu":
        pytest.skip("there is a GPU: this is what machines without one are told")
    layer = MoELayer(hidden_size=64, expert_intermediate_size=48, num_experts=5, top_k=2)
    with pytest.raises(
        RuntimeError, match="needs a GPU with an active Triton driver, got mode 'interpreter'"
    ):
        next(tune.tune(layer, [16], seconds=1.0))
