"""Block-scaled 8-bit floats: quantisers to the bit, products against torch on the same numbers,
errors to float32.
"""

from dataclasses import replace

import pytest
import torch
from moesim_kernels.ops.fp8 import (
    quantise_blocks,
    quantise_blocks_reference,
    quantise_rows,
    quantise_rows_reference,
)
from moesim_kernels.ops.grouped_down import grouped_down, grouped_down_reference
from moesim_kernels.ops.grouped_linear import grouped_linear, grouped_linear_reference
from moesim_kernels.ops.grouped_swiglu import grouped_swiglu, grouped_swiglu_reference
from moesim_kernels.ops.layer import LayerWeights, moe_layer
from moesim_kernels.ops.operands import (
    LARGEST,
    BlockScaled,
    float_matrices,
    float_rows,
    require_product,
)
from moesim_kernels.ops.plan import make_plan, make_plan_reference
from moesim_kernels.ops.runtime import fp8_dtype, triton_mode
from moesim_kernels.tiles.tiles import LIMITS, Tile
from moesim_kernels.timing.bench import random_ids

from moesim.errors import ConfigError
from moesim.model import Gate, MoELayer, Precision

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")

#: a GPU casts to its own 8-bit format alone; the interpreter knows all of them
MADE_HERE = (fp8_dtype(),) if triton_mode() == "gpu" else tuple(LARGEST)
E4M3, FNUZ = torch.float8_e4m3fn, torch.float8_e4m3fnuz
# tokens, experts, top_k, hidden, width, skew
CASES = [
    (0, 4, 2, 128, 32, 0.0),
    (1, 1, 1, 37, 129, 0.0),
    (50, 61, 4, 129, 37, 1.2),
    (37, 5, 5, 256, 64, 0.0),
    (200, 3, 1, 300, 130, 2.0),
    (20, 8, 1, 1, 1, 0.0),
]


def _normal(*shape, dtype=torch.float32, device="cpu", seed=0):
    values = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return values.to(dtype).to(device)


def _same_bits(one, other):
    return torch.equal(
        one.values.view(torch.uint8), other.values.view(torch.uint8)
    ) and torch.equal(one.scales, other.scales)


