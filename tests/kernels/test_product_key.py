"""The product-key gate against a score for every expert: exact indices, also where scores tie."""

import pytest
import torch
from moesim_kernels.ops.product_key import product_key_gate, product_key_gate_reference

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")


def _operands(tokens, side, heads, half, hidden, dtype, device, whole):
    """Tokens, projection and keys; ``whole`` numbers have exact products, so that ties are ties."""
    generator = torch.Generator().manual_seed(tokens + side)

    def make(*shape):
        values = (
            torch.randint(-2, 3, shape, generator=generator).float()
            if whole
            else torch.randn(shape, generator=generator)
        )
        return values.to(dtype).to(device)

    return make(tokens, hidden), make(heads * 2 * half, hidden), make(2, side, half)


@pytest.mark.parametrize("whole", [False, True], ids=["random", "ties"])
@pytest.mark.parametrize(
    ("tokens", "side", "heads", "top_k", "half", "hidden", "dtype"),
    [
        (0, 4, 2, 2, 8, 16, torch.float32),
        (1, 1, 1, 1, 5, 37, torch.float32),
        (40, 9, 1, 9, 8, 37, torch.float32),
        (33, 2, 1, 4, 16, 32, torch.bfloat16),
        (33, 17, 4, 8, 8, 64, torch.bfloat16),
        (9, 64, 2, 6, 16, 33, torch.float16),
    ],
)
def test_equals_reference(device, tokens, side, heads, top_k, half, hidden, dtype, whole):
    operands = _operands(tokens, side, heads, half, hidden, dtype, device, whole)
    weights_TK, ids_TK = product_key_gate(*operands, heads, top_k)
    want_weights_TK, want_ids_TK = product_key_gate_reference(*operands, heads, top_k)
    assert torch.equal(ids_TK, want_ids_TK)
    torch.testing.assert_close(weights_TK, want_weights_TK, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("gate", [product_key_gate, product_key_gate_reference])
def test_rows_and_columns_add_up(gate, device):
    """One token whose query is itself: rows score 0, 3, 1 and columns 5, 0, 4."""
    x_TH, query_QH = torch.ones(1, 2, device=device), torch.eye(2, device=device)
    keys_2Sq = torch.tensor([[0.0, 3.0, 1.0], [5.0, 0.0, 4.0]], device=device)[:, :, None]
    weights_TK, ids_TK = gate(x_TH, query_QH, keys_2Sq, 1, 4)
    assert ids_TK.tolist() == [[3, 5, 6, 0]], (
        "8 = 3 + 5, 7 = 3 + 4, 6 = 1 + 5, then the lower of two that score 5"
    )
    torch.testing.assert_close(
        weights_TK[0], torch.tensor([8.0, 7.0, 6.0, 5.0], device=device).softmax(0)
    )


@pytest.mark.parametrize(
    ("heads", "top_k", "message"),
    [(3, 3, "3 heads x 4"), (2, 3, "multiple of 2"), (2, 20, "at most 9"), (2, 0, "multiple")],
)
def test_refuses(heads, top_k, message, device):
    x_TH, query_QH, keys_2Sq = (
        torch.zeros(*shape, device=device) for shape in ((2, 4), (8, 4), (2, 3, 2))
    )
    with pytest.raises(ValueError, match=message):
        product_key_gate(x_TH, query_QH, keys_2Sq, heads, top_k)
