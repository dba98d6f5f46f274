"""Gradients of the expert path against torch's own, at awkward sizes."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from moesim_kernels.ops.expert_grad import experts, experts_reference
from moesim_kernels.ops.grouped_outer import grouped_outer, grouped_outer_reference, outer_tile
from moesim_kernels.ops.layer import LayerWeights, moe_layer
from moesim_kernels.ops.plan import make_plan_reference
from moesim_kernels.ops.swiglu_grad import swiglu_grad, swiglu_grad_reference
from moesim_kernels.tiles.tiles import LIMITS
from moesim_kernels.timing.bench import random_ids

from moesim.model import Gate, MoELayer

pytestmark = [pytest.mark.full, pytest.mark.filterwarnings("ignore::RuntimeWarning")]
# tokens, experts, top_k, hidden, width, skew
SIZES = [
    (0, 4, 2, 32, 16, 0.0),
    (1, 1, 1, 37, 129, 0.0),
    (1, 61, 4, 33, 1, 0.0),
    (131, 7, 3, 65, 37, 1.2),
    (64, 5, 5, 96, 64, 0.0),
    (50, 11, 1, 129, 70, 2.0),
]


def _normal(*shape, seed, scale=1.0, device="cpu"):
    return (torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * scale).to(device)


def _operands(tokens, experts, top_k, hidden, width, skew, device, dtype=torch.float32):
    plan = make_plan_reference(
        random_ids(tokens, experts, top_k, skew=skew, device=device), experts, 16
    )
    tensors = (
        _normal(tokens, hidden, seed=1, device=device).to(dtype),
        _normal(tokens, top_k, seed=2, device=device).abs(),
        _normal(experts, 2 * width, hidden, seed=3, scale=hidden**-0.5, device=device).to(dtype),
        _normal(experts, hidden, width, seed=4, scale=width**-0.5, device=device).to(dtype),
    )
    return plan, [tensor.requires_grad_() for tensor in tensors]


def _textbook(x_TH, weights_TK, w_gate_up, w_down, plan):
    """Pair by pair, in plain operations that torch differentiates."""
    expert_P = torch.empty(plan.num_rows, dtype=torch.long, device=x_TH.device)
    expert_P[plan.sorted_pairs.long()] = torch.repeat_interleave(
        plan.expert_offsets_E1.diff().long()
    )
    x_PH = x_TH.float().repeat_interleave(plan.top_k, dim=0)
    gate, up = torch.einsum("pih,ph->pi", w_gate_up.float()[expert_P], x_PH).chunk(2, dim=1)
    y_PH = torch.einsum("phi,pi->ph", w_down.float()[expert_P], torch.nn.functional.silu(gate) * up)
    return (weights_TK[:, :, None] * y_PH.view(*weights_TK.shape, x_TH.shape[1])).sum(1)


def _gradients(function, tensors, *rest):
    out_TH = function(*tensors, *rest)
    grad_TH = _normal(*out_TH.shape, seed=5, device=out_TH.device).to(out_TH.dtype)
    return out_TH, torch.autograd.grad(out_TH, tensors, grad_TH)


@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("function", [experts, experts_reference])
def test_gradients_are_torchs(device, function, sizes):
    plan, tensors = _operands(*sizes, device)
    out_TH, found = _gradients(function, tensors, plan)
    want_TH, wanted = _gradients(_textbook, tensors, plan)
    for got, want in zip((out_TH, *found), (want_TH, *wanted), strict=True):
        assert got.shape == want.shape
        if want.numel():
            assert (got - want).abs().max() <= 3e-6 * want.abs().max()


@pytest.mark.parametrize(("dtype", "bound"), [(torch.bfloat16, 2e-2), (torch.float16, 3e-3)])
def test_short_formats(device, dtype, bound):
    plan, tensors = _operands(70, 6, 2, 64, 48, 1.0, device, dtype)
    out_TH, found = _gradients(experts, tensors, plan)
    want_TH, wanted = _gradients(_textbook, tensors, plan)
    for got, want in zip((out_TH, *found), (want_TH, *wanted), strict=True):
        assert (got.float() - want.float()).abs().max() <= bound * want.float().abs().max()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("function", [experts, experts_reference])
def test_pre_activations_are_kept_or_computed_again(device, function, dtype):
    plan, tensors = _operands(40, 6, 2, 64, 48, 1.0, device, dtype)
    kept, again = (
        _gradients(partial(function, recompute=recompute), tensors, plan)
        for recompute in (False, True)
    )
    for got, want in zip((kept[0], *kept[1]), (again[0], *again[1]), strict=True):
        torch.testing.assert_close(
            got, want, rtol=2e-2, atol=2e-2 * float(want.detach().abs().max())
        )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("tokens", "top_k", "width"), [(0, 2, 16), (7, 3, 1), (5, 2, 1500)])
def test_the_gradient_of_swiglu_in_one_pass(device, tokens, top_k, width, dtype):
    gate_up_P2I = _normal(tokens * top_k, 2 * width, seed=1, device=device).to(dtype)
    z_PI = _normal(tokens * top_k, width, seed=2, device=device).to(dtype)
    weights_TK = _normal(tokens, top_k, seed=3, device=device).abs()
    operands = (gate_up_P2I, z_PI, weights_TK)
    for got, want in zip(swiglu_grad(*operands), swiglu_grad_reference(*operands), strict=True):
        assert (got.dtype, got.shape) == (want.dtype, want.shape)
        bound = {torch.float32: 1e-5, torch.bfloat16: 8e-3}[want.dtype]
        torch.testing.assert_close(got, want, rtol=bound, atol=bound * 10)
    if tokens:
        with pytest.raises(ValueError, match="z_PI: expected"):
            swiglu_grad(gate_up_P2I, z_PI[1:], weights_TK)
        with pytest.raises(ValueError, match="weights_TK: expected"):
            swiglu_grad(gate_up_P2I, z_PI, weights_TK.half())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("function", [experts, experts_reference])
def test_gradients_are_added_to_a_buffer_in_place(device, function, dtype):
    plan, tensors = _operands(40, 6, 2, 64, 48, 1.0, device, dtype)
    x_TH, weights_TK, w_gate_up, w_down = tensors
    wanted = _gradients(function, tensors, plan)[1]
    w_gate_up.main_grad = torch.ones_like(w_gate_up, dtype=torch.float32)
    w_down.main_grad = torch.full_like(w_down, 2.0)
    buffers = [w_gate_up.main_grad.clone(), w_down.main_grad.clone()]
    places = [w.main_grad.data_ptr() for w in (w_gate_up, w_down)]
    out_TH = function(*tensors, plan)
    out_TH.backward(_normal(*out_TH.shape, seed=5, device=device).to(dtype))
    assert (w_gate_up.grad, w_down.grad) == (None, None)
    assert places == [w.main_grad.data_ptr() for w in (w_gate_up, w_down)]
    bound = {torch.float32: 1e-5, torch.bfloat16: 2e-2}[dtype]
    for w, before, want in zip((w_gate_up, w_down), buffers, wanted[2:], strict=True):
        torch.testing.assert_close(
            w.main_grad.float(), before.float() + want.float(), rtol=bound, atol=bound
        )
    torch.testing.assert_close(x_TH.grad, wanted[0])
    torch.testing.assert_close(weights_TK.grad, wanted[1])
    w_down.main_grad = w_down.main_grad[:, :1]
    with pytest.raises(ValueError, match="into_ENC: expected contiguous"):
        function(*tensors, plan).sum().backward()


@pytest.mark.parametrize("target", LIMITS)
@pytest.mark.parametrize("bits", [16, 32])
def test_tiles_of_outer_products_fit(target, bits):
    limits = LIMITS[target]
    for width, inner in ((1, 1), (40, 4096), (28672, 4096)):
        tile = outer_tile(width, inner, bits, limits)
        assert (
            tile.block_n + tile.block_c
        ) * tile.block_r * bits // 8 * tile.num_stages <= limits.shared_bytes
        assert tile.block_n * tile.block_c <= tile.num_warps * limits.elements_per_warp
        assert bits == 32 or tile.block_n < 2 * max(width, 16)


def test_only_what_is_asked_for(device):
    plan, tensors = _operands(20, 4, 2, 32, 16, 0.0, device)
    tensors[0].requires_grad_(False)
    experts(*tensors, plan).square().sum().backward()
    assert tensors[0].grad is None
    assert all(tensor.grad is not None for tensor in tensors[1:])


def test_second_derivatives_are_refused(device):
    plan, tensors = _operands(5, 4, 2, 16, 16, 0.0, device)
    [grad_TH] = torch.autograd.grad(
        experts(*tensors, plan).square().sum(), tensors[:1], create_graph=True
    )
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad_TH.sum().backward()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_outer_products(device, dtype):
    plan = make_plan_reference(random_ids(90, 9, 2, skew=1.5, device=device), 9, 16)
    tokens, pairs = (
        _normal(*shape, seed=1, device=device).to(dtype) for shape in ((90, 70), (180, 37))
    )
    for a, b in ((tokens, pairs), (pairs, tokens), (pairs, pairs)):
        got, want = grouped_outer(a, b, plan).float(), grouped_outer_reference(a, b, plan).float()
        assert got.shape == (9, a.shape[1], b.shape[1])
        assert (got - want).abs().max() <= {torch.float32: 2e-6, torch.bfloat16: 8e-3}[
            dtype
        ] * want.abs().max()


def test_an_expert_without_rows_has_no_gradient(device):
    plan = make_plan_reference(torch.full((5, 1), 2, dtype=torch.int32, device=device), 4, 16)
    ones = torch.ones(5, 3, device=device)
    assert grouped_outer(ones, ones, plan)[:, 0, 0].tolist() == [0, 0, 5, 0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a, b: (a.double(), b), "a: expected bfloat16"),
        (lambda a, b: (a[:2], b), "a: expected 5 rows"),
        (lambda a, b: (a, b.half()), "b: expected torch.float32 as a"),
        (lambda a, b: (a.T.contiguous().T, b), "contiguous"),
    ],
)
def test_refuses(device, change, message):
    plan = make_plan_reference(random_ids(5, 4, 2, device=device), 4, 16)
    a, b = change(_normal(5, 3, seed=0, device=device), _normal(10, 3, seed=0, device=device))
    with pytest.raises(ValueError, match=message):
        grouped_outer(a, b, plan)


@pytest.mark.parametrize(
    "gate",
    [
        Gate(precision="float32"),
        Gate(score="sigmoid", precision="float32"),
        replace(Gate.parse("group_limited:4:2"), precision="float32"),
        replace(Gate.parse("two_level:4:2"), precision="float32"),
        replace(Gate.parse("product_key:2:16"), precision="float32"),
    ],
    ids=str,
)
def test_a_whole_layer_trains(device, gate):
    """Through shared experts and gate, too: both backends give the same gradients of everything."""
    layer = MoELayer(
        hidden_size=48,
        expert_intermediate_size=20,
        num_experts=16,
        top_k=4,
        gate=gate,
        num_shared_experts=1,
    )
    weights = LayerWeights.random(layer, seed=0, dtype=torch.float32, device=device)
    names = (
        "fine_EH",
        "query_QH",
        "keys_2Sq",
        "w_gate_up",
        "w_down",
        "shared_gate_up",
        "shared_down",
    )
    tensors = {name: getattr(weights, name) for name in names}
    tensors = {
        name: tensor.requires_grad_()
        for name, tensor in tensors.items()
        if tensor is not None and tensor.numel()
    }
    x_TH = _normal(23, 48, seed=1, device=device).requires_grad_()
    gradients = []
    for backend in ("triton", "torch"):
        out_TH = moe_layer(x_TH, weights, layer, backend)
        gradients.append(
            torch.autograd.grad(out_TH, [x_TH, *tensors.values()], torch.ones_like(out_TH))
        )
    for name, got, want in zip(("x_TH", *tensors), *gradients, strict=True):
        assert want.abs().max() > 0, name
        assert (got - want).abs().max() <= 1e-5 * want.abs().max(), name
