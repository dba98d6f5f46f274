"""The measured profile is a valid file with honest numbers, and prices built on one behave."""

from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from moesim_kernels.cpu_profile import fit, measure_profile, write_profile

from moesim import configfile
from moesim.costs.load import Load
from moesim.costs.serial import SerialKernels, gemm_features, missing, top_k_features
from moesim.errors import ConfigError
from moesim.hardware import ProfileFile, load_profile

TABLES = {"launch", "stream", "gather", "align", "top_k", "gemm_float32", "gemm_bfloat16"}


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("profile") / "cpu-local.toml"
    write_profile(path, budget_s=1.0)
    return path


def test_profile_is_valid_and_sourced(path):
    text = path.read_text(encoding="utf-8")
    file = configfile.parse(text, ProfileFile, path.name)
    assert (file.execution, file.calibration) == ("serial", "none")
    assert set(file.serial) == TABLES
    assert set(file.compute.peak_tflops) == {"float32", "bfloat16"}
    for key, quantity in configfile.quantities(file):
        assert quantity.kind == ("assumed" if key.startswith("compute.") and "peak" not in key else "measured"), key
        assert quantity.value > 0
    assert f"torch {torch.__version__}" in file.sources["protocol"].locator
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
    return seconds_of(kernels.grouped_gemm(Load.of(counts, counts.sum(axis=-1), 16), n, k, tile=None, fmt="float32",
                                           weight_bytes=4.0, input_bytes=4.0, **options))


def test_cost_grows_with_the_work(path):
    kernels = SerialKernels(profile=load_profile(str(path)))
    one = np.array([1])
    prices_of = [
        lambda x: gemm(kernels, [x, 0, x]), lambda x: gemm(kernels, [7, 3], n=x), lambda x: gemm(kernels, [7], k=x),
        lambda x: gemm(kernels, [5] * x), lambda x: seconds_of(kernels.top_k(x * one, 64, 4)),
        lambda x: seconds_of(kernels.align(x * one, 64)), lambda x: seconds_of(kernels.stream(x * 1e4 * one)),
        lambda x: seconds_of(kernels.gather(x * 1e4 * one, 1e3)), lambda x: seconds_of(kernels.launches(x * one))]
    for price in prices_of:
        prices = [price(x) for x in (1, 2, 16, 128, 1024, 8192, 65536)]
        assert all(0 <= a <= b < np.inf for a, b in pairwise(prices))
        assert prices[-1] > prices[0]


def test_no_work_costs_nothing(path):
    kernels = SerialKernels(profile=load_profile(str(path)))
    none = np.array([0])
    assert gemm(kernels, [0, 0]) == 0.0
    for cost in (kernels.top_k(none, 64, 4), kernels.align(none, 64), kernels.stream(none), kernels.gather(none, 64.0)):
        assert seconds_of(cost) == 0.0


def test_warm_is_never_dearer_than_cold(path):
    kernels = SerialKernels(profile=load_profile(str(path)))
    assert gemm(kernels, [4] * 9, warm_bytes_D=np.array([1e3])) <= gemm(kernels, [4] * 9)
    assert gemm(kernels, [4] * 9, warm_bytes_D=np.array([1e12])) == gemm(kernels, [4] * 9)


def test_missing_table_says_so():
    kernels = SerialKernels(profile=SimpleNamespace(name="cpu-local", serial={"launch": {"call_s": 1e-5}}))
    with pytest.raises(ConfigError, match=r"cpu-local: serial\.align: expected measured coefficients"):
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


def test_fit_recovers_coefficients_and_drops_what_was_not_exercised():
    rng = np.random.default_rng(0)
    features = [{"a_s": rng.uniform(1, 100), "b_s": rng.uniform(1, 1000), "rare_s": 0.0} for _ in range(40)]
    features[0]["rare_s"] = features[1]["rare_s"] = 1e6
    seconds = np.array([1e-5 + 2e-6 * f["a_s"] + 3e-7 * f["b_s"] for f in features])
    found, low, high = fit(features, seconds)
    assert set(found) == {"a_s", "b_s"}
    assert found["a_s"] == pytest.approx(2e-6, rel=1e-3)
    assert found["b_s"] == pytest.approx(3e-7, rel=1e-3)
    assert low == pytest.approx(1.0, abs=1e-3)
    assert high == pytest.approx(1.0, abs=1e-3)


def test_fit_never_goes_below_zero():
    features = [{"up_s": float(i), "down_s": 100.0 - i} for i in range(1, 60)]
    found, _, _ = fit(features, np.array([1e-6 * (10 + i) for i in range(1, 60)]))
    assert all(value > 0 for value in found.values())
