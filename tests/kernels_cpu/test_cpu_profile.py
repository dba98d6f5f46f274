"""The measured profile is a valid file with honest numbers, and prices built on one behave."""

from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from moesim_kernels.cpu.layer import CONTENDED
from moesim_kernels.profile import cpu_curves, cpu_profile
from moesim_kernels.profile.cpu_profile import measure_profile

from moesim.costs.devices.serial import SerialKernels, gemm_features, missing, top_k_features
from moesim.costs.load import Load
from moesim.costs.work import GemmSpec
from moesim.errors import ConfigError
from moesim.files import toml
from moesim.hardware.profile import ProfileFile, load_profile

pytestmark = pytest.mark.full

TABLES = {
    "launch",
    "stream",
    "gather",
    "align",
    "top_k",
    "softmax",
    "cast",
    "mask",
    "gemm_float32",
    "gemm_bfloat16",
    "adamw_float32",
    "adamw_bfloat16",
}


@pytest.fixture(scope="module")
def path(cpu_profile_path):
    return cpu_profile_path


def test_curves_have_their_spread(path):
    file = toml.parse(path.read_text(encoding="utf-8"), ProfileFile, path.name)
    assert {point.format for point in file.compute.gemm} == {"float32", "bfloat16", "float16"}
    assert [point.access_bytes for point in file.hbm.gather] == list(cpu_curves.ACCESS_BYTES)
    assert (file.hbm.gather[0].access_bytes, file.hbm.gather[-1].access_bytes) == (32, 65536)
    assert len({point.working_set_mib for point in file.hbm.gather_cached}) >= 1
    assert [point.working_set_mib for point in file.hbm.streaming] == [2.0**i for i in range(-2, 8)]
    rates = [point.tflops for point in file.compute.gemm]
    rates += [
        point.efficiency
        for point in (*file.hbm.gather, *file.hbm.gather_cached, *file.hbm.streaming)
    ]
    for rate in (*rates, file.hbm.bandwidth_gb_per_s):
        assert rate.min <= rate.low <= rate.median <= rate.high <= rate.value
        assert rate.repeats >= 7
    launch = file.launch.kernel_us
    assert launch.value == launch.min <= launch.low <= launch.median <= launch.high


def test_the_last_cache_is_where_streams_become_slow():
    mib = 1 << 20
    rates = {
        size * mib: np.array([rate])
        for size, rate in ((1, 90e9), (4, 30e9), (16, 30e9), (32, 20e9), (64, 10e9))
    }
    assert cpu_curves.cache_bytes(rates) == 32 * mib
    assert cpu_curves.cache_bytes({size * mib: np.array([1e10]) for size in (4, 8)}) == 8 * mib


class Sentinel:
    """Slow as told, one time after another."""

    def __init__(self, *slowdowns):
        self.slowdowns = list(slowdowns)

    def slowdown(self):
        return self.slowdowns.pop(0)


@pytest.mark.parametrize(
    ("slowdowns", "runs", "contended", "worst"),
    [
        ((0.0, 0.05), 1, False, 0.05),
        ((0.0, 0.2, 0.01), 2, False, 0.01),
        ((0.0, 0.2, 0.3), 2, True, 0.3),
        ((0.1, 0.0), 1, True, 0.1),
    ],
)
def test_a_disturbed_part_is_measured_once_more_and_then_reported(
    slowdowns, runs, contended, worst
):
    watch, seen = cpu_profile._Watch(Sentinel(*slowdowns), until=np.inf), []
    assert watch.run(lambda: seen.append(1) or len(seen)) == runs
    assert (watch.contended, watch.slowdown) == (contended, worst)


def test_no_time_is_spent_twice_when_there_is_none():
    watch, seen = cpu_profile._Watch(Sentinel(0.0, 0.2), until=0.0), []
    watch.run(lambda: seen.append(1))
    assert (len(seen), watch.contended, watch.left_s()) == (1, True, 0.0)


def test_profile_is_valid_and_sourced(path):
    text = path.read_text(encoding="utf-8")
    file = toml.parse(text, ProfileFile, path.name)
    assert (file.execution, file.calibration) == ("serial", "none")
    assert set(file.serial) == TABLES
    assert set(file.residuals) == TABLES - {"launch"}
    assert file.host_fabric is None
    assert set(file.compute.peak_tflops) == {"float32", "bfloat16"}
    for key, quantity in toml.quantities(file):
        rate = key.startswith(("compute.peak", "compute.gemm"))
        assert quantity.kind == (
            "measured" if rate or not key.startswith("compute.") else "assumed"
        ), key
        assert quantity.value > 0
    assert f"torch {torch.__version__}" in file.sources["protocol"].locator
    assert {q.source for _, q in toml.quantities(file)} == set(file.sources)
    assert file.measurement.command == "a test"
    assert file.measurement.contended == (file.measurement.slowdown > CONTENDED)
    profile = load_profile(str(path))
    assert profile.name == "cpu-local"
    assert profile.num_sms == 1
    assert all(0 < share <= 1 for share in profile.gather_efficiency)


