"""A GPU's profile without a GPU: all but the times of launches is real; the timer only calls what
it would time.
"""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from moesim_kernels.ops import runtime
from moesim_kernels.profile import gpu_curves, gpu_profile
from moesim_kernels.profile.gpu_profile import Bench, Gpu, profile_text, write_profile
from moesim_kernels.profile.profilers import GpuProfiler
from moesim_kernels.timing import graphs

from moesim import Candidate, Workload, load_profile, simulate
from moesim.errors import MeasurementError
from moesim.files import toml
from moesim.hardware import single_device
from moesim.hardware.profile import ProfileFile

pytestmark = pytest.mark.full

UNKNOWN = Gpu(
    name="ACME Z9",
    compute_capability=None,
    num_sms=30,
    clock_hz=2e9,
    shared_bytes=64 << 10,
    memory_bytes=8 << 30,
    l2_bytes=1 << 15,
    count=1,
)
H100 = replace(UNKNOWN, name="NVIDIA H100 80GB HBM3", compute_capability=9.0, num_sms=132)
#: torch multiplies there wherever the test runs; kernels want their tensors where they run
CPU, HERE = torch.device("cpu"), runtime.device()


class Timer:
    """Calls once; every repeat took a millisecond, some a little longer."""

    def __init__(self):
        self.flushed = []

    def __call__(self, call, flush):
        call()
        self.flushed.append(flush)
        return np.array([1e-3, 1.1e-3, 1.0e-3, 1.2e-3, 1.0e-3, 1.5e-3, 1.3e-3])


def bench(timer=None, peer=None):
    timer = timer or Timer()
    return Bench(timer=timer, queue=timer, wait=lambda: None, device=HERE, peer=peer)


def write(path, gpu, **options):
    text = profile_text(
        gpu,
        bench(**options),
        command="a test",
        largest_bytes=1 << 17,
        sizes=(32, 64),
        tell=lambda _: None,
    )
    path.write_text(text, encoding="utf-8")
    return toml.parse(text, ProfileFile, path.name), load_profile(str(path))


def test_an_unknown_gpu_gets_figures_at_which_the_model_reaches_what_was_measured(tmp_path):
    file, profile = write(tmp_path / "z9.toml", UNKNOWN)
    assert (profile.execution, profile.compute_capability, profile.num_sms) == ("waves", None, 30)
    assert profile.calibration == "triton-moe"
    calibration = toml.find("calibration", "triton-moe")
    parameters = toml.parse(
        calibration.read_text(encoding="utf-8"), gpu_profile.CalibrationFile, ""
    ).parameters
    assert profile.peak("bfloat16") * parameters["mma_efficiency"] == pytest.approx(
        2 * 64**3 / 1.1e-3, rel=1e-3
    )
    share = parameters["activation_bandwidth_efficiency"]
    # Half of a time at most is taken for its launch, and this timer's launches take as long.
    assert profile.hbm_bandwidth_bytes_per_s * share == pytest.approx((1 << 17) / 0.55e-3, rel=1e-3)
    assert file.compute.peak_tflops["bfloat16"].kind == "derived"
    assert {q.source for _, q in toml.quantities(file)} == set(file.sources)


def test_a_shipped_gpu_keeps_its_data_sheet(tmp_path):
    file, profile = write(tmp_path / "here.toml", H100)
    shipped = load_profile("h100-sxm")
    assert profile.peak_flops_per_s == pytest.approx(shipped.peak_flops_per_s)
    assert profile.hbm_bandwidth_bytes_per_s == shipped.hbm_bandwidth_bytes_per_s
    # Calibrated cycles are cycles of this clock, not of the highest that the driver allows.
    assert profile.clock_hz == shipped.clock_hz < H100.clock_hz
    assert file.compute.peak_tflops["bfloat16"].kind == "datasheet"
    assert "h100-sxm" in file.sources["figures"].title
    other = replace(UNKNOWN, name="AMD Instinct MI355X", num_sms=256)
    file, _ = write(tmp_path / "other.toml", other)
    kind, _ = load_profile("mi355x").provenance["compute.peak_tflops.bfloat16"]
    assert file.compute.peak_tflops["bfloat16"].kind == kind
    assert replace(H100, num_sms=114).shipped() is None, "another H100 than the one that is shipped"
    assert UNKNOWN.shipped() is None


def test_every_measured_number_has_its_spread(tmp_path):
    file, _ = write(tmp_path / "z9.toml", UNKNOWN)
    assert {point.format for point in file.compute.gemm} >= {"float32", "bfloat16", "float16"}
    assert [point.access_bytes for point in file.hbm.gather] == list(gpu_curves.ACCESS_BYTES)
    assert [point.working_set_mib * 1024 for point in file.hbm.streaming] == [8, 16, 32, 64, 128]
    points = [point.tflops for point in file.compute.gemm]
    points += [
        point.efficiency
        for point in (*file.hbm.gather, *file.hbm.gather_cached, *file.hbm.streaming)
    ]
    for number in points:
        assert number.kind == "measured"
        assert number.min <= number.low <= number.median == number.value <= number.high
        assert number.repeats == 7
    launch = file.launch.kernel_us
    assert launch.value == launch.median == pytest.approx(1.1e3)
    assert file.launch.plain_kernel_us.repeats == 20
    assert file.peer_copies == []
    assert file.measurement.command == "a test"
    assert not file.measurement.contended


