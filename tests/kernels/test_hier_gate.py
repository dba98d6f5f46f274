"""The two-level gate against its twin: exact indices, also where whole rows tie."""

import pytest
import torch
from moesim_kernels.ops.hier_gate import two_level_gate, two_level_gate_reference

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")


def _keys(tokens, experts, groups, hidden, dtype, device, whole):
    """Tokens and keys; ``whole`` numbers have exact dot products, so that ties are ties in any
    summation order.
    """
    generator = torch.Generator().manual_seed(tokens + experts)

    def make(*shape):
        values = (
            torch.randint(-2, 3, shape, generator=generator).float()
            if whole
            else torch.randn(shape, generator=generator)
        )
        return values.to(dtype).to(device)

    return make(tokens, hidden), make(groups, hidden), make(experts, hidden)


@pytest.mark.parametrize("whole", [False, True], ids=["random", "ties"])
@pytest.mark.parametrize(
    ("tokens", "experts", "groups", "kept", "top_k", "hidden", "dtype"),
    [
        (0, 8, 4, 2, 2, 16, torch.float32),
        (1, 1, 1, 1, 1, 37, torch.float32),
        (70, 64, 16, 4, 8, 37, torch.float32),
        (70, 61 * 3, 61, 5, 15, 64, torch.bfloat16),
        (33, 60, 5, 5, 7, 129, torch.float16),
        (33, 40, 40, 3, 3, 32, torch.bfloat16),
        (20, 4096, 64, 2, 1, 32, torch.float32),
    ],
)
def test_equals_reference(device, tokens, experts, groups, kept, top_k, hidden, dtype, whole):
    operands = _keys(tokens, experts, groups, hidden, dtype, device, whole)
    weights_TK, ids_TK = two_level_gate(*operands, top_k, kept)
    want_weights_TK, want_ids_TK = two_level_gate_reference(*operands, top_k, kept)
    assert torch.equal(ids_TK, want_ids_TK)
    torch.testing.assert_close(weights_TK, want_weights_TK, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("gate", [two_level_gate, two_level_gate_reference])
def test_coarse_scores_choose_and_fine_scores_weigh(gate, device):
    x_TH = torch.tensor([[1.0, 1.0]], device=device)
    coarse_GH = torch.tensor([[0.0, 1.0], [0.0, 3.0], [0.0, 2.0]], device=device)
    fine_EH = torch.tensor(
        [[9.0, 0.0], [9.0, 0.0], [1.0, 0.0], [3.0, 0.0], [2.0, 0.0], [0.0, 0.0]], device=device
    )
    weights_TK, ids_TK = gate(x_TH, coarse_GH, fine_EH, 3, 2)
    assert ids_TK.tolist() == [[3, 4, 2]]
    torch.testing.assert_close(
        weights_TK[0], torch.tensor([3.0, 2.0, 1.0], device=device).softmax(0)
    )


@pytest.mark.parametrize("gate", [two_level_gate, two_level_gate_reference])
def test_one_kept_group_of_all_ties_takes_the_first_experts(gate, device):
    zeros = torch.zeros(8, 4, device=device)
    assert gate(zeros[:1], zeros[:4], zeros, 2, 1)[1].tolist() == [[0, 1]]


@pytest.mark.parametrize("gate", [two_level_gate, two_level_gate_reference])
def test_nan_keys_lose(gate, device):
    x_TH, coarse_GH, fine_EH = (
        torch.ones(1, 1),
        torch.tensor([[float("nan")], [-1.0]]),
        torch.ones(4, 1),
    )
    fine_EH[3] = float("nan")
    operands = [tensor.to(device) for tensor in (x_TH, coarse_GH, fine_EH)]
    weights_TK, ids_TK = gate(*operands, 2, 1)
    assert (weights_TK.tolist(), ids_TK.tolist()) == ([[1.0, 0.0]], [[2, 3]])


@pytest.mark.parametrize(
    ("groups", "top_k", "kept", "message"),
    [
        (3, 1, 1, "divides 8 experts"),
        (4, 1, 5, "num_limited_groups"),
        (4, 3, 1, "top_k"),
        (4, 0, 1, "top_k"),
    ],
)
def test_refuses(groups, top_k, kept, message, device):
    x_TH, coarse_GH, fine_EH = (torch.zeros(n, 4, device=device) for n in (2, groups, 8))
    with pytest.raises(ValueError, match=message):
        two_level_gate(x_TH, coarse_GH, fine_EH, top_k, kept)


def test_refuses_other_hidden_sizes(device):
    with pytest.raises(ValueError, match="one hidden size"):
        two_level_gate(*(torch.zeros(2, n, device=device) for n in (4, 4, 5)), 1, 1)
