"""Demands of dense parts take as long as their prices, and keep the right resource busy."""

import numpy as np
import pytest

from moesim.costs.dense.demands import decode_demand, gemm_demand, prefill_demand, stream_demand
from moesim.costs.dense.heads import Heads
from moesim.costs.dense.prices import dense_prices
from moesim.hardware import load_profile

QWEN = Heads.grouped(64, 4, 128)


@pytest.fixture(scope="module")
def prices():
    return dense_prices(load_profile("h100-sxm"))


def test_alone_a_demand_takes_its_price(prices):
    n = np.geomspace(1, 32768, 50).astype(int)
    pairs = [
        (gemm_demand(prices, n, 4096, 7168, "fp8"), prices.gemm_s(n, 4096, 7168, "fp8")),
        (
            gemm_demand(prices, n, 64, 64, "fp8", quantized=False),
            prices.gemm_s(n, 64, 64, "fp8", quantized=False),
        ),
        (
            prefill_demand(prices, QWEN, 2, n, "bfloat16", cached=100, window=128),
            prices.prefill_s(QWEN, 2, n, "bfloat16", cached=100, window=128),
        ),
        (decode_demand(prices, QWEN, 8, n, "fp8"), prices.decode_s(QWEN, 8, n, "fp8")),
        (
            decode_demand(prices, Heads.mla_decode(128), n, 4096, "bfloat16"),
            prices.decode_s(Heads.mla_decode(128), n, 4096, "bfloat16"),
        ),
        (stream_demand(prices, 1e6 * n, 2), prices.stream_s(1e6 * n, 2)),
    ]
    for cost, seconds in pairs:
        assert cost.solo_s_D() == pytest.approx(seconds, rel=1e-12)
        for part in (cost.compute_s_D, cost.memory_s_D, cost.latency_s_D):
            assert part.shape == seconds.shape
            assert (part >= 0).all()


def test_batches_decide_what_is_busy(prices):
    small, large = (gemm_demand(prices, m, 8192, 8192, "bfloat16") for m in (8, 8192))
    assert small.memory_s_D > 10 * small.compute_s_D
    assert large.compute_s_D > 3 * large.memory_s_D
    decode = decode_demand(prices, QWEN, 64, 8192, "bfloat16")
    assert decode.memory_s_D > 10 * decode.compute_s_D
    prefill = prefill_demand(prices, QWEN, 1, 16384, "bfloat16")
    assert prefill.compute_s_D > 10 * prefill.memory_s_D
    assert (stream_demand(prices, np.array([1e9])).compute_s_D == 0).all()
    assert prices.stream_grade.letter == "D"
