"""Grouped GEMMs and combine against their twins; what they must not read or write."""

import math

import pytest
import torch
from moesim_kernels.ops.dense_plan import dense_plan
from moesim_kernels.ops.gate_logits import gate_logits
from moesim_kernels.ops.grouped_down import (
    combine,
    combine_reference,
    grouped_down,
    grouped_down_reference,
)
from moesim_kernels.ops.grouped_linear import grouped_linear, grouped_linear_reference
from moesim_kernels.ops.grouped_swiglu import grouped_swiglu, grouped_swiglu_reference
from moesim_kernels.ops.plan import Plan, make_plan, make_plan_reference
from moesim_kernels.tiles.tiles import Tile
from moesim_kernels.timing.bench import random_ids

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")

# One unit in the last place of each format, and a little for the order of float32 sums.
TOLERANCE = {
    torch.float32: {"rtol": 1e-5, "atol": 1e-5},
    torch.float16: {"rtol": 2e-3, "atol": 1e-3},
    torch.bfloat16: {"rtol": 1.6e-2, "atol": 8e-3},
}
# tokens, experts, top_k, hidden, width, dtype, skew
CASES = [
    (0, 4, 2, 32, 32, torch.bfloat16, 0.0),
    (1, 1, 1, 37, 129, torch.float32, 0.0),
    (50, 61, 4, 129, 37, torch.bfloat16, 1.2),
    (37, 5, 5, 64, 37, torch.float16, 0.0),
    (200, 3, 1, 160, 130, torch.float32, 2.0),
    (90, 2, 2, 128, 300, torch.bfloat16, 0.0),
    (20, 8, 1, 1, 1, torch.float32, 0.0),
]


def _normal(*shape, dtype=torch.float32, device="cpu", seed=0):
    values = torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * shape[-1] ** -0.5
    return values.to(dtype).to(device)


def _tokens(*shape, dtype, device):
    return (_normal(*shape, seed=1) * shape[-1] ** 0.5).to(dtype).to(device)


@pytest.mark.parametrize(("tokens", "experts", "top_k", "hidden", "width", "dtype", "skew"), CASES)
def test_equals_reference(device, tokens, experts, top_k, hidden, width, dtype, skew):
    x_TH = _tokens(tokens, hidden, dtype=dtype, device=device)
    w_gate_up = _normal(experts, 2 * width, hidden, dtype=dtype, device=device, seed=2)
    w_down = _normal(experts, hidden, width, dtype=dtype, device=device, seed=3)
    plan = make_plan(random_ids(tokens, experts, top_k, skew=skew, device=device), experts, 32)

    act_PI = grouped_swiglu(x_TH, w_gate_up, plan)
    want_PI = grouped_swiglu_reference(x_TH, w_gate_up, plan)
    assert act_PI.dtype == dtype
    torch.testing.assert_close(act_PI, want_PI, **TOLERANCE[dtype])

    y_PH = grouped_down(want_PI, w_down, plan)
    want_PH = grouped_down_reference(want_PI, w_down, plan)
    assert y_PH.dtype == dtype
    torch.testing.assert_close(y_PH, want_PH, **TOLERANCE[dtype])

    weights_TK = torch.rand(tokens, top_k, generator=torch.Generator().manual_seed(4)).to(device)
    out_TH = combine(want_PH, weights_TK)
    assert out_TH.shape == x_TH.shape
    torch.testing.assert_close(out_TH, combine_reference(want_PH, weights_TK), **TOLERANCE[dtype])
    assert torch.equal(out_TH, combine(want_PH, weights_TK)), "the same bits every time"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_one_hot_expert(device, dtype):
    x_TH, w = (
        _tokens(150, 40, dtype=dtype, device=device),
        _normal(61, 34, 40, dtype=dtype, device=device),
    )
    plan = make_plan_reference(torch.full((150, 1), 60, dtype=torch.int32, device=device), 61, 64)
    torch.testing.assert_close(
        grouped_swiglu(x_TH, w, plan), grouped_swiglu_reference(x_TH, w, plan), **TOLERANCE[dtype]
    )


@pytest.mark.parametrize(
    "tile",
    [
        Tile(block_m=64, block_n=16, block_k=32, group_m=3),
        Tile(block_m=64, block_n=64, block_k=128, group_m=8),
    ],
)
def test_any_tile_gives_the_same_numbers(device, tile):
    x_TH, w = (
        _tokens(130, 96, dtype=torch.float32, device=device),
        _normal(3, 80, 96, device=device),
    )
    plan = make_plan(random_ids(130, 3, 2, device=device), 3, 16)
    torch.testing.assert_close(
        grouped_swiglu(x_TH, w, plan, tile),
        grouped_swiglu_reference(x_TH, w, plan),
        rtol=1e-5,
        atol=1e-5,
    )
    torch.testing.assert_close(
        grouped_linear(x_TH, w, plan, gather=True, config=tile),
        grouped_linear_reference(x_TH, w, plan, gather=True),
        rtol=1e-5,
        atol=1e-5,
    )


