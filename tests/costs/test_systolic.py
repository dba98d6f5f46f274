"""A TPU's prices: by hand on a chip one can compute, and what must hold on every shipped one."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moesim import Candidate, Workload, load_profile, simulate
from moesim.costs.calibration import load_calibration
from moesim.costs.devices.primitives import kernels_for
from moesim.costs.devices.systolic import SystolicKernels, padded
from moesim.costs.load import Load
from moesim.costs.work import GemmSpec
from moesim.errors import ConfigError
from moesim.files import toml
from moesim.hardware import single_device

TPUS = [name for name in toml.names("devices") if name.startswith("tpu-")]
LAUNCH_S, STEP_S = 1e-6, 1e-7


@pytest.fixture(scope="module")
def plain():
    """One 128 x 128 unit at 1 GHz (32.768 TFLOP/s), 1 GB/s, 512 KiB of VMEM of which half may be
    used.
    """
    chip = load_profile("tpu-v5e")
    chip = replace(
        chip,
        num_sms=1,
        clock_hz=1e9,
        mxu_size=128,
        hbm_bandwidth_bytes_per_s=1e9,
        l2_bytes=2**19,
        peak_flops_per_s={"bfloat16": 2.0 * 128**2 * 1e9},
        kernel_launch_s=LAUNCH_S,
        gather_access_bytes=(512.0, 1e6),
        gather_efficiency=(0.5, 1.0),
    )
    calibration = load_calibration("tpu-assumed", chip)
    parameters = {
        "mxu_efficiency": 0.5,
        "hbm_efficiency": 1.0,
        "vmem_share": 0.5,
        "step_overhead_s": STEP_S,
    }
    return SystolicKernels(profile=chip, calibration=replace(calibration, parameters=parameters))


def gemm(kernels, counts, n=128, k=128, fmt="bfloat16", **options):
    counts = np.atleast_2d(counts)
    return kernels.grouped_gemm(
        Load.of(counts, counts.sum(axis=1), 128),
        n,
        k,
        GemmSpec(tile=None, fmt=fmt, **{"weight_bytes": 2.0, "input_bytes": 2.0} | options),
    )


def test_the_five_chips_are_there():
    assert TPUS == ["tpu-ironwood", "tpu-v4", "tpu-v5e", "tpu-v5p", "tpu-v6e"]
    assert [load_profile(name).mxu_size for name in TPUS] == [256, 128, 128, 128, 256]
    for name in TPUS:
        profile = load_profile(name)
        macs = profile.num_sms * profile.mxu_size**2 * profile.clock_hz
        assert 2.0 * macs == pytest.approx(profile.peak("bfloat16"), rel=1e-3)
        assert isinstance(kernels_for(profile), SystolicKernels)


def test_gemm_by_hand(plain):
    """129 rows and 1 row are 2 + 1 tiles of 128; 100 columns are one tile, 130 deep are two.

    Each tile streams 128 rows past two units' worth of weights: 256 ns at the peak, 512 at half of
    it. Memory: weights of two experts with depth 256 and 128 columns in lanes; 129 and 1 rows of
    bf16 fill 9 and 1 sublane tiles of 16. Each tile is one step.
    """
    cost = gemm(plain, [129, 0, 1], n=100, k=130)
    assert cost.compute_s_D == pytest.approx(3 * 2 * 128 / 1e9 / 0.5)
    weights, inputs, outputs = 2 * 256 * 128 * 2, 160 * 256 * 2, 160 * 128 * 2
    assert cost.memory_s_D == pytest.approx((weights + inputs + outputs) / 1e9)
    assert cost.latency_s_D == pytest.approx(3 * STEP_S)


def test_column_blocks_by_hand(plain):
    """256 KiB hold two buffers of 128 x 128 inputs (64 KiB) and, per column, 512 bytes of weights
    and of sums.

    (262,144 - 65,536) / 1,024 = 192 columns, cut to one unit of 128: four blocks of 512 columns,
    inputs read in each.
    """
    one, four = gemm(plain, [128], n=128), gemm(plain, [128], n=512)
    assert one.memory_s_D == pytest.approx((3 * 128 * 128 * 2) / 1e9)
    assert four.memory_s_D == pytest.approx((4 + 4 + 4) * 128 * 128 * 2 / 1e9)
    assert four.latency_s_D == pytest.approx(4 * STEP_S)
    roomy = replace(plain, profile=replace(plain.profile, l2_bytes=2**22))
    assert gemm(roomy, [128], n=512).memory_s_D == pytest.approx((4 + 1 + 4) * 128 * 128 * 2 / 1e9)


@pytest.mark.parametrize("rows", [1, 8, 127, 128])
def test_few_rows_take_as_long_as_a_whole_unit(plain, rows):
    assert gemm(plain, [rows]).compute_s_D == gemm(plain, [128]).compute_s_D
    assert gemm(plain, [129]).compute_s_D == 2 * gemm(plain, [128]).compute_s_D


def test_padding():
    assert padded(np.array([0, 1, 128, 129]), 128).tolist() == [0, 128, 128, 256]


def test_vector_work_by_hand(plain):
    """1,024 operations per nanosecond: widened weights, block scales, top-k over lanes, a bitonic
    sort of 8.
    """
    base = gemm(plain, [128]).compute_s_D
    assert gemm(plain, [128], weight_only=True).compute_s_D - base == pytest.approx(
        2 * 128 * 128 / 1024 / 1e9
    )
    assert gemm(plain, [128], block_scaled=True).compute_s_D - base == pytest.approx(
        2 * 128 * 128 / 1024 / 1e9
    )
    assert plain.top_k(np.array([1024]), 64, 8).compute_s_D == pytest.approx(128 * 8 / 1e9)
    assert plain.top_k(np.array([1000]), 64, 8).memory_s_D == pytest.approx(
        1000 * (4 * 128 + 8 * 8) / 1e9
    )
    assert plain.align(np.array([8]), 4).compute_s_D == pytest.approx(6 * 4 / 1024 / 1e9), (
        "6 rounds of 4 comparisons"
    )
    assert plain.align(np.array([8]), 4).memory_s_D == pytest.approx(96 / 1e9)


def test_experts_of_different_width_cost_what_each_costs(plain):
    counts = np.array([[100, 300]])
    both = gemm(plain, counts, n=np.array([[64, 512]]), k=256)
    apart = gemm(plain, [100, 0], n=64, k=256), gemm(plain, [0, 300], n=512, k=256)
    for part in ("compute_s_D", "memory_s_D", "latency_s_D"):
        assert getattr(both, part) == pytest.approx(sum(getattr(cost, part) for cost in apart))


def test_rows_at_random_places_are_a_pass_of_their_own(plain):
    """Half the bandwidth: 100 rows of 128 inputs, or 128 outputs, of 2 bytes."""
    base = gemm(plain, [100]).memory_s_D
    assert gemm(plain, [100], gather_inputs=True).memory_s_D - base == pytest.approx(
        100 * 128 * 2 / 0.5 / 1e9
    )
    assert gemm(plain, [100], scatter_outputs=True).memory_s_D - base == pytest.approx(
        100 * 128 * 2 / 0.5 / 1e9
    )
    assert plain.gather_sum(np.array([100]), np.array([40]), 256.0).memory_s_D == pytest.approx(
        (200 + 40) * 256 / 1e9
    )


def test_stream_gather_launch(plain):
    assert plain.stream(np.array([3e9])).memory_s_D == pytest.approx(3.0)
    assert plain.gather(np.array([3e9]), 512).memory_s_D == pytest.approx(6.0)
    assert plain.launches(np.array([4])).latency_s_D == pytest.approx(4 * LAUNCH_S)


def test_no_tokens_cost_no_more_than_their_launches(plain):
    none = np.array([0])
    for cost in (
        gemm(plain, [0, 0]),
        plain.top_k(none, 64, 4),
        plain.align(none, 64),
        plain.stream(none),
        plain.gather(none, 64.0),
    ):
        assert cost.solo_s_D().tolist() == [0.0]
    assert plain.launches(np.array([2])).solo_s_D() == pytest.approx(2 * LAUNCH_S)


@pytest.mark.parametrize("name", TPUS)
@settings(max_examples=25, deadline=None)
@given(
    counts=st.lists(st.integers(0, 3000), min_size=1, max_size=9),
    n=st.integers(1, 9000),
    k=st.integers(1, 9000),
    more=st.integers(1, 3000),
    data=st.data(),
)
def test_more_work_or_a_lesser_chip_never_costs_less(name, counts, n, k, more, data):
    kernels = kernels_for(load_profile(name))
    seconds = gemm(kernels, counts, n=n, k=k).solo_s_D()[0]
    assert np.isfinite(seconds)
    assert seconds >= 0
    flops = 2.0 * sum(counts) * n * k / kernels.profile.peak("bfloat16")
    assert seconds >= flops
    grown = list(counts)
    grown[data.draw(st.integers(0, len(counts) - 1))] += more
    for other in (
        gemm(kernels, grown, n=n, k=k),
        gemm(kernels, counts, n=n + more, k=k),
        gemm(kernels, counts, n=n, k=k + more),
    ):
        assert other.solo_s_D()[0] >= seconds
    profile = kernels.profile
    halves = {
        "hbm_bandwidth_bytes_per_s": profile.hbm_bandwidth_bytes_per_s / 2,
        "l2_bytes": profile.l2_bytes / 2,
        "peak_flops_per_s": {"bfloat16": profile.peak("bfloat16") / 2},
    }
    for change in ({key: value} for key, value in halves.items()):
        lesser = replace(kernels, profile=replace(profile, **change))
        assert gemm(lesser, counts, n=n, k=k).solo_s_D()[0] >= seconds


def test_a_format_without_a_rate_is_refused():
    with pytest.raises(
        ConfigError,
        match=r"^tpu-v4: no compute rate for float8_e4m3; it has float32, bfloat16, int8$",
    ):
        gemm(kernels_for(load_profile("tpu-v4")), [1], fmt="float8_e4m3")


def test_a_table_of_rows_is_refused(plain):
    load = replace(Load.of(np.array([[3]]), np.array([3]), 16), counts_DL=None)
    with pytest.raises(ConfigError, match="rows of each expert only"):
        plain.grouped_gemm(
            load, 8, 8, GemmSpec(tile=None, fmt="bfloat16", weight_bytes=2.0, input_bytes=2.0)
        )


@pytest.mark.parametrize("name", TPUS)
def test_a_simulation_says_that_nothing_was_measured(name, make_layer):
    result = simulate(
        Candidate(layer=make_layer()),
        single_device(load_profile(name)),
        Workload(num_tokens_per_device=256),
    )
    assert result.calibration == "none"
    assert result.layer_time_low_s == pytest.approx(result.layer_time_s / 1.5)
    assert result.layer_time_high_s == pytest.approx(result.layer_time_s * 1.5)


def test_a_chip_without_a_matrix_unit_is_no_tpu(tmp_path):
    text = toml.find("devices", "tpu-v4").read_text(encoding="utf-8")
    path = tmp_path / "chip.toml"
    path.write_text(
        "\n".join(line for line in text.splitlines() if not line.startswith("mxu_size"))
    )
    with pytest.raises(ConfigError) as caught:
        load_profile(str(path))
    assert (
        str(caught.value)
        == "chip.toml: compute.mxu_size: expected a value for execution = 'systolic', got nothing"
    )