def test_a_simulation_runs_on_it_and_is_no_calibrated_one(tmp_path, make_layer):
    _, profile = write(tmp_path / "z9.toml", UNKNOWN)
    result = simulate(
        Candidate(layer=make_layer()), single_device(profile), Workload(num_tokens_per_device=64)
    )
    assert result.layer_time_low_s < result.layer_time_s < result.layer_time_high_s
    assert result.calibration == "spec_sheet"


def test_a_slower_machine_afterwards_is_told(tmp_path):
    class Slowing(Timer):
        def __call__(self, call, flush):
            return super().__call__(call, flush) * (1.0 + 0.01 * len(self.flushed))

    text = profile_text(
        UNKNOWN, bench(Slowing()), command="", largest_bytes=1 << 17, sizes=(32,), tell=str
    )
    assert "contended = true" in text


def test_caches_are_flushed_before_a_cold_gather_alone():
    for cold in (True, False):
        timer = Timer()
        gpu_curves.gather_rates(timer, HERE, 1 << 16, 1 << 14, cold=cold)
        assert timer.flushed == [cold] * len(gpu_curves.ACCESS_BYTES)


def test_copies_to_another_gpu_are_recorded(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_profile, "COPY_BYTES", (1 << 12, 1 << 14))
    file, _ = write(tmp_path / "two.toml", replace(UNKNOWN, count=2), peer=HERE)
    assert [point.bytes for point in file.peer_copies] == [1 << 12, 1 << 14]
    rate = file.peer_copies[1].gb_per_s
    assert (rate.kind, rate.source, rate.repeats) == ("measured", "copies", 7)
    assert {q.source for _, q in toml.quantities(file)} == set(file.sources)
    assert rate.value == pytest.approx((1 << 14) / 1.1e-3 / 1e9, rel=1e-3)


def test_one_gpu_has_nobody_to_copy_to():
    told = []
    assert gpu_profile._copies(UNKNOWN, bench(), told.append) == []
    assert told == ["copies between GPUs: not measured, there is one GPU here"]


def _raise(monkeypatch, error, from_size=0):
    whole = torch._int_mm

    def product(left, right):
        if len(left) >= from_size:
            raise error
        return whole(left, right)

    monkeypatch.setattr(torch, "_int_mm", product)


def test_sizes_beyond_the_memory_end_a_format(monkeypatch):
    _raise(monkeypatch, torch.OutOfMemoryError("CUDA out of memory"), 64)
    assert set(gpu_curves.gemm_rates(Timer(), CPU, (32, 64, 128))["int8"]) == {32}


@pytest.mark.parametrize(
    ("message", "from_size"),
    [
        ("an illegal memory access was encountered", 0),
        ("products of this size are not supported", 64),
    ],
)
def test_other_failures_are_not_taken_for_a_missing_format(monkeypatch, message, from_size):
    _raise(monkeypatch, RuntimeError(message), from_size)
    with pytest.raises(RuntimeError, match=message):
        gpu_curves.gemm_rates(Timer(), CPU, (32, 64))


def test_a_format_without_products_is_left_out(monkeypatch):
    _raise(
        monkeypatch,
        RuntimeError("_int_mm is only supported on devices of compute capability 8.0 and later"),
    )
    found = gpu_curves.gemm_rates(Timer(), CPU, (16, 32))
    assert "int8" not in found
    assert set(found["bfloat16"]) == {16, 32}
    assert torch.get_float32_matmul_precision() == "highest"


def test_products_that_would_take_too_long_are_left_out():
    """2 x 32^3 FLOP take 1.1 ms: at twice that rate 64 times the work takes 35, and 20 are the
    limit.
    """
    assert set(gpu_curves.gemm_rates(Timer(), CPU, (32, 128))["float32"]) == {32}


class FakeDriver:
    def get_current_device(self):
        return 0

    def get_current_target(self):
        return SimpleNamespace(backend="cuda", arch=90)

    def get_active_torch_device(self):
        return CPU

    utils = SimpleNamespace(
        get_device_properties=lambda _: {
            "multiprocessor_count": 132,
            "sm_clock_rate": 1980000,
            "max_shared_mem": 232448,
        }
    )


def test_what_the_driver_tells(monkeypatch):
    told = SimpleNamespace(
        name="NVIDIA H100 80GB HBM3",
        major=9,
        minor=0,
        total_memory=80 << 30,
        L2_cache_size=50 << 20,
        shared_memory_per_multiprocessor=233472,
    )
    monkeypatch.setattr(gpu_profile.triton.runtime.driver, "_active", FakeDriver(), raising=False)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: told)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    gpu = Gpu.here()
    assert (gpu.compute_capability, gpu.num_sms, gpu.clock_hz, gpu.count) == (9.0, 132, 1.98e9, 8)
    assert gpu.shipped().name == "h100-sxm"
    del told.L2_cache_size
    with pytest.raises(MeasurementError, match=r"^gpu: the driver does not tell .*L2_cache_size"):
        Gpu.here()


