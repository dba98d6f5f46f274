"""Experts of a few neurons against their twin and against the grouped GEMMs, at awkward sizes and
beyond 2^31.
"""

import pytest
import torch
from moesim_kernels.ops.layer import LayerWeights, expert_phase_reference
from moesim_kernels.ops.tiny_expert import tiny_expert, tiny_expert_reference
from moesim_kernels.timing.bench import random_ids

from moesim.model import MoELayer

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")


def _operands(tokens, experts, top_k, width, hidden, dtype, device, activation="swiglu"):
    generator = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(shape, generator=generator)

    rows = 2 * width if activation == "swiglu" else width
    return (
        (normal(tokens, hidden)).to(dtype).to(device),
        (normal(experts, rows, hidden) * hidden**-0.5).to(dtype).to(device),
        normal(experts, width, hidden).to(dtype).to(device),
        random_ids(tokens, experts, top_k, device=device),
        torch.rand(tokens, top_k, generator=generator).to(device),
    )


@pytest.mark.parametrize("activation", ["swiglu", "gelu"])
@pytest.mark.parametrize(
    ("tokens", "experts", "top_k", "width", "hidden", "dtype"),
    [
        (0, 7, 2, 1, 16, torch.float32),
        (1, 1, 1, 1, 1, torch.float32),
        (9, 911, 16, 1, 259, torch.float32),
        (13, 61, 7, 3, 96, torch.bfloat16),
        (5, 8, 8, 4, 1023, torch.float16),
        (2, 100_000, 128, 1, 64, torch.bfloat16),
    ],
)
def test_equals_reference(device, tokens, experts, top_k, width, hidden, dtype, activation):
    operands = _operands(tokens, experts, top_k, width, hidden, dtype, device, activation)
    out_TH, want_TH = (
        tiny_expert(*operands, activation),
        tiny_expert_reference(*operands, activation),
    )
    assert (out_TH.shape, out_TH.dtype) == ((tokens, hidden), dtype)
    bound = {torch.float32: 2e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}[dtype]
    if tokens:
        assert (out_TH - want_TH).abs().max() <= bound * want_TH.abs().max()
        assert torch.equal(out_TH, tiny_expert(*operands, activation)), "the same bits every time"


def test_is_the_expert_phase_of_narrow_experts():
    layer = MoELayer(hidden_size=40, expert_intermediate_size=3, num_experts=12, top_k=4)
    weights = LayerWeights.random(layer, 0, torch.float32)
    x_TH, _, _, ids_TK, weights_TK = _operands(17, 12, 4, 3, 40, torch.float32, "cpu")
    torch.testing.assert_close(
        tiny_expert_reference(
            x_TH, weights.w_gate_up, weights.w_down.mT.contiguous(), ids_TK, weights_TK
        ),
        expert_phase_reference(x_TH, ids_TK, weights_TK, weights),
        rtol=1e-5,
        atol=1e-5,
    )


def test_offsets_beyond_two_to_the_31(device):
    hidden, experts = 1024, 2**20 + 2
    # Never touched but for its last expert, so the 4 GiB stay virtual on a CPU.
    w_in = torch.empty(experts, 2, hidden, dtype=torch.float16, device=device)
    w_out = torch.empty(experts, 1, hidden, dtype=torch.float16, device=device)
    x_TH, w_in[-1:], w_out[-1:], _, weights_TK = _operands(
        2, 1, 1, 1, hidden, torch.float16, device
    )
    ids_TK = torch.full((2, 1), experts - 1, dtype=torch.int32, device=device)
    torch.testing.assert_close(
        tiny_expert(x_TH, w_in, w_out, ids_TK, weights_TK),
        tiny_expert_reference(x_TH, w_in[-1:], w_out[-1:], ids_TK * 0, weights_TK),
        rtol=2e-3,
        atol=1e-3,
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({0: lambda x: x.double()}, "x_TH: expected bfloat16"),
        ({0: lambda x: x.half()}, "expected torch.float16 as x_TH"),
        ({1: lambda w: w[:, :3]}, r"w_in: expected shape \(6, 4, 8\)"),
        ({2: lambda w: w[0]}, "w_out_EIH of shape"),
        ({3: lambda ids: ids.long()}, "ids_TK: expected torch.int32"),
        ({3: lambda ids: ids + 9}, "from 0 to 5"),
        ({3: lambda ids: ids - 9}, "from 0 to 5, got -"),
        ({4: lambda w: w[:2]}, "weights_TK: expected torch.float32"),
        ({0: lambda x: x.T.contiguous().T}, "expected contiguous tensors"),
        ({5: lambda _: "relu"}, "activation: expected"),
    ],
)
def test_refuses(device, change, message):
    operands = [*_operands(3, 6, 2, 2, 8, torch.float32, device), "swiglu"]
    for position, function in change.items():
        operands[position] = function(operands[position])
    with pytest.raises(ValueError, match=message):
        tiny_expert(*operands)
    if "contiguous" not in message:
        with pytest.raises(ValueError, match=message):
            tiny_expert_reference(*operands)
