"""The wide up projection against its twin and against two products side by side, with pointers and
descriptors.
"""

import pytest
import torch
from moesim_kernels.ops import wide_swiglu as wide_module
from moesim_kernels.ops.grouped_linear import grouped_linear
from moesim_kernels.ops.grouped_swiglu import (
    grouped_swiglu,
    grouped_swiglu_reference,
    keeps_registers,
    saves,
)
from moesim_kernels.ops.plan import make_plan
from moesim_kernels.ops.runtime import store_dtype
from moesim_kernels.ops.wide_swiglu import is_wide
from moesim_kernels.tiles.tiles import LIMITS, Tile
from moesim_kernels.timing.bench import random_ids

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")

TOLERANCE = {
    torch.float16: {"rtol": 2e-3, "atol": 1e-3},
    torch.bfloat16: {"rtol": 1.6e-2, "atol": 8e-3},
}


def _operands(tokens, experts, top_k, hidden, width, dtype, device, block_m, skew=0.0):
    generator = torch.Generator().manual_seed(0)
    x_TH = torch.randn(tokens, hidden, generator=generator).to(dtype).to(device)
    w = (
        (torch.randn(experts, 2 * width, hidden, generator=generator) * hidden**-0.5)
        .to(dtype)
        .to(device)
    )
    return (
        x_TH,
        w,
        make_plan(random_ids(tokens, experts, top_k, skew=skew, device=device), experts, block_m),
    )


@pytest.mark.parametrize("path", ["pointers", "descriptors"])
@pytest.mark.parametrize(
    ("tokens", "experts", "top_k", "hidden", "width", "dtype", "tile"),
    [
        (50, 7, 2, 136, 40, torch.bfloat16, Tile(block_m=16, block_n=32, block_k=64)),
        (90, 3, 1, 64, 72, torch.float16, Tile(block_m=64, block_n=64, block_k=32, group_m=3)),
        (33, 9, 4, 512, 16, torch.bfloat16, Tile(block_m=32, block_n=16, block_k=256, group_m=8)),
        (3, 40, 3, 72, 8, torch.float16, Tile(block_m=16, block_n=64, block_k=128)),
    ],
)
def test_is_two_products(
    device, monkeypatch, path, tokens, experts, top_k, hidden, width, dtype, tile
):
    x_TH, w, plan = _operands(
        tokens, experts, top_k, hidden, width, dtype, device, tile.block_m, skew=1.0
    )
    assert is_wide(x_TH, w)
    got = grouped_swiglu(x_TH, w, plan, tile, path=path)
    torch.testing.assert_close(got, grouped_swiglu_reference(x_TH, w, plan), **TOLERANCE[dtype])
    monkeypatch.setattr(wide_module, "MOST_ELEMENTS", 0)
    torch.testing.assert_close(
        got, grouped_swiglu(x_TH, w, plan, tile, path="pointers"), **TOLERANCE[dtype]
    )


@pytest.mark.parametrize("path", ["pointers", "descriptors"])
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_keeps_pre_activations_by_pair(device, path, dtype):
    x_TH, w, plan = _operands(70, 5, 2, 64, 40, dtype, device, 32)
    assert saves(x_TH, w, 32)
    saved_P2I = torch.full((140, 80), float("nan"), dtype=store_dtype(dtype), device=device)
    act_PI = grouped_swiglu(x_TH, w, plan, path=path, saved_P2I=saved_P2I)
    assert torch.equal(act_PI, grouped_swiglu(x_TH, w, plan, path=path))
    want_P2I = grouped_linear(x_TH, w, plan, gather=True)
    torch.testing.assert_close(saved_P2I.to(dtype), want_P2I, **TOLERANCE[dtype])


def test_hoppers_largest_tile_keeps_none_with_pointers():
    for target in LIMITS:
        assert keeps_registers(target, 64, described=False)
        assert keeps_registers(target, 128, described=True)
        assert keeps_registers(target, 128, described=False) == (target != "sm_90")


def test_float32_and_huge_matrices_go_another_way(device):
    small = torch.zeros(1, 2, 8, dtype=torch.float16, device="meta")
    assert is_wide(small, small)
    assert not is_wide(small.float(), small.float())
    assert not is_wide(small, torch.zeros(1, 2**17, 2**14, dtype=torch.float16, device="meta"))