@pytest.mark.parametrize(
    ("tokens", "experts", "hidden", "dtype"),
    [
        (0, 3, 16, torch.float32),
        (1, 1, 37, torch.bfloat16),
        (77, 61, 129, torch.bfloat16),
        (300, 5, 64, torch.float16),
    ],
)
def test_gate_logits(device, tokens, experts, hidden, dtype):
    x_TH = _tokens(tokens, hidden, dtype=dtype, device=device)
    keys_EH = _normal(experts, hidden, dtype=dtype, device=device)
    logits_TE = gate_logits(x_TH, keys_EH)
    assert logits_TE.dtype == torch.float32
    torch.testing.assert_close(logits_TE, x_TH.float() @ keys_EH.float().T, rtol=1e-5, atol=1e-5)


def test_dense_plan_is_the_plan_of_one_expert():
    dense = dense_plan(100, 16, torch.device("cpu"))
    want = make_plan_reference(torch.zeros(100, 1, dtype=torch.int32), 1, 16)
    for name in ("sorted_pairs", "expert_offsets_E1", "tile_expert", "tile_row", "num_tiles"):
        assert torch.equal(getattr(dense, name), getattr(want, name)), name


@pytest.mark.parametrize(
    ("tokens", "experts", "top_k", "inner", "width", "dtype"),
    [
        (1, 1, 1, 37, 129, torch.float32),
        (50, 9, 4, 129, 37, torch.bfloat16),
        (37, 5, 5, 64, 48, torch.float16),
        (90, 2, 2, 128, 300, torch.float32),
    ],
)
@pytest.mark.parametrize("gather", [True, False])
def test_matrices_that_lie_the_other_way(
    device, tokens, experts, top_k, inner, width, dtype, gather
):
    plan = make_plan(random_ids(tokens, experts, top_k, skew=1.0, device=device), experts, 16)
    a = _tokens(tokens if gather else tokens * top_k, inner, dtype=dtype, device=device)
    w_ENC = _normal(experts, width, inner, dtype=dtype, device=device, seed=2)
    turned = w_ENC.mT.contiguous()
    got = grouped_linear(a, turned, plan, gather=gather, transposed=True)
    torch.testing.assert_close(
        got, grouped_linear(a, w_ENC, plan, gather=gather), **TOLERANCE[dtype]
    )
    want = grouped_linear_reference(a, turned, plan, gather=gather, transposed=True)
    torch.testing.assert_close(
        want, grouped_linear_reference(a, w_ENC, plan, gather=gather), **TOLERANCE[dtype]
    )
    torch.testing.assert_close(got, want, **TOLERANCE[dtype])


@pytest.mark.parametrize("top_k", [1, 16, 17, 40])
def test_combine_of_any_number_of_experts(device, top_k):
    y_PH, weights_TK = _normal(9 * top_k, 300, device=device), torch.rand(9, top_k).to(device)
    torch.testing.assert_close(
        combine(y_PH, weights_TK), combine_reference(y_PH, weights_TK), rtol=1e-5, atol=1e-5
    )


def _inside_nan(tensor):
    """A contiguous copy of ``tensor`` with NaN before and after it."""
    guard = 4096
    buffer = torch.full(
        (tensor.numel() + 2 * guard,), float("nan"), dtype=tensor.dtype, device=tensor.device
    )
    inner = buffer[guard : guard + tensor.numel()].view(tensor.shape)
    return inner.copy_(tensor)


def test_reads_and_writes_nothing_beside_its_tensors(device, monkeypatch):
    guard, buffers, empty = 4096, [], torch.empty

    def guarded_empty(*shape, dtype, device):
        shape = shape[0] if isinstance(shape[0], tuple) else shape
        size = math.prod(shape)
        buffer = torch.full((size + 2 * guard,), 77, dtype=dtype, device=device)
        buffers.append(buffer)
        return buffer[guard : guard + size].view(shape)

    x_TH = _inside_nan(_tokens(21, 37, dtype=torch.float32, device=device))
    w_gate_up = _inside_nan(_normal(5, 2 * 13, 37, device=device))
    w_down = _inside_nan(_normal(5, 37, 13, device=device))
    weights_TK = _inside_nan(torch.full((21, 2), 0.5, device=device))
    ids_TK = random_ids(21, 5, 2, device=device)
    monkeypatch.setattr(torch, "empty", guarded_empty)
    plan = make_plan(ids_TK, 5, 16)
    out_TH = combine(grouped_down(grouped_swiglu(x_TH, w_gate_up, plan), w_down, plan), weights_TK)
    monkeypatch.setattr(torch, "empty", empty)
    assert out_TH.isfinite().all()
    assert len(buffers) >= 4
    for buffer in buffers:
        assert (buffer[:guard] == 77).all()
        assert (buffer[-guard:] == 77).all()