def test_the_profiler_says_why_it_cannot():
    reason = GpuProfiler().unavailable_because()
    assert reason is None or ("\n" not in reason and reason)


class Machine:
    """A whole GPU without one: its driver, torch's view of it, and its kernels, whose rates are
    known.
    """

    def __init__(self, fake, monkeypatch):
        self.fake, self.gpu = fake, fake.FakeGpu()
        self.gpu.install(monkeypatch, [graphs])
        told = SimpleNamespace(
            name="ACME Z9",
            major=9,
            minor=0,
            total_memory=1 << 27,
            L2_cache_size=fake.L2_BYTES,
            shared_memory_per_multiprocessor=1 << 17,
        )
        driver = FakeDriver()
        driver.get_empty_cache_for_benchmark = lambda: self.gpu
        driver.clear_cache = lambda cache: cache.flush()
        monkeypatch.setattr(gpu_profile.triton.runtime.driver, "_active", driver, raising=False)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: told)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
        for name in ("stream", "gather", "_copy"):
            monkeypatch.setattr(gpu_curves, name, getattr(self, name.strip("_")))
        for name in ("mm", "_scaled_mm", "_int_mm"):
            monkeypatch.setattr(torch, name, self.product)

    def stream(self, source, target):
        moved = 2.0 * source.nbytes
        data = (source.data_ptr(), moved)
        self.gpu.launch("stream", lambda: self.gpu.moved(moved, data) if moved > 4096 else 0.0)

    def gather(self, table, rows, target):
        # Rows shorter than 128 bytes read 128 from memory, so that half of the traffic is wasted.
        share = 1.0 if table.shape[1] * 4 >= 128 else 0.5
        moved, data = 2.0 * target.nbytes, (table.data_ptr(), table.nbytes)
        size = max(moved, 2.0 * table.nbytes)
        self.gpu.launch("gather", lambda: self.gpu.moved(size, data, share) * moved / size)

    def copy(self, source, target):
        self.gpu.launch("copy", lambda: source.nbytes / self.fake.LINK)

    def product(self, left, right, **_):
        rate = self.fake.PEAK[str(left.dtype).removeprefix("torch.")]
        flops = 2.0 * len(left) ** 3
        self.gpu.launch(f"{left.dtype}", lambda: flops / rate)


def test_a_whole_gpu_is_measured_as_it_is(fake, monkeypatch, tmp_path, capsys):
    """Everything from the driver to the file, with the truth known: launches of 19 us do not hide
    what an L2 or a small product can do.
    """
    Machine(fake, monkeypatch)
    shorter = profile_text.__kwdefaults__ | {"sizes": (256, 512)}
    monkeypatch.setattr(profile_text, "__kwdefaults__", shorter)
    write_profile(tmp_path / "z9.toml", 1.0, command="a test")
    path = tmp_path / "z9.toml"
    file = toml.parse(path.read_text(encoding="utf-8"), ProfileFile, path.name)
    profile = load_profile(str(path))
    assert profile.kernel_launch_s == pytest.approx(fake.GAP_S, rel=0.02)
    assert profile.host_launch_s == pytest.approx(fake.HOST_S, rel=0.02)
    bandwidth = profile.hbm_bandwidth_bytes_per_s
    near, far = file.hbm.streaming[0], file.hbm.streaming[-1]
    assert near.working_set_mib < 1 < far.working_set_mib
    assert near.efficiency.value * bandwidth == pytest.approx(fake.L2, rel=0.05)
    assert far.efficiency.value * bandwidth == pytest.approx(fake.HBM, rel=0.05)
    for point in file.hbm.gather:
        share = 1.0 if point.access_bytes >= 128 else 0.5
        assert point.efficiency.value * bandwidth == pytest.approx(share * fake.HBM, rel=0.05)
    for point in file.hbm.gather_cached:
        assert point.efficiency.value * bandwidth == pytest.approx(fake.L2, rel=0.05)
    for point in file.compute.gemm:
        flops = 2.0 * point.size**3
        peak = fake.PEAK[{"float8_e4m3": "float8_e4m3fn"}.get(point.format, point.format)]
        truth = flops / (fake.GAP_S + flops / peak)
        assert point.tflops.value * 1e12 == pytest.approx(truth, rel=0.03)
    assert not profile.contended
    told = capsys.readouterr().err
    assert "measuring gathers" in told
    assert "copies between GPUs: not measured, there is one GPU here" in told


def test_copies_are_queued_not_captured(fake, monkeypatch):
    machine = Machine(fake, monkeypatch)
    made = Bench.of(graphs.CudaClock(2e9), CPU, 0.01, 1)
    rates = gpu_curves.copy_rates(made.queue, CPU, CPU, (1 << 16, 1 << 20))
    for size, found in rates.items():
        truth = size / (fake.GAP_S + size / fake.LINK)
        assert np.median(found) == pytest.approx(truth, rel=0.03)
    assert machine.gpu.capturing is None
