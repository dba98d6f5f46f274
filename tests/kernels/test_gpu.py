"""What only a GPU can show: that launches work at real sizes, and that times come out. Not
collected without one.
"""

import numpy as np
import pytest
import torch
from moesim_kernels.ops.layer import LayerWeights, moe_layer
from moesim_kernels.profile.gpu_profile import write_profile
from moesim_kernels.timing.bench import time_expert_phase
from moesim_kernels.timing.graphs import CudaClock, host_seconds, per_call_seconds

from moesim.files import toml
from moesim.hardware.profile_file import ProfileFile
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


def test_a_profile_of_this_gpu(tmp_path):
    """Launches do not hide what the L2 and small products can do."""
    path = tmp_path / "here.toml"
    write_profile(path, 3.0, command="a test")
    file = toml.parse(path.read_text(encoding="utf-8"), ProfileFile, path.name)
    inside, outside = file.launch.kernel_us.value, file.launch.plain_kernel_us.value
    assert 0.2 < inside < 4.0 < outside < 200.0
    near, far = file.hbm.streaming[0].efficiency, file.hbm.streaming[-1].efficiency
    assert near.value > 1.5 * far.value
    shares = [point.efficiency.value for point in file.hbm.gather]
    assert shares[0] < 0.8 * max(shares)
    rates = {(p.format, p.size): p.tflops.value for p in file.compute.gemm}
    assert rates["bfloat16", 8192] > 5 * rates["bfloat16", 512] > 0
    # 512^3 products of 5 us and less cannot show if a launch of 20 us is in their time.
    assert 2e-6 * 512**3 / rates["bfloat16", 512] < outside
    assert bool(file.peer_copies) == (torch.cuda.device_count() > 1)


def test_a_captured_call_is_shorter_than_its_launch():
    vector = torch.zeros(64, device="cuda")
    clock = CudaClock(1e9)
    found = per_call_seconds(clock, lambda: vector.add_(1.0), cold=False, budget_s=0.05)
    assert 0.1e-6 < float(np.median(found)) < 5e-6
    assert float(np.median(host_seconds(lambda: vector.add_(1.0), torch.cuda.synchronize))) > 1e-6
