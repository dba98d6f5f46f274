"""Device profiles: SI units inside, one-line errors outside, and every shipped number with kind and
source.
"""

from dataclasses import replace
from typing import get_args

import numpy as np
import pytest

from moesim.errors import ConfigError, UnknownNameError
from moesim.files import toml
from moesim.files.toml import Kind
from moesim.hardware.profile import ProfileFile, load_profile

DEVICE = """
title = "A chip"
aliases = ["chip-one"]
compute_capability = 9.0
calibration = "triton-moe"
[compute]
num_sms = {value = 100, kind = "datasheet", source = "s"}
clock_ghz = {value = 2.0, kind = "datasheet", source = "s"}
shared_memory_per_sm_kib = {value = 200.0, kind = "datasheet", source = "s"}
[compute.peak_tflops]
bfloat16 = {value = 500.0, kind = "datasheet", source = "s"}
[hbm]
capacity_gib = {value = 10.0, kind = "datasheet", source = "s"}
bandwidth_gb_per_s = {value = 3350.0, kind = "datasheet", source = "s"}
[[hbm.gather]]
access_bytes = 4096.0
efficiency = {value = 0.9, kind = "assumed", source = "s"}
[[hbm.gather]]
access_bytes = 64.0
efficiency = {value = 0.5, kind = "assumed", source = "s"}
[l2]
capacity_mib = {value = 50.0, kind = "datasheet", source = "s"}
[launch]
kernel_us = {value = 2.0, kind = "measured", source = "s"}
[sources.s]
title = "A datasheet"
"""


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Write the device with one change; load it by name."""
    (tmp_path / "devices").mkdir()
    monkeypatch.setenv("MOESIM_PROFILES", str(tmp_path))

    def make(old="", new="", name="a-chip"):
        assert old in DEVICE
        (tmp_path / "devices" / f"{name}.toml").write_text(
            DEVICE.replace(old, new) if old else DEVICE
        )
        return load_profile(name)

    return make


def test_numbers_are_converted_once(write):
    chip = write()
    assert (chip.name, chip.execution, chip.num_sms, chip.clock_hz) == ("a-chip", "waves", 100, 2e9)
    assert chip.peak("bfloat16") == 500e12
    assert chip.hbm_bandwidth_bytes_per_s == 3350e9
    assert chip.hbm_capacity_bytes == 10 * 2**30
    assert (chip.l2_bytes, chip.shared_memory_per_sm_bytes) == (50 * 2**20, 200 * 2**10)
    assert chip.kernel_launch_s == pytest.approx(2e-6)
    assert chip.provenance["hbm.bandwidth_gb_per_s"] == ("datasheet", "s")
    assert chip.provenance["hbm.gather[1].efficiency"] == ("assumed", "s")


def test_gather_curve_is_sorted_and_log_linear(write):
    chip = write()
    assert (chip.gather_share(64), chip.gather_share(4096)) == pytest.approx((0.5, 0.9))
    assert chip.gather_share(512) == pytest.approx(0.7)
    assert (chip.gather_share(1), chip.gather_share(1e9)) == pytest.approx((0.5, 0.9))


def test_a_changed_file_is_read_again_and_has_another_digest(write):
    first = write()
    second = write("value = 3350.0", "value = 1000.0")
    assert second.hbm_bandwidth_bytes_per_s == 1000e9
    assert first.digest != second.digest
    assert len(second.digest) == 12


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "[hbm]",
            "[hbm",
            "not valid TOML: Expected ']' at the end of a table declaration (at line 12, column 5)",
        ),
        (
            "[hbm]",
            "[hbm]\nbandwith = 3",
            "hbm.bandwith: no such key (remove it or check its spelling)",
        ),
        (
            "value = 3350.0",
            "value = '3.35TB'",
            "hbm.bandwidth_gb_per_s.value: expected a number > 0, got '3.35TB'",
        ),
        (
            "value = 3350.0",
            "value = -1.0",
            "hbm.bandwidth_gb_per_s.value: expected a number > 0, got -1.0",
        ),
        (
            '{value = 3350.0, kind = "datasheet", source = "s"}',
            "true",
            "hbm.bandwidth_gb_per_s: expected a number > 0, or a table of value, kind and source, "
            "got True",
        ),
        (
            '3350.0, kind = "datasheet", source = "s"',
            '3350.0, kind = "datasheet"',
            "hbm.bandwidth_gb_per_s.source: expected a value, got nothing",
        ),
        (
            '3350.0, kind = "datasheet", source = "s"',
            '3350.0, kind = "datasheet", source = "flyer"',
            "hbm.bandwidth_gb_per_s.source: expected one of [sources]: s, got 'flyer'",
        ),
        (
            "compute_capability = 9.0",
            'execution = "wave"',
            "execution: expected one of waves, serial or systolic, got 'wave'",
        ),
    ],
)
def test_one_line_errors(write, old, new, message):
    with pytest.raises(ConfigError) as caught:
        write(old, new)
    assert str(caught.value) == f"a-chip.toml: {message}"


@pytest.mark.parametrize("number", ["0.5", "132.5"])
def test_a_device_has_a_whole_number_of_sms(write, number):
    """Half an SM would be cut to none, and every GEMM divided by zero."""
    with pytest.raises(ConfigError, match=rf"^a-chip.toml: compute.num_sms.*integer.*{number}"):
        write("value = 100,", f"value = {number},")


MEASURED = """
[measurement]
command = "moesim measure"
created = "2026-11-22"
machine = "a machine"
software = "some software"
seconds = 9.5
slowdown = -0.01
contended = true
[residuals.gemm_float32]
low = {value = 0.8, kind = "measured", source = "s"}
high = {value = 1.3, kind = "measured", source = "s"}
points = 40
[host_fabric]
backend = "gloo"
start_us = {value = 50.0, kind = "measured", source = "s", low = 40.0, high = 60.0}
gb_per_s = {value = 3.0, kind = "measured", source = "s"}
[[host_fabric.points]]
ranks = 2
bytes_per_pair = 1024.0
[host_fabric.points.time_us]
value = 52.0
kind = "measured"
source = "s"
min = 48.0
median = 55.0
low = 50.0
high = 70.0
[host_fabric.residuals]
low = {value = 0.7, kind = "measured", source = "s"}
high = {value = 1.9, kind = "measured", source = "s"}
points = 14
"""


def test_what_a_measured_profile_adds(write):
    plain = write()
    assert (plain.host_fabric, plain.residuals, plain.contended, plain.mxu_size) == (
        None,
        {},
        False,
        0,
    )
    chip = write("[sources.s]", MEASURED + "[sources.s]")
    assert (chip.residuals, chip.contended) == ({"gemm_float32": (0.8, 1.3)}, True)
    fabric = chip.host_fabric
    assert (fabric.backend, fabric.start_s, fabric.port_bytes_per_s) == (
        "gloo",
        pytest.approx(50e-6),
        3e9,
    )
    assert (fabric.ranks, fabric.bytes_per_pair, fabric.interval) == ((2,), (1024.0,), (0.7, 1.9))
    assert fabric.time_s == pytest.approx((52e-6,))
    assert chip.provenance["host_fabric.points[0].time_us"] == ("measured", "s")


def test_an_all_to_all_without_residuals_has_an_assumed_interval(write):
    text = MEASURED[: MEASURED.index("[host_fabric.residuals]")]
    assert write("[sources.s]", text + "[sources.s]").host_fabric.interval == pytest.approx(
        (1 / 1.5, 1.5)
    )


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "value = 1.3",
            "value = 0.5",
            "residuals.gemm_float32.high.value: expected a number >= low = 0.8, got 0.5",
        ),
        ("ranks = 2", "ranks = 1", "host_fabric.points[0].ranks: expected a number >= 2, got 1"),
        (
            "bytes_per_pair = 1024.0",
            "bytes_per_pair = 0.0",
            "host_fabric.points[0].bytes_per_pair: expected a number > 0, got 0.0",
        ),
        ('backend = "gloo"', "", "host_fabric.backend: expected a value, got nothing"),
        (
            "contended = true",
            "contended = 1",
            "measurement.contended: expected true or false, got 1",
        ),
    ],
)
def test_one_line_errors_of_what_was_measured(write, old, new, message):
    assert old in MEASURED
    with pytest.raises(ConfigError) as caught:
        write("[sources.s]", MEASURED.replace(old, new) + "[sources.s]")
    assert str(caught.value) == f"a-chip.toml: {message}"


def test_a_file_that_is_not_text(tmp_path):
    (tmp_path / "chip.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match=r"^chip\.toml: not valid TOML: "):
        load_profile(str(tmp_path / "chip.toml"))


def test_unknown_format(write):
    with pytest.raises(
        ConfigError, match=r"^a-chip: no compute rate for float8_e4m3; it has bfloat16$"
    ):
        write().peak("float8_e4m3")


def test_unknown_profile_comes_with_near_ones():
    with pytest.raises(
        UnknownNameError, match=r"^unknown profile 'h100-smx': did you mean h100-sxm"
    ):
        load_profile("h100-smx")


@pytest.mark.parametrize("alias", ["h100-sxm", "h100_sxm", "H100", "h100"])
def test_aliases(alias):
    assert load_profile(alias).name == "h100-sxm"


def test_variable_overrides_shipped(write):
    assert write("value = 3350.0", "value = 7.0", name="h100-sxm").hbm_bandwidth_bytes_per_s == 7e9
    assert load_profile("h100-sxm").hbm_bandwidth_bytes_per_s == 7e9


@pytest.mark.parametrize("name", toml.names("devices"))
class TestShipped:
    def test_every_number_has_kind_and_listed_source(self, name):
        path = toml.find("devices", name)
        file = toml.parse(path.read_text(encoding="utf-8"), ProfileFile, path.name)
        found = dict(toml.quantities(file))
        assert {"compute.num_sms", "hbm.capacity_gib", "hbm.bandwidth_gb_per_s"} <= found.keys()
        for key, quantity in found.items():
            assert quantity.kind in get_args(Kind), key
            assert file.sources[quantity.source].title, key
        assert {q.source for q in found.values()} == set(file.sources), "a source nobody refers to"

    def test_numbers_are_plausible(self, name):
        profile = load_profile(name)
        assert profile.name == name
        assert 0 < profile.num_sms < 1024
        assert 0.5e9 < profile.clock_hz < 6e9
        assert 1e9 < profile.hbm_bandwidth_bytes_per_s < 100e12
        assert 2**30 < profile.usable_bytes <= profile.hbm_capacity_bytes < 2**41
        assert 2**20 <= profile.l2_bytes < 2**31
        assert list(profile.gather_access_bytes) == sorted(set(profile.gather_access_bytes))
        assert all(0 < share <= 1 for share in profile.gather_efficiency)
        # Longer rows never cost much: a measured curve wavers by a per cent or two.
        best = np.maximum.accumulate(profile.gather_efficiency)
        assert (np.array(profile.gather_efficiency) >= 0.98 * best).all()
        assert all(1e9 < rate < 1e17 for rate in profile.peak_flops_per_s.values())
        if "float8_e4m3" in profile.peak_flops_per_s:
            assert profile.peak("float8_e4m3") >= profile.peak("bfloat16")

    def test_its_calibration_exists(self, name):
        profile = load_profile(name)
        assert toml.find("calibration", profile.calibration).is_file()

    def test_aliases_are_its_own(self, name):
        path = toml.find("devices", name)
        file = toml.parse(path.read_text(encoding="utf-8"), ProfileFile, path.name)
        for alias in file.aliases:
            assert toml.find("devices", alias) == path, alias


GPUS = [name for name in toml.names("devices") if not name.startswith("tpu")]


@pytest.mark.parametrize("name", GPUS)
def test_gpus_know_what_short_rows_cost(name):
    """32 B to 64 KiB, as measured on an H100; rows of 1 KiB and more move like a stream."""
    chip, measured = load_profile(name), load_profile("h100-sxm")
    assert (chip.gather_access_bytes[0], chip.gather_access_bytes[-1]) == (32, 65536)
    assert chip.gather_efficiency == measured.gather_efficiency
    kinds = {kind for key, (kind, _) in chip.provenance.items() if key.startswith("hbm.gather")}
    assert kinds == {"measured" if chip is measured else "derived"}
    assert [chip.gather_slowdown(size) for size in (32, 64, 128)] == pytest.approx(
        [2.0, 1.28, 1.06], rel=0.01
    )
    for size in (1024, 7168, 1e9):
        assert 1.0 <= chip.gather_slowdown(size) < 1.02


def test_rows_of_the_best_size_move_like_a_stream():
    """The end of a measured curve may waver below it: no size is faster than a stream."""
    chip = replace(
        load_profile("h100-sxm"),
        gather_access_bytes=(32.0, 1024.0, 65536.0),
        gather_efficiency=(0.4, 0.9, 0.88),
    )
    found = [chip.gather_slowdown(size) for size in (32, 1024, 65536)]
    assert found == pytest.approx([0.9 / 0.4, 1.0, 0.9 / 0.88])


@pytest.mark.parametrize("name", GPUS)
def test_gpus_know_what_their_cache_is_worth(name):
    """A working set well inside the L2 streams faster than HBM, one far larger at what HBM
    achieves: measured on an A100, H100, and H200, elsewhere the H100's share. What the L2 gives
    was measured on an A100 and H200 only.
    """
    chip = load_profile(name)
    assert chip.streaming_bytes[0] < chip.l2_bytes < chip.streaming_bytes[-1]
    assert 0.8 <= chip.streaming_efficiency[-1] < 1 < chip.streaming_efficiency[0]
    kinds = {kind for key, (kind, _) in chip.provenance.items() if key.startswith("hbm.streaming")}
    assert kinds == {
        "a100-sxm": {"measured"},
        "h200-sxm": {"measured"},
        "h100-sxm": {"measured", "derived", "assumed"},
    }.get(name, {"assumed", "derived"})
    if "derived" in kinds:
        assert chip.streaming_efficiency[-1] == load_profile("h100-sxm").streaming_efficiency[-1]


def test_the_h100_has_been_measured():
    path = toml.find("devices", "h100-sxm")
    file = toml.parse(path.read_text(encoding="utf-8"), ProfileFile, path.name)
    points = [*file.hbm.gather, *file.hbm.streaming]
    measured = [p.efficiency for p in points] + [p.tflops for p in file.compute.gemm]
    measured = [q for q in (*measured, file.launch.kernel_us) if q.kind == "measured"]
    assert len(measured) >= 20
    for number in measured:
        source = file.sources[number.source]
        assert "H100 80GB HBM3" in source.locator
        assert "driver 580" in source.locator
        assert number.low <= number.median <= number.high
        assert number.repeats >= 10
    # Smaller products took as long as their launch, and operands were ones.
    assert min(p.size for p in file.compute.gemm) >= 4096
    assert "operands were ones" in file.sources["run-gemm"].title
    assert file.launch.kernel_us.value < 1.0 < 10.0 < file.launch.plain_kernel_us.value