@pytest.mark.parametrize("dtype", MADE_HERE)
@pytest.mark.parametrize(("rows", "columns"), [(0, 128), (1, 1), (3, 128), (130, 129), (61, 400)])
def test_quantisers_equal_their_references_to_the_bit(device, rows, columns, dtype):
    x = _normal(rows, columns, device=device) * torch.logspace(-30, 20, columns, device=device)
    x[:, ::3] = 0.0
    scaled = quantise_rows(x, dtype)
    assert _same_bits(scaled, quantise_rows_reference(x, dtype))
    assert scaled.scales.shape == (rows, -(-columns // 128))
    if rows:
        w = torch.stack([x, x * 0.0, x * 1e-3])
        assert _same_bits(quantise_blocks(w, dtype), quantise_blocks_reference(w, dtype))


@pytest.mark.parametrize("dtype", MADE_HERE)
def test_quantising_keeps_three_bits_and_the_largest_number(device, dtype):
    x = _normal(40, 256, device=device, dtype=torch.bfloat16)
    scaled, largest = quantise_rows(x, dtype), x.float().unflatten(1, (-1, 128)).abs().amax(2)
    back = float_rows(scaled)
    # Half a step of 3 bits, or of the smallest subnormal (2^-9; fnuz 2^-10) for small ones.
    bound = torch.maximum(
        x.float().abs() * 2**-4, (scaled.scales * 2**-10).repeat_interleave(128, 1)
    )
    assert ((back - x.float()).abs() <= bound * 1.0001).all()
    torch.testing.assert_close(
        back.unflatten(1, (-1, 128)).abs().amax(2), largest, rtol=1e-6, atol=0
    )


@pytest.mark.parametrize(("tokens", "experts", "top_k", "hidden", "width", "skew"), CASES)
def test_products_equal_references(device, tokens, experts, top_k, hidden, width, skew):
    x = quantise_rows_reference(_normal(tokens, hidden, seed=1, device=device))
    w_gate_up = quantise_blocks_reference(
        _normal(experts, 2 * width, hidden, seed=2, device=device) * hidden**-0.5
    )
    w_down = quantise_blocks_reference(
        _normal(experts, hidden, width, seed=3, device=device) * width**-0.5
    )
    plan = make_plan(random_ids(tokens, experts, top_k, skew=skew, device=device), experts, 32)
    act_PI = grouped_swiglu(x, w_gate_up, plan)
    want_PI = grouped_swiglu_reference(x, w_gate_up, plan)
    assert act_PI.dtype == torch.bfloat16
    torch.testing.assert_close(act_PI, want_PI, rtol=8e-3, atol=1e-5)
    exact_PI = grouped_swiglu(x, w_gate_up, plan, out_dtype=torch.float32)
    want_PI = grouped_swiglu_reference(x, w_gate_up, plan, out_dtype=torch.float32)
    act = quantise_rows_reference(want_PI)
    y_PH = grouped_down(act, w_down, plan, out_dtype=torch.float32)
    want_PH = grouped_down_reference(act, w_down, plan, out_dtype=torch.float32)
    logits = grouped_linear(x, w_gate_up, plan, gather=True, out_dtype=torch.float32)
    want_logits = grouped_linear_reference(x, w_gate_up, plan, gather=True, out_dtype=torch.float32)
    for got, want in ((exact_PI, want_PI), (y_PH, want_PH), (logits, want_logits)):
        if tokens:
            assert (got - want).abs().max() <= 2e-6 * want.abs().max()


def test_steps_may_be_shorter_than_a_block_of_scales(device):
    x = quantise_rows_reference(_normal(40, 200, device=device))
    w = quantise_blocks_reference(_normal(3, 70, 200, device=device, seed=1))
    plan = make_plan(random_ids(40, 3, 2, device=device), 3, 16)
    tile = Tile(block_m=16, block_n=32, block_k=64)
    got, want = (
        call(x, w, plan, gather=True, out_dtype=torch.float32, **config)
        for call, config in ((grouped_linear, {"config": tile}), (grouped_linear_reference, {}))
    )
    assert (got - want).abs().max() <= 2e-6 * want.abs().max()
    with pytest.raises(
        ValueError, match=r"tile.block_k: expected a divisor of 128 for scaled operands, got 256"
    ):
        grouped_linear(x, w, plan, gather=True, config=replace(tile, block_k=256))


def _layer(**options):
    return MoELayer(
        **{
            "hidden_size": 256,
            "expert_intermediate_size": 192,
            "num_experts": 8,
            "top_k": 2,
            "precision": Precision.named("fp8"),
        }
        | options
    )


@pytest.mark.parametrize(
    "layer",
    [
        _layer(),
        _layer(hidden_size=129, expert_intermediate_size=37, num_shared_experts=1),
        _layer(num_experts=6, gate=Gate.parse("two_level:3:2")),
    ],
)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_layer_equals_reference_and_stays_near_float32(device, layer, dtype):
    weights = LayerWeights.random(layer, seed=0, device=device)
    assert isinstance(weights.w_gate_up, BlockScaled)
    x_TH = _normal(70, layer.hidden_size, dtype=dtype, device=device)
    out_TH, want_TH = moe_layer(x_TH, weights, layer), moe_layer(x_TH, weights, layer, "torch")
    assert out_TH.dtype == dtype
    # Sums in another order round some activations to the neighbouring number, and where that is the
    # largest of a bfloat16 block, all of the block's are scaled by another number.
    bound = 2e-2 if dtype == torch.bfloat16 else 5e-3
    assert (out_TH - want_TH).float().norm() <= bound * want_TH.float().norm()
    plain = LayerWeights.random(layer, seed=0, dtype=torch.float32, device=device)
    exact_TH = moe_layer(x_TH.float(), plain, layer, "torch")
    # Each operand is off by 2.6 % (root mean square): tokens and weights of both products, one
    # after the other.
    assert 0.02 < (out_TH.float() - exact_TH).norm() / exact_TH.norm() < 0.08


def test_weights_of_a_layer_are_its_plain_ones_quantised(device):
    layer = _layer(num_shared_experts=2)
    scaled = LayerWeights.random(layer, seed=3, device=device)
    plain = LayerWeights.random(layer, seed=3, device=device, dtype=torch.float32)
    for name in ("w_gate_up", "w_down", "shared_gate_up", "shared_down"):
        one, other = torch.stack(list(float_matrices(getattr(scaled, name)))), getattr(plain, name)
        assert (one - other).norm() < 0.04 * other.norm()


def test_refuses(device):
    plan = make_plan_reference(random_ids(4, 3, 2, device=device), 3, 16)
    x, w = _normal(4, 8, device=device), _normal(3, 6, 8, device=device)
    x8, w8 = quantise_rows_reference(x), quantise_blocks_reference(w)
    for call, message in [
        (
            lambda: grouped_swiglu(x8, w, plan),
            "x_TH, w_gate_up: expected both as BlockScaled or neither",
        ),
        (
            lambda: grouped_swiglu(x8, quantise_blocks_reference(w, FNUZ), plan),
            "w_gate_up: expected torch.float8_e4m3fn as x_TH, got torch.float8_e4m3fnuz",
        ),
        (
            lambda: grouped_linear(BlockScaled(x8.values, x8.scales[:, :0]), w8, plan, gather=True),
            r"a: expected scales of shape \(4, 1\), one for each 128 elements, got \(4, 0\)",
        ),
        (
            lambda: grouped_linear(
                x8, BlockScaled(w8.values, w8.scales.double()), plan, gather=True
            ),
            "w_ENC: expected 8-bit values of 3 dimensions and float32 scales",
        ),
        (
            lambda: grouped_swiglu(BlockScaled(x, x8.scales), BlockScaled(w, w8.scales), plan),
            "expected 8-bit values",
        ),
        (lambda: quantise_rows(x.double()), "x_RC: expected bfloat16"),
        (lambda: quantise_rows(w), "x_RC: expected 2 dimensions"),
        (lambda: quantise_rows(x, torch.float8_e5m2), "dtype: expected one of torch.float8_e4m3fn"),
        (
            lambda: grouped_swiglu(x.to(E4M3), w.to(E4M3), plan),
            "x_TH: expected bfloat16, float16 or float32",
        ),
    ]:
        with pytest.raises(ValueError, match=message):
            call()


@pytest.mark.parametrize(
    ("precision", "message"),
    [
        (
            Precision.named("fp8_tensor"),
            "scale_block 128 beside weights float8_e4m3 .* got .* scale_block 0",
        ),
        (
            Precision(weights="float8_e4m3"),
            "expected activations float8_e4m3 .* got activations bfloat16",
        ),
        (Precision.named("int8"), "expected one of bfloat16"),
    ],
)
def test_refuses_other_8_bit_layers(precision, message):
    with pytest.raises(ConfigError, match=message):
        LayerWeights.random(_layer(precision=precision), seed=0)


def test_has_no_gradients(device):
    layer = _layer()
    weights = LayerWeights.random(layer, seed=0, device=device)
    x_TH = _normal(3, 256, dtype=torch.bfloat16, device=device).requires_grad_()
    with pytest.raises(ValueError, match="block-scaled ones have no gradients"):
        moe_layer(x_TH, weights, layer)
    with torch.no_grad():
        assert moe_layer(x_TH, weights, layer).isfinite().all()


@pytest.mark.parametrize(
    ("target", "can"),
    [
        ("sm_80", ""),
        ("sm_89", "float8_e4m3fn"),
        ("sm_90", "float8_e4m3fn"),
        ("gfx942", "float8_e4m3fnuz"),
        ("gfx950", "float8_e4m3fn"),
    ],
)
def test_a_gpu_multiplies_its_own_format_only(monkeypatch, target, can):
    monkeypatch.setattr("moesim_kernels.ops.operands.triton_mode", lambda: "gpu")
    monkeypatch.setattr("moesim_kernels.ops.operands.limits", lambda: LIMITS[target])
    tile = Tile(block_m=16, block_n=16, block_k=128)
    for dtype in LARGEST:
        operand = quantise_rows_reference(torch.ones(2, 128), dtype)
        if str(dtype) == f"torch.{can}":
            require_product(operand, tile)
        else:
            with pytest.raises(ValueError, match=f"units have no product of {dtype}"):
                require_product(operand, tile)
