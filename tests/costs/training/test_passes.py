"""Passes of dense parts and of experts: what the backward costs beside the forward."""

import numpy as np
import pytest

from moesim import load_cluster
from moesim.costs.dense.prices import dense_prices
from moesim.costs.devices.primitives import kernels_for
from moesim.costs.libraries import running
from moesim.costs.steps.mixers import DensePricing
from moesim.costs.steps.shares import Gemm
from moesim.costs.training.context import ring
from moesim.costs.training.experts import expert_parts
from moesim.costs.training.passes import ATTENTION_BACKWARD, DensePasses, mixing_flops
from moesim.model import MoELayer, Precision
from moesim.testing.models import FULL, WINDOW

RAIL = load_cluster("h100-rail-8x8")


def passes(*, tp=1, cp=1, gradient_bytes=4.0, length=4096):
    pricing = DensePricing(prices=dense_prices(RAIL.profile), hidden_size=2048, tp=tp)
    return DensePasses(
        pricing=pricing, gradient_bytes=gradient_bytes, sequences=2, length=length, cp=cp
    )


def seconds(part):
    return float(part.cost.solo_s_D().max())


def test_a_square_product_costs_the_same_both_ways():
    parts = {
        which: passes().gemms("square", which, [Gemm(4096, 4096)], 4096)
        for which in ("forward", "dgrad", "wgrad")
    }
    assert seconds(parts["dgrad"]) == seconds(parts["forward"])
    assert {part.flops for part in parts.values()} == {2 * 4096**3}


def test_sums_of_gradients_are_read_and_written():
    """Where memory decides: few tokens, many weights."""
    products = [Gemm(8192, 8192)]
    wide = passes().gemms("up", "wgrad", products, 64)
    narrow = passes(gradient_bytes=2.0).gemms("up", "wgrad", products, 64)
    more = (2 * 4.0 - 2 * 2.0) * 8192**2 / RAIL.profile.hbm_bandwidth_bytes_per_s
    assert seconds(wide) - seconds(narrow) == pytest.approx(more)


def test_attention_does_five_products_backward():
    one = passes()
    forward, backward = (one.attention(FULL, which) for which in ("forward", "dgrad"))
    assert seconds(backward) == pytest.approx(ATTENTION_BACKWARD * seconds(forward))
    assert backward.flops == ATTENTION_BACKWARD * forward.flops
    pairs = 4096 * 4097 / 2
    assert forward.flops == 2 * 2 * 32 * (128 + 128) * pairs
    assert mixing_flops(WINDOW, 2, 4096) < 0.1 * forward.flops


def test_devices_of_a_rank_share_the_attention():
    whole, shared = passes(), passes(tp=2, cp=2)
    assert shared.attention(FULL, "forward").flops == whole.attention(FULL, "forward").flops / 4
    products = shared.projections(FULL, "forward").flops
    assert products == whole.projections(FULL, "forward").flops / 4
    assert shared.own_tokens == whole.own_tokens / 4


@pytest.mark.parametrize(("cp", "exposed"), [(1, False), (8, False), (64, True)])
def test_keys_travel_under_the_attention(cp, exposed):
    """Short sequences over many devices show the ring; within a node it hides."""
    one = passes(cp=cp, length=4096 if cp == 64 else 65536)
    attention = one.attention(FULL, "forward")
    shown = sum(seconds(part) for part in ring(one, RAIL, FULL, "forward", attention))
    assert (shown > 0) == exposed


@pytest.mark.parametrize("library", ["sglang-triton", "trtllm-cutlass", "moesim-triton"])
@pytest.mark.parametrize("recipe", ["bf16", "fp8_tensor"])
def test_experts_go_back_at_about_the_forward_s_rate(library, recipe):
    """A wgrad's depth is an expert's tokens; all three passes do the same FLOPs."""
    kernels = kernels_for(running(RAIL, library).profile)
    layer = MoELayer(
        hidden_size=4096,
        expert_intermediate_size=1536,
        num_experts=128,
        top_k=8,
        precision=Precision.named(recipe),
    )
    counts = np.full((4, 16), 2048)
    counts[0] *= 2
    parts = expert_parts(kernels, layer, 1, counts, counts.sum(axis=1) // 2, 4.0)
    flops = 2 * 3 * 4096 * 1536 * counts.sum(axis=1).mean()
    assert {part.flops for part in parts.values()} == {flops}
    taken = {which: part.cost.solo_s_D() for which, part in parts.items()}
    assert (taken["dgrad"] == taken["forward"]).all()
    assert 0.4 < taken["wgrad"][1] / taken["forward"][1] < 1.5
    # twice the tokens, twice the depth
    assert taken["wgrad"][0] == pytest.approx(2 * taken["wgrad"][1])
