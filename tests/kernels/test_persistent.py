"""The persistent kernels with tensor descriptors: the numbers of the other way, and which way is
taken.
"""

import pytest
import torch
from moesim_kernels.ops import gemm_paths, persistent, runtime
from moesim_kernels.ops.fp8 import quantise_blocks_reference, quantise_rows_reference
from moesim_kernels.ops.gemm_paths import gathers_by_descriptor, gemm_path
from moesim_kernels.ops.grouped_down import grouped_down, grouped_down_reference
from moesim_kernels.ops.grouped_linear import grouped_linear
from moesim_kernels.ops.grouped_swiglu import grouped_swiglu, grouped_swiglu_reference
from moesim_kernels.ops.plan import make_plan, make_plan_reference
from moesim_kernels.tiles.tiles import LIMITS, Tile
from moesim_kernels.timing.bench import random_ids

pytestmark = [pytest.mark.full, pytest.mark.filterwarnings("ignore::RuntimeWarning")]

# One unit in the last place of each stored format.
TOLERANCE = {
    torch.float16: {"rtol": 2e-3, "atol": 1e-3},
    torch.bfloat16: {"rtol": 1.6e-2, "atol": 8e-3},
}
#: whether the accelerator gathers rows; a GPU can only do as it can
GATHERED = (
    (gathers_by_descriptor(runtime.target()),) if runtime.triton_mode() == "gpu" else (False, True)
)


def _normal(*shape, dtype=torch.float32, device="cpu", seed=0):
    values = torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * shape[-1] ** -0.5
    return values.to(dtype).to(device)


def _gathers(monkeypatch, gathered):
    monkeypatch.setattr(gemm_paths, "gathers_by_descriptor", lambda target: gathered)


# tokens, experts, top_k, hidden, width, dtype, skew
@pytest.mark.parametrize(
    ("tokens", "experts", "top_k", "hidden", "width", "dtype", "skew"),
    [
        (0, 4, 2, 32, 32, torch.bfloat16, 0.0),
        (1, 1, 1, 40, 136, torch.float16, 0.0),
        (50, 61, 4, 136, 40, torch.bfloat16, 1.2),
        (37, 5, 5, 64, 48, torch.float16, 0.0),
        (150, 3, 1, 160, 136, torch.bfloat16, 2.0),
        (20, 8, 1, 8, 8, torch.bfloat16, 0.0),
    ],
)
@pytest.mark.parametrize("gathered", GATHERED)
def test_equals_reference(
    device, monkeypatch, tokens, experts, top_k, hidden, width, dtype, skew, gathered
):
    _gathers(monkeypatch, gathered)
    x_TH = (_normal(tokens, hidden, seed=1) * hidden**0.5).to(dtype).to(device)
    w_gate_up = _normal(experts, 2 * width, hidden, dtype=dtype, device=device, seed=2)
    w_down = _normal(experts, hidden, width, dtype=dtype, device=device, seed=3)
    plan = make_plan(random_ids(tokens, experts, top_k, skew=skew, device=device), experts, 32)
    act_PI = grouped_swiglu(x_TH, w_gate_up, plan, path="descriptors")
    want_PI = grouped_swiglu_reference(x_TH, w_gate_up, plan)
    assert act_PI.dtype == dtype
    torch.testing.assert_close(act_PI, want_PI, **TOLERANCE[dtype])
    y_PH = grouped_down(want_PI, w_down, plan, path="descriptors")
    torch.testing.assert_close(
        y_PH, grouped_down_reference(want_PI, w_down, plan), **TOLERANCE[dtype]
    )


