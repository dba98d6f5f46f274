"""Attention: pairs by hand, limits, never cheaper for more, windows, prefixes, latent heads."""

import numpy as np
import pytest

from moesim.costs.dense.decode import decode_limits_s, decode_seconds
from moesim.costs.dense.heads import Heads
from moesim.costs.dense.prefill import attended_pairs, by_size, prefill_limits_s, prefill_seconds
from moesim.costs.dense.prices import dense_prices
from moesim.errors import ConfigError
from moesim.hardware import load_profile

QWEN = Heads.grouped(64, 4, 128)
PREFILL = {
    "launch_us": 0.0,
    "ramp_tokens": 0.0,
    "tail": 0.0,
    "packed": 1.0,
    "window_us": 0.0,
    "tile_us": 0.0,
    "kv_factor": 1.0,
    "compute_efficiency_128": 1.0,
}
DECODE = {
    "launch_us": 0.0,
    "doubling_us": 0.0,
    "wave_us": 0.0,
    "window_us": 0.0,
    "pad_tokens": 0.0,
    "cached_share": 0.5,
    "cache_fraction": 0.5,
    "query_factor": 0.0,
    "compute_rate": 1.0,
    "tile_rows": 64.0,
    "read_efficiency_128": 1.0,
    "read_efficiency_576": 1.0,
}


@pytest.fixture(scope="module", params=["h100-sxm", "b200-sxm"])
def prices(request):
    return dense_prices(load_profile(request.param))


def numbers(*values):
    return tuple(np.array([float(value)]) for value in values)


@pytest.mark.parametrize("tokens", [1, 5, 300])
@pytest.mark.parametrize("cached", [0, 3, 700])
@pytest.mark.parametrize("window", [0, 1, 4, 500, 5000])
def test_pairs_are_counted(tokens, cached, window):
    most = window or 10**9
    counted = sum(min(cached + i + 1, most) for i in range(tokens))
    assert attended_pairs(*numbers(tokens, cached, window)) == counted


def test_a_tile_touches_more_than_its_window():
    plain = attended_pairs(*numbers(1024, 0, 128))
    touched = attended_pairs(*numbers(1024, 0, 128), beyond=127.0)
    assert plain < touched < 2 * plain
    # but never keys that are not there
    assert attended_pairs(*numbers(200, 0, 100), beyond=127.0) <= 200 * 201 / 2


def test_full_efficiency_is_the_roofline(h100):
    work = numbers(16, 8192, 0, 0)
    bound = np.maximum(*prefill_limits_s("bfloat16", h100, QWEN, work))
    found = prefill_seconds(PREFILL, "bfloat16", h100, QWEN, work)
    # pairs and bytes add up, and bytes are few
    assert bound < found < 1.1 * bound
    work = numbers(64, 65536, 0)
    bound = np.maximum(*decode_limits_s("bfloat16", h100, QWEN, work))
    assert decode_seconds(DECODE, "bfloat16", h100, QWEN, work) == pytest.approx(bound, rel=1e-3)


def test_many_rows_of_a_latent_head_are_compute(h100):
    """128 heads read the latent once and multiply with it 128 times."""
    work = numbers(64, 65536, 0)
    found = decode_seconds(DECODE, "bfloat16", h100, Heads.mla_decode(128), work)
    flops = 2.0 * 64 * 128 * (576 + 512) * 65536
    assert found > flops / h100.peak("bfloat16")
    few = decode_seconds(DECODE, "bfloat16", h100, Heads.mla_decode(16), work)
    padded = decode_seconds(DECODE, "bfloat16", h100, Heads.mla_decode(64), work)
    assert few == padded


def test_a_warm_cache_is_for_benchmarks_alone(h100):
    small, large = numbers(1, 1024, 0), numbers(64, 65536, 0)
    for work, share in ((small, 0.5), (large, 1.0)):
        cold = decode_seconds(DECODE, "bfloat16", h100, QWEN, work)
        warm = decode_seconds(DECODE, "bfloat16", h100, QWEN, work, cold=False)
        assert warm == pytest.approx(share * cold, rel=1e-3)