def test_offsets_beyond_two_to_the_31(device):
    width, hidden, rows = 64, 256, 3
    num_experts = 2**31 // (2 * width * hidden) + 2
    # Never touched but for its last expert, so the 4 GiB stay virtual on a CPU.
    w_gate_up = torch.empty(num_experts, 2 * width, hidden, dtype=torch.float16, device=device)
    w_gate_up[-1] = _normal(2 * width, hidden, dtype=torch.float16, device=device)
    x_TH = _tokens(rows, hidden, dtype=torch.float16, device=device)

    def ints(*values):
        return torch.tensor(values, dtype=torch.int32, device=device)

    offsets_E1 = torch.zeros(num_experts + 1, dtype=torch.int32, device=device)
    offsets_E1[-1] = rows
    shared = {
        "sorted_pairs": ints(0, 1, 2),
        "tile_row": ints(0, -1),
        "num_tiles": ints(1),
        "block_m": 16,
        "top_k": 1,
    }
    plan = Plan(expert_offsets_E1=offsets_E1, tile_expert=ints(num_experts - 1, -1), **shared)
    small = Plan(expert_offsets_E1=ints(0, rows), tile_expert=ints(0, -1), **shared)
    torch.testing.assert_close(
        grouped_swiglu(x_TH, w_gate_up, plan),
        grouped_swiglu_reference(x_TH, w_gate_up[-1:], small),
        **TOLERANCE[torch.float16],
    )
    linear = grouped_linear(x_TH, w_gate_up, plan, gather=False)
    torch.testing.assert_close(
        linear,
        grouped_linear_reference(x_TH, w_gate_up[-1:], small, gather=False),
        **TOLERANCE[torch.float16],
    )


def test_refuses(device):
    plan = make_plan_reference(random_ids(4, 3, 2, device=device), 3, 16)
    x_TH, w = torch.zeros(4, 8, device=device), torch.zeros(3, 6, 8, device=device)
    for call, message in [
        (lambda: grouped_swiglu(x_TH, w[:, :5], plan), "2I, H"),
        (lambda: grouped_swiglu(x_TH, w.half(), plan), "w_gate_up: expected torch.float32"),
        (lambda: grouped_swiglu(x_TH[:3], w, plan), "expected 3 x 2 pairs, got 8"),
        (lambda: grouped_swiglu(x_TH.int(), w, plan), "x_TH: expected bfloat16"),
        (lambda: grouped_linear(x_TH, w, plan, gather=False), "expected 8 rows"),
        (lambda: grouped_linear(x_TH, w[:2], plan, gather=True), "E = 3"),
        (
            lambda: grouped_linear(x_TH, w.half(), plan, gather=True),
            "w_ENC: expected torch.float32",
        ),
        (lambda: combine(x_TH, torch.ones(4, 2, device=device)), r"expected shape \(8, H\)"),
        (
            lambda: combine(x_TH, torch.ones(4, 1, device=device).half()),
            "weights_TK: expected float32",
        ),
    ]:
        with pytest.raises(ValueError, match=message):
            call()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_one_expert_of_each_token_needs_no_combine(device, dtype):
    ids_TK = random_ids(70, 5, 1, skew=1.0, device=device)
    plan = make_plan(ids_TK, 5, 16)
    act_PI = _normal(70, 48, dtype=dtype, device=device, seed=1)
    w_down = (_normal(5, 64, 48, device=device, seed=2) / 7).to(dtype)
    weights_TK = _normal(70, 1, device=device, seed=3).abs()
    out_TH = grouped_down(act_PI, w_down, plan, weights_TK=weights_TK)
    want_TH = combine(grouped_down(act_PI, w_down, plan), weights_TK)
    bound = {torch.float32: 1e-6, torch.bfloat16: 1e-2}[dtype]
    torch.testing.assert_close(out_TH, want_TH, rtol=bound, atol=bound)
    with pytest.raises(ValueError, match="weights_TK: expected shape"):
        grouped_down(act_PI, w_down, plan, weights_TK=weights_TK[:3])
