"""Speed of the prices of dense parts: a million at once, and one as a lowering asks for it."""

import numpy as np
import pytest

from moesim import load_profile
from moesim.costs.dense.heads import Heads
from moesim.costs.dense.prices import dense_prices

HEADS = Heads.grouped(64, 4, 128)
ASK = {
    "gemm": lambda prices, n: prices.gemm_s(n, 4096, 7168, "fp8_block"),
    "prefill": lambda prices, n: prices.prefill_s(HEADS, 4, n, "bfloat16", cached=1024),
    "decode": lambda prices, n: prices.decode_s(HEADS, 64, n, "fp8"),
}


@pytest.mark.parametrize("op", ASK)
@pytest.mark.parametrize("count", [1, 1_000_000])
def test_price_dense_parts(benchmark, op, count):
    prices = dense_prices(load_profile("h100-sxm"))
    sizes = np.random.default_rng(0).integers(1, 32768, count)
    found = benchmark(lambda: ASK[op](prices, sizes))
    assert found.shape == (count,)
    if count > 1:
        assert benchmark.stats.stats.min < 1.0