@pytest.mark.parametrize("fmt", ["bfloat16", "fp8"])
@pytest.mark.parametrize("heads", [QWEN, Heads.grouped(8, 8, 80), Heads.mla_decode(16)])
def test_more_decode_is_never_cheaper(prices, fmt, heads):
    rng = np.random.default_rng(0)
    b, length = rng.integers(1, 512, 3000), rng.integers(1, 131072, 3000)
    base = prices.decode_s(heads, b, length, fmt)
    assert (prices.decode_s(heads, b + 1, length, fmt) >= base).all()
    assert (prices.decode_s(heads, b, length + rng.integers(1, 999, 3000), fmt) >= base).all()
    # the kernels of windows cost something themselves
    limited = prices.decode_s(heads, b, length, fmt, window=2048)
    assert (limited <= base)[length > 8 * 2048].all()
    assert (limited == base)[length <= 2048].all()


@pytest.mark.parametrize("fmt", ["bfloat16", "fp8_kv"])
@pytest.mark.parametrize("heads", [QWEN, Heads.grouped(8, 8, 80), Heads.mla_prefill(16)])
def test_more_prefill_is_never_cheaper(prices, fmt, heads):
    rng = np.random.default_rng(0)
    b, s, p = (rng.integers(1, most, 3000) for most in (64, 16384, 32768))
    base = prices.prefill_s(heads, b, s, fmt, cached=p)
    for more in ((b + 1, s, p), (b, s + rng.integers(1, 200, 3000), p), (b, s, p + 500)):
        longer = prices.prefill_s(heads, *more[:2], fmt, cached=more[2])
        assert (longer >= base * (1 - 1e-12)).all()
    limited = prices.prefill_s(heads, b, s, fmt, cached=p, window=512)
    assert (limited <= base)[s + p > 8 * 512].all()


def test_a_prefix_costs_its_pairs(prices):
    """Two halves of a prompt take no less than the whole, and their pairs are the same."""
    whole = prices.prefill_s(QWEN, 1, 32768, "bfloat16")
    halves = prices.prefill_s(QWEN, 1, 16384, "bfloat16", cached=np.array([0, 16384]))
    assert halves[1] > 2 * halves[0]
    assert whole < halves.sum() < 1.1 * whole


def test_sizes_between_those_fitted_are_linear():
    values = {"e_64": 0.4, "e_128": 0.6, "other": 1.0}
    assert by_size(values, "e_", np.array([32, 64, 96, 256])) == pytest.approx([0.4, 0.4, 0.5, 0.6])


def test_heads_may_differ_by_row(prices):
    heads = Heads.grouped(np.array([64, 8]), np.array([4, 8]), np.array([128, 80]))
    both = prices.decode_s(heads, 8, 4096, "bfloat16")
    assert both[0] == prices.decode_s(QWEN, 8, 4096, "bfloat16")
    assert both[1] == prices.decode_s(Heads.grouped(8, 8, 80), 8, 4096, "bfloat16")


def test_grades_of_attention(prices):
    for op in ("prefill", "decode", "mla_prefill", "mla_decode"):
        assert prices.grade(op, "bfloat16").letter == "A"
    gb200 = dense_prices(load_profile("gb200"))
    assert gb200.grade("decode", "fp8").letter == "B"
    assert "b200-sxm" in gb200.grade("decode", "fp8").rests_on
    # a device without a fitted generation takes the nearest
    assert "h100-sxm" in dense_prices(load_profile("l40s")).grade("decode", "bfloat16").rests_on
    vllm = dense_prices(load_profile("h100-sxm"), "vllm").grade("mla_decode", "bfloat16")
    assert vllm.rests_on.endswith("engine crossed")


def test_windows_have_grades_of_their_own(prices):
    plain, windowed = (prices.grade("decode", "bfloat16", windowed=w) for w in (False, True))
    assert "bfloat16_window" in windowed.rests_on
    assert (plain.low, plain.high) != (windowed.low, windowed.high)
    with pytest.raises(ConfigError, match="format: expected one of bfloat16, fp8"):
        prices.grade("mla_decode", "bfloat16", windowed=True)


def test_unknown_formats_are_refused(prices):
    with pytest.raises(ConfigError, match="unknown format of a prefill 'int4'"):
        prices.prefill_s(QWEN, 1, 1, "int4")
    with pytest.raises(ConfigError, match="unknown format of a KV cache 'int4'"):
        prices.decode_s(QWEN, 1, 1, "int4")