def test_coefficients_are_not_negative(path):
    for table in load_profile(str(path)).serial.values():
        assert all(value > 0 and np.isfinite(value) for value in table.values())


def test_measuring_leaves_threads_alone():
    threads = torch.get_num_threads()
    assert isinstance(measure_profile(0.1), str)
    assert torch.get_num_threads() == threads


def seconds_of(cost):
    return float(np.max(cost.solo_s_D()))


def gemm(kernels, counts, n=256, k=256, **options):
    counts = np.asarray(counts)[None]
    return seconds_of(
        kernels.grouped_gemm(
            Load.of(counts, counts.sum(axis=-1), 16),
            n,
            k,
            GemmSpec(tile=None, fmt="float32", weight_bytes=4.0, input_bytes=4.0, **options),
        )
    )


def test_cost_grows_with_the_work(path):
    kernels = SerialKernels(profile=load_profile(str(path)))
    one = np.array([1])
    prices_of = [
        lambda x: gemm(kernels, [x, 0, x]),
        lambda x: gemm(kernels, [7, 3], n=x),
        lambda x: gemm(kernels, [7], k=x),
        lambda x: gemm(kernels, [5] * x),
        lambda x: seconds_of(kernels.top_k(x * one, 64, 4)),
        lambda x: seconds_of(kernels.align(x * one, 64)),
        lambda x: seconds_of(kernels.stream(x * 1e4 * one)),
        lambda x: seconds_of(kernels.gather(x * 1e4 * one, 1e3)),
        lambda x: seconds_of(kernels.launches(x * one)),
    ]
    for price in prices_of:
        prices = [price(x) for x in (1, 2, 16, 128, 1024, 8192, 65536)]
        assert all(0 <= a <= b < np.inf for a, b in pairwise(prices))
        assert prices[-1] > prices[0]


def test_no_work_costs_nothing(path):
    kernels = SerialKernels(profile=load_profile(str(path)))
    none = np.array([0])
    assert gemm(kernels, [0, 0]) == 0.0
    for cost in (
        kernels.top_k(none, 64, 4),
        kernels.align(none, 64),
        kernels.stream(none),
        kernels.gather(none, 64.0),
    ):
        assert seconds_of(cost) == 0.0


def test_warm_is_never_dearer_than_cold(path):
    kernels = SerialKernels(profile=load_profile(str(path)))
    assert gemm(kernels, [4] * 9, warm_bytes_D=np.array([1e3])) <= gemm(kernels, [4] * 9)
    assert gemm(kernels, [4] * 9, warm_bytes_D=np.array([1e12])) == gemm(kernels, [4] * 9)


def test_missing_table_says_so():
    kernels = SerialKernels(
        profile=SimpleNamespace(name="cpu-local", serial={"launch": {"call_s": 1e-5}})
    )
    with pytest.raises(
        ConfigError, match=r"cpu-local: serial\.align: expected measured coefficients"
    ):
        kernels.align(np.array([3]), 4)


def test_features_of_groups_add_up():
    counts = np.array([[3, 0, 5, 3], [0, 0, 0, 0]])
    terms = gemm_features(counts, 32, 16, weight_bytes=2.0, away=1.0)
    assert terms["group_s"].tolist() == [3, 0]
    assert terms["row_count_away_s"].tolist() == [2, 0]
    assert terms["call_away_s"].tolist() == [1, 0]
    assert terms["mkn_s"].tolist() == [11 * 32 * 16, 0]
    assert terms["kn_missing_byte_s"].tolist() == [3 * 32 * 16 * 2, 0]


def test_top_k_has_two_algorithms():
    rows = np.array([10.0])
    assert top_k_features(rows, 64, 1)["partition_element_s"] == 0
    assert top_k_features(rows, 64, 2)["partition_element_s"] == 640
    assert top_k_features(rows, 64, 2)["partial_choice_s"] == 0


def test_missing_share():
    assert missing(np.array([0.0, 4e6, 8e6, 16e6, 1e9]), 8e6).tolist() == [0.0, 0.0, 0.5, 1.0, 1.0]
