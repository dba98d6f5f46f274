"""The search for tiles, with a clock of its own: what is timed fits, and the fastest wins."""

import pytest
import torch
from moesim_kernels.ops.layer import LayerWeights, expert_phase, expert_phase_reference
from moesim_kernels.ops.runtime import triton
from moesim_kernels.tiles.tiles import LIMITS, tile_config
from moesim_kernels.timing import tune
from moesim_kernels.timing.bench import random_ids

from moesim.model import MoELayer


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
    narrow = tune.candidates(
        20, operand_bits=bits, num_accumulators=accumulators, limits=limits, block_m=32
    )
    assert {tile.block_m for tile in narrow} == {32}
    assert max(tile.block_n for tile in narrow) == 32


def _search(seconds):
    def down(rows):
        return tune.candidates(
            512, operand_bits=16, num_accumulators=1, limits=LIMITS["sm_90"], block_m=rows
        )

    up = tune.candidates(512, operand_bits=16, num_accumulators=2, limits=LIMITS["sm_90"])
    return tune.search(
        up, down, (tile_config(16, 512, num_accumulators=2), tile_config(16, 512)), seconds
    )


def test_the_fastest_pair_wins():
    up, down, tuned_s, default_s = _search(
        lambda up, down: (
            1
            + abs(up.block_m - 64)
            + abs(up.block_n - 32)
            + abs(down.block_n - 128)
            + down.num_stages
        )
    )
    assert (up.block_m, up.block_n, down.block_m, down.block_n, down.num_stages) == (
        64,
        32,
        64,
        128,
        2,
    )
    assert tuned_s == 3 < default_s


def test_the_default_wins_ties_and_refused_tiles_lose():
    default = tile_config(16, 512, num_accumulators=2), tile_config(16, 512)
    assert _search(lambda up, down: 1.0) == (*default, 1.0, 1.0)

    def refuse(up, down):
        if (up, down) != default:
            raise triton.runtime.errors.OutOfResources(2**20, 2**17, "shared memory")
        return 1.0

    assert _search(refuse) == (*default, 1.0, 1.0)

    def fail(up, down):
        if (up, down) != default:
            raise RuntimeError(told)
        return 1.0

    told = "PassManager::run failed"
    assert _search(fail) == (*default, 1.0, 1.0)
    told = "device lost"
    with pytest.raises(RuntimeError, match="device lost"):
        _search(fail)


def test_candidates_compute_the_layer(device):
    layer = MoELayer(hidden_size=64, expert_intermediate_size=48, num_experts=5, top_k=2)
    weights = LayerWeights.random(layer, 0, torch.float32, device)
    ids_TK = random_ids(70, 5, 2, device=device)
    x_TH = torch.randn(70, 64, generator=torch.Generator().manual_seed(0)).to(device)
    weights_TK = torch.full((70, 2), 0.5, device=device)
    want_TH = expert_phase_reference(x_TH, ids_TK, weights_TK, weights)
    ups = tune.candidates(48, operand_bits=32, num_accumulators=2, limits=LIMITS["sm_80"])
    for up in ups[:: len(ups) // 4]:
        [down, *_] = tune.candidates(
            64, operand_bits=32, num_accumulators=1, limits=LIMITS["sm_80"], block_m=up.block_m
        )
        out_TH = expert_phase(x_TH, ids_TK, weights_TK, weights, swiglu_tile=up, down_tile=down)
        torch.testing.assert_close(out_TH, want_TH, rtol=1e-5, atol=1e-5)


def test_refuses_without_a_gpu(device):
    if device.type != "cpu":
        pytest.skip("there is a GPU: this is what machines without one are told")
    layer = MoELayer(hidden_size=64, expert_intermediate_size=48, num_experts=5, top_k=2)
    with pytest.raises(
        RuntimeError, match="needs a GPU with an active Triton driver, got mode 'interpreter'"
    ):
        next(tune.tune(layer, [16]))
