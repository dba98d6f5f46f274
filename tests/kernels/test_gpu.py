"""What only a GPU can show: that launches work at real sizes, and that times come out. Not
collected without one.
"""

import pytest
import torch
from moesim_kernels.ops.layer import LayerWeights, moe_layer
from moesim_kernels.timing.bench import time_expert_phase

from moesim.model import MoELayer

pytestmark = pytest.mark.gpu


def test_a_real_layer(device):
    layer = MoELayer(hidden_size=2048, expert_intermediate_size=768, num_experts=128, top_k=8)
    weights = LayerWeights.random(layer, seed=0, device=device)
    x_TH = torch.randn(1023, 2048, device=device, dtype=torch.bfloat16)
    out_TH, want_TH = (moe_layer(x_TH, weights, layer, backend) for backend in ("triton", "torch"))
    torch.testing.assert_close(out_TH, want_TH, rtol=1.6e-2, atol=1.6e-2)


@pytest.mark.parametrize("flush_l2", [True, False])
def test_times(flush_l2):
    layer = MoELayer(hidden_size=1024, expert_intermediate_size=512, num_experts=32, top_k=4)
    timing = time_expert_phase(layer, 512, flush_l2=flush_l2, skew=1.0)
    assert 0 < timing.p10_s <= timing.median_s <= timing.p90_s < 1
    assert timing.flushed == flush_l2
