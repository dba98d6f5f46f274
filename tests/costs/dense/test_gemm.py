"""Dense GEMMs: by hand, at their limits, never cheaper for more, at every grade."""

import numpy as np
import pytest

from moesim.costs.dense.blocks import in_blocks
from moesim.costs.dense.gemm import FORMATS, GemmFormat, gemm_limits_s, gemm_seconds
from moesim.costs.dense.prices import dense_prices
from moesim.errors import ConfigError
from moesim.hardware import load_profile

#: nothing but the roofline: full rates, no starts
IDEAL = {
    "launch_us": 0.0,
    "compute_efficiency": 1.0,
    "memory_efficiency": 1.0,
    "tile_us": 0.0,
    "split_us": 0.0,
    "output_factor": 1.0,
    "step_ns": 0.0,
}


@pytest.fixture(scope="module")
def prices():
    return dense_prices(load_profile("h100-sxm"))


def arrays(*sizes):
    return tuple(np.array([float(size)]) for size in sizes)


@pytest.mark.parametrize("sizes", [(128, 132 * 256, 1 << 20), (1, 65536, 65536)])
def test_full_efficiency_is_the_roofline(h100, sizes):
    """Where tiles fill the SMs and one of the two resources decides."""
    fmt = GemmFormat.named("bfloat16")
    found = gemm_seconds(IDEAL, fmt, h100, arrays(*sizes))
    bound = np.maximum(*gemm_limits_s(fmt, h100, arrays(*sizes)))
    assert bound <= found * (1 + 1e-12)
    assert found <= bound * 2**0.25 * 1.01


def test_one_wave_by_hand(h100):
    """132 tiles of 128 x 256 take their products on one SM each, and the step of every element."""
    m, n, k = 128.0, 132 * 256.0, 6400.0
    values = IDEAL | {"launch_us": 2.0, "tile_us": 1.0, "step_ns": 5.0, "split_us": 1e6}
    tile_s = k * (2 * 128 * 256 * 132 / h100.peak("bfloat16") + 5e-9) + 1e-6 * 2**0.5
    memory_s = 2 * (m * k + n * k + m * n) / h100.hbm_bandwidth_bytes_per_s
    expected = 2e-6 + (tile_s**4 + memory_s**4) ** 0.25
    found = gemm_seconds(values, GemmFormat.named("bfloat16"), h100, arrays(m, n, k))
    # smaller tiles need more waves, each with the step of every element
    assert found == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("fmt", ["bfloat16", "fp8", "fp8_block"])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_more_is_never_cheaper(prices, fmt, axis):
    rng = np.random.default_rng(0)
    sizes = [rng.integers(1, 20000, 5000) for _ in range(3)]
    more = [s + rng.integers(1, 300, 5000) if i == axis else s for i, s in enumerate(sizes)]
    assert (prices.gemm_s(*more, fmt) >= prices.gemm_s(*sizes, fmt) * (1 - 1e-12)).all()


def test_prices_are_elementwise(prices):
    m = np.array([[1, 7, 300], [4096, 20000, 32768]])
    table = prices.gemm_s(m, 4096, np.array([[2048], [7168]]), "fp8_block")
    assert table.shape == m.shape
    one = prices.gemm_s(300, 4096, 2048, "fp8_block")
    assert one.shape == ()
    assert table[0, 2] == pytest.approx(float(one), rel=1e-12)
    # more rows than one block holds
    many = np.full(10001, 300)
    assert in_blocks(lambda a, b: a + b, many, 1.5).tolist() == [301.5] * 10001


def test_quantization_is_apart(prices):
    """fp8 moves 3 bytes and more of each activation, bfloat16 none."""
    bytes_per_s = prices.profile.hbm_bandwidth_bytes_per_s
    for fmt, least in (("fp8", 5.0), ("fp8_block", 3.0)):
        whole = prices.gemm_s(8192, 4096, 4096, fmt)
        alone = prices.gemm_s(8192, 4096, 4096, fmt, quantized=False)
        assert least < (whole - alone) * bytes_per_s / (8192 * 4096) < 1.5 * least
    assert prices.gemm_s(64, 64, 64, "bfloat16") == prices.gemm_s(
        64, 64, 64, "bfloat16", quantized=False
    )


def test_grades_say_what_is_crossed(prices):
    own = prices.grade("gemm", "bfloat16")
    assert own.letter == "A"
    b200 = dense_prices(load_profile("b200-sxm"))
    assert b200.grade("gemm", "bfloat16").letter == "C"
    four_bit = b200.grade("gemm", "nvfp4")
    assert "format crossed" in four_bit.rests_on
    assert "fp8_block" in four_bit.rests_on
    h200 = dense_prices(load_profile("h200-sxm"), "vllm/0.24.0")
    assert h200.grade("gemm", "bfloat16").letter == "B"
    other = dense_prices(load_profile("h100-sxm"), "trtllm").grade("gemm", "bfloat16")
    assert other.letter == "C"
    assert other.rests_on.endswith("engine crossed")
    assert other.low < own.low < 1.0 < own.high < other.high
    newer = dense_prices(load_profile("h100-sxm"), "vllm/0.25.0").grade("gemm", "bfloat16")
    assert newer.letter == "B"
    assert "version crossed" in newer.rests_on


def test_every_format_has_a_price_where_the_device_has_a_rate():
    b200 = dense_prices(load_profile("b200-sxm"))
    found = {fmt: float(b200.gemm_s(64, 8192, 8192, fmt)) for fmt in FORMATS}
    # a small batch reads weights: the fewer bytes, the shorter
    assert found["nvfp4"] < found["fp8_block"] < found["bfloat16"]
    assert found["int4_wo"] < found["bfloat16"]
    a100 = dense_prices(load_profile("a100-sxm"))
    assert a100.gemm_s(64, 8192, 8192, "bfloat16") > 0
    with pytest.raises(ConfigError, match="no compute rate for float8_e4m3"):
        a100.gemm_s(64, 8192, 8192, "fp8")
    with pytest.raises(ConfigError, match="unknown format of a dense GEMM 'fp9'"):
        a100.gemm_s(64, 8192, 8192, "fp9")


def test_the_same_prices_are_loaded_once():
    profile = load_profile("h100-sxm")
    assert dense_prices(profile) is dense_prices(profile)
    assert dense_prices(profile) is not dense_prices(profile, "vllm")
