"""All-reduces of engines, and kernels that only move bytes."""

from dataclasses import replace

import numpy as np
import pytest

from moesim.costs.calibration import load_calibration
from moesim.costs.comm.nccl import Nccl
from moesim.costs.comm.work import Ports
from moesim.costs.dense.all_reduce import all_reduce_roofline_s, all_reduce_seconds
from moesim.costs.dense.elementwise import (
    GREEDY_PASSES,
    activation_bytes,
    embedding_bytes,
    norm_bytes,
    rotary_bytes,
    sampler_bytes,
)
from moesim.costs.dense.heads import Heads
from moesim.costs.dense.prices import dense_prices
from moesim.errors import ConfigError
from moesim.hardware import load_profile

NODE = Ports(
    near_bytes_per_s=450e9,
    far_bytes_per_s=50e9,
    num_ranks=8,
    ranks_per_domain=8,
    num_sms=132,
    memory_bytes_per_s=3.35e12,
)
H100 = load_profile("h100-sxm")
VALUES = {
    "launch_us": 2.0,
    "peer_us": 0.5,
    "once_efficiency": 0.5,
    "sync_us": 4.0,
    "twice_efficiency": 1.0,
}


@pytest.fixture(scope="module")
def prices():
    return dense_prices(load_profile("h100-sxm"))


def nccl(ports):
    calibration = load_calibration("nccl", H100)
    return Nccl(ports=ports, calibration=calibration, collective="all_reduce")


def test_short_messages_are_read_once_and_long_ones_twice():
    """By hand: 8 ranks, 5 us to start; the second pass costs 4 us more."""
    sizes = np.array([0.0, 45e3, 450e3])
    found = all_reduce_seconds(VALUES, H100, NODE, sizes)
    once = 5e-6 + sizes * 7 / 225e9
    twice = 9e-6 + 2 * sizes * 7 / 8 / 450e9
    assert found == pytest.approx(np.minimum(once, twice), rel=1e-12)
    assert (found[0], found[1]) == pytest.approx((5e-6, 6.4e-6))
    assert found[2] == pytest.approx(10.75e-6)


def test_where_engines_have_no_kernel_of_their_own():
    """Long messages, more than eight ranks, and PCIe switches are NCCL's."""
    ports = [
        replace(NODE, num_ranks=16),
        replace(NODE, bridge_bytes_per_s=32e9, ranks_per_bridge=4),
    ]
    for one in ports:
        ranks = float(one.num_ranks)
        near = min(ranks, 8.0) - 1.0
        found = all_reduce_seconds(VALUES, H100, one, np.array(1e6))
        theirs = nccl(one).time_s(1e6 * near / ranks, 1e6 * (ranks - 1.0 - near) / ranks)
        assert found == pytest.approx(theirs, rel=1e-12)
    alone = replace(NODE, num_ranks=1)
    assert all_reduce_seconds(VALUES, H100, alone, np.array(1e6)) == 0.0


def test_ten_rows_of_a_device_slow_its_starts():
    """One latency factor, from NCCL."""
    b200 = load_profile("b200-sxm")
    factor = (
        load_calibration("nccl", b200)["all_reduce_start_us"]
        / load_calibration("nccl", b200, few_shot=False)["all_reduce_start_us"]
    )
    assert 1.1 < factor < 1.6
    none = np.array(0.0)
    found = all_reduce_seconds(VALUES, b200, NODE, none)
    assert found == pytest.approx(factor * all_reduce_seconds(VALUES, H100, NODE, none))


def test_more_bytes_are_never_cheaper(prices):
    sizes = np.geomspace(1, 1e9, 400)
    found = prices.all_reduce_s(sizes, NODE)
    assert (np.diff(found) >= 0).all()
    # NVLink's switches reduce on the way, so that a ring's bytes are no bound: the order is right
    assert (found > 0.5 * all_reduce_roofline_s(NODE, sizes)).all()
    assert prices.grade("all_reduce", "bfloat16").letter == "A"


def test_bytes_by_hand():
    assert norm_bytes(10, 4096) == 10 * 4096 * 8
    assert norm_bytes(10, 128, residual=False) == 10 * 128 * 4
    assert rotary_bytes(10, 36, 128) == 10 * 36 * 128 * 4
    assert activation_bytes(10, 1536) == 10 * 1536 * 6
    assert activation_bytes(10, 1536, gated=False) == 10 * 1536 * 4
    assert embedding_bytes(10, 4096) == 10 * 4096 * 4
    assert sampler_bytes(2, 150000) == 3 * sampler_bytes(2, 150000, GREEDY_PASSES) == 3.6e6


def test_a_stream_takes_its_launch_and_its_bytes(prices):
    profile = prices.profile
    rate = profile.hbm_bandwidth_bytes_per_s * profile.streaming_efficiency[-1]
    none, some = prices.stream_s(np.array([0.0, 1e9]))
    assert some - none == pytest.approx(1e9 / rate)
    assert 1e-6 < none < 5e-6
    assert prices.stream_s(0.0, kernels=3) == pytest.approx(3 * none)
    eager = dense_prices(replace(profile, eager=True))
    assert eager.stream_s(0.0) == pytest.approx(profile.host_launch_s)


@pytest.mark.parametrize("name", ["tpu-v5p", "mi300x", "l40s", "rtx-pro-6000"])
def test_every_accelerator_is_priced_from_its_spec_sheet(name):
    profile = load_profile(name)
    found = dense_prices(profile)
    large = float(found.gemm_s(16384, 8192, 8192, "bfloat16"))
    assert 1.0 < large * profile.peak("bfloat16") / (2 * 16384 * 8192 * 8192) < 2.5
    read = float(found.decode_s(Heads.grouped(64, 8, 128), 64, 65536, "bfloat16"))
    held = 64 * 8 * 256 * 2 * 65536 / profile.hbm_bandwidth_bytes_per_s
    assert 1.0 < read / held < 2.0
    assert found.grade("decode", "bfloat16").letter == "C"


def test_a_cpu_has_prices_of_its_own():
    profile = replace(load_profile("h100-sxm"), execution="serial", name="mine")
    with pytest.raises(ConfigError, match="dense prices: expected a GPU or TPU, got 'mine'"):
        dense_prices(profile)
