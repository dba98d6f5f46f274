"""What only a GPU can show: that launches work at real sizes, and that times come out. Not
collected without one.
"""

import numpy as np
import pytest
import torch
from moesim_kernels.ops.expert_grad import experts, experts_reference
from moesim_kernels.ops.layer import LayerWeights, moe_layer
from moesim_kernels.ops.plan import make_plan, make_plan_reference
from moesim_kernels.ops.prepared import prepare_layer
from moesim_kernels.profile.gpu_profile import write_profile
from moesim_kernels.timing.bench import random_ids, time_expert_phase
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


@pytest.mark.parametrize(
    ("tokens", "experts", "top_k"),
    [(16, 64, 8), (2048, 64, 8), (2048, 256, 8), (8192, 128, 8), (8192, 1024, 8), (65536, 8, 1)],
)
@pytest.mark.parametrize("skew", [0.0, 1.5])
def test_plans_of_real_sizes(device, tokens, experts, top_k, skew):
    ids_TK = random_ids(tokens, experts, top_k, skew=skew, device=device)
    plan, want = make_plan(ids_TK, experts, 128), make_plan_reference(ids_TK, experts, 128)
    for name in ("sorted_pairs", "expert_offsets_E1", "tile_expert", "tile_row", "num_tiles"):
        assert torch.equal(getattr(plan, name), getattr(want, name)), name


@pytest.mark.parametrize("tokens", [1, 128, 1024])
def test_a_prepared_layer_replays_and_is_captured(device, tokens):
    layer = MoELayer(hidden_size=1024, expert_intermediate_size=512, num_experts=32, top_k=4)
    weights = LayerWeights.random(layer, seed=0, device=device)
    prepared, x_TH = (
        prepare_layer(weights, layer),
        torch.randn(tokens, 1024, device=device, dtype=torch.bfloat16),
    )
    want_TH = moe_layer(x_TH, weights, layer)
    assert all(torch.equal(prepared(x_TH), want_TH) for _ in range(3))
    graph, other_TH = torch.cuda.CUDAGraph(), torch.randn_like(x_TH)
    with torch.cuda.graph(graph):
        out_TH = prepared(x_TH)
    x_TH.copy_(other_TH)
    graph.replay()
    assert torch.equal(out_TH, moe_layer(other_TH, weights, layer))


def test_gradients_at_real_sizes(device):
    generator = torch.Generator(device).manual_seed(0)

    def normal(*shape, scale=1.0):
        made = torch.empty(shape, device=device, dtype=torch.bfloat16).normal_(
            0.0, scale, generator=generator
        )
        return made.requires_grad_()

    tensors = (
        normal(1000, 1024),
        torch.rand(1000, 4, device=device).requires_grad_(),
        normal(16, 1536, 1024, scale=1024**-0.5),
        normal(16, 1024, 768, scale=768**-0.5),
    )
    plan = make_plan(random_ids(1000, 16, 4, skew=0.5, device=device), 16, 128)
    grad_TH = torch.randn(1000, 1024, device=device, dtype=torch.bfloat16)
    found, wanted = (
        torch.autograd.grad(call(*tensors, plan), tensors, grad_TH)
        for call in (experts, experts_reference)
    )
    for got, want in zip(found, wanted, strict=True):
        assert (got.float() - want.float()).norm() <= 1e-2 * want.float().norm()