@pytest.mark.parametrize("gathered", GATHERED)
@pytest.mark.parametrize(
    ("tokens", "experts", "hidden", "width", "skew"),
    [(50, 7, 400, 80, 1.2), (130, 2, 128, 144, 0.0)],
)
def test_block_scaled_operands(device, monkeypatch, tokens, experts, hidden, width, skew, gathered):
    _gathers(monkeypatch, gathered)
    x = quantise_rows_reference(_normal(tokens, hidden, seed=1, device=device))
    w_gate_up = quantise_blocks_reference(
        _normal(experts, 2 * width, hidden, seed=2, device=device)
    )
    w_down = quantise_blocks_reference(_normal(experts, hidden, width, seed=3, device=device))
    plan = make_plan(random_ids(tokens, experts, 2, skew=skew, device=device), experts, 16)
    want_PI = grouped_swiglu_reference(x, w_gate_up, plan, out_dtype=torch.float32)
    act = quantise_rows_reference(want_PI)
    for got, want in (
        (grouped_swiglu(x, w_gate_up, plan, out_dtype=torch.float32, path="descriptors"), want_PI),
        (
            grouped_down(act, w_down, plan, out_dtype=torch.float32, path="descriptors"),
            grouped_down_reference(act, w_down, plan, out_dtype=torch.float32),
        ),
    ):
        assert (got - want).abs().max() <= 2e-6 * want.abs().max()


def test_one_hot_expert_and_any_tile(device):
    x_TH, w = (
        _normal(150, 40, dtype=torch.float16, device=device),
        _normal(61, 48, 40, dtype=torch.float16, device=device),
    )
    plan = make_plan_reference(torch.full((150, 1), 60, dtype=torch.int32, device=device), 61, 64)
    for tile in (None, Tile(block_m=64, block_n=16, block_k=32, group_m=3)):
        got = grouped_swiglu(x_TH, w, plan, tile, path="descriptors")
        torch.testing.assert_close(
            got, grouped_swiglu_reference(x_TH, w, plan), **TOLERANCE[torch.float16]
        )


@pytest.mark.parametrize("programs", [1, 5, 1000])
def test_any_number_of_programs_gives_the_same_bits(device, monkeypatch, programs):
    x_TH, w = (
        _normal(70, 64, dtype=torch.float16, device=device),
        _normal(9, 96, 64, dtype=torch.float16, device=device),
    )
    plan = make_plan(random_ids(70, 9, 2, device=device), 9, 16)
    want = grouped_swiglu(x_TH, w, plan, path="descriptors")
    monkeypatch.setattr(persistent, "num_sms", lambda: programs)
    assert torch.equal(grouped_swiglu(x_TH, w, plan, path="descriptors"), want)


def test_the_way_follows_the_gpu_and_the_operands():
    for target in LIMITS:
        want = "descriptors" if target in ("sm_90", "sm_100", "sm_120") else "pointers"
        assert gemm_path(target, element_bytes=2, depth=4096) == want
        assert gemm_path(target, element_bytes=1, depth=4096) == want
        assert gemm_path(target, element_bytes=4, depth=4096) == "pointers"
    assert gemm_path("", element_bytes=2, depth=4096) == "pointers"
    assert gemm_path("sm_103", element_bytes=2, depth=4096) == "descriptors"
    assert gemm_path("sm_90", element_bytes=2, depth=1028) == "pointers"
    assert gemm_path("sm_90", element_bytes=1, depth=1032) == "pointers"
    assert gemm_path("sm_90", element_bytes=2, depth=4096, address=8) == "pointers"
    assert [target for target in LIMITS if gathers_by_descriptor(target)] == ["sm_100"]


def test_refuses(device):
    plan = make_plan_reference(random_ids(4, 3, 2, device=device), 3, 16)
    x, w = torch.zeros(4, 12, device=device).half(), torch.zeros(3, 6, 12, device=device).half()
    for call, message in [
        (
            lambda: grouped_swiglu(x, w, plan, path="descriptors"),
            "expected 'pointers' for operands of more than 16",
        ),
        (
            lambda: grouped_swiglu(x, w, plan, path="tma"),
            "path: expected 'pointers' or 'descriptors', got 'tma'",
        ),
        (
            lambda: grouped_linear(
                torch.zeros(8, 8, device=device),
                torch.zeros(3, 5, 8, device=device),
                plan,
                gather=False,
                path="descriptors",
            ),
            "path: expected 'pointers' .* got torch.float32",
        ),
    ]:
        with pytest.raises(ValueError, match=message):
            call()
