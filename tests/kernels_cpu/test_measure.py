"""`moesim measure`: a profile of this machine, and what can be done with it."""

import sys
from dataclasses import replace

import pytest

from moesim import Candidate, Workload, load_profile, simulate
from moesim.cli import main
from moesim.files import toml
from moesim.hardware import single_device
from moesim.measured import sources

pytestmark = pytest.mark.full


@pytest.fixture
def moesim(monkeypatch, capsys):
    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["moesim", *arguments])
        with pytest.raises(SystemExit) as stopped:
            main()
        captured = capsys.readouterr()
        return stopped.value.code or 0, captured.out, captured.err

    return run


def test_a_measured_cpu_is_a_cluster_of_its_own(moesim, monkeypatch, tmp_path):
    monkeypatch.setenv("MOESIM_HOME", str(tmp_path))
    code, out, err = moesim("measure", "--seconds", "1", "--device", "cpu")
    assert code == 0
    assert "GFLOP/s" in out
    assert "all-to-all of 2 ranks over gloo: start" in out
    assert "measuring this machine's cpu, about 1 s" in err
    profile = load_profile("local")
    assert profile.host_fabric.backend == "gloo"
    assert profile.host_fabric.start_s > 0
    assert profile.host_fabric.interval[0] <= profile.host_fabric.interval[1]
    assert len(profile.host_fabric.time_s) == len(profile.host_fabric.bytes_per_pair) >= 8
    text = (tmp_path / "devices" / "local.toml").read_text(encoding="utf-8")
    assert 'command = "moesim measure --device cpu --seconds 1"' in text
    code, out, _ = moesim(
        "simulate",
        "--cluster",
        "local",
        "--preset",
        "olmoe-1b-7b",
        "--tokens",
        "16",
        "--layer-only",
    )
    assert code == 0
    assert "on local:" in out
    assert "simulated, calibrated" in out


def test_the_interval_is_that_of_calls_left_out_of_the_fit(cpu_profile_path, make_layer):
    profile = replace(
        load_profile(str(cpu_profile_path)),
        residuals={"gemm_bfloat16": (0.5, 2.0), "top_k": (0.4, 1.5)},
    )
    result = simulate(
        Candidate(layer=make_layer()), single_device(profile), Workload(num_tokens_per_device=64)
    )
    gate, experts = result.phase_time_s["gate"], result.phase_time_s["experts"]
    root = (5 / 9) ** 0.5
    assert result.layer_time_low_s == pytest.approx(0.4 * gate + 0.5**root * experts)
    assert result.layer_time_high_s == pytest.approx(2.0 * gate + 2.0**root * experts)
    assert result.calibration == "calibrated"
    unknown = simulate(
        Candidate(layer=make_layer()),
        single_device(replace(profile, residuals={})),
        Workload(num_tokens_per_device=64),
    )
    assert unknown.calibration == "none"
    assert unknown.layer_time_high_s == pytest.approx(1.5 * unknown.layer_time_s)


class Measured:
    """A profiler that has measured an H100 already."""

    def unavailable_because(self):
        return None

    def write(self, path, seconds, command):
        text = toml.find("devices", "h100-sxm").read_text(encoding="utf-8")
        path.write_text(text.replace('"h100_sxm", "h100", "h100-sxm5", "h100-80gb"', ""))


def test_a_measured_gpu_tells_both_of_its_launch_times(moesim, monkeypatch, tmp_path):
    monkeypatch.setattr(sources, "profilers", lambda: {"gpu": Measured()})
    code, out, _ = moesim("measure", "--device", "gpu", "--out", str(tmp_path / "here.toml"))
    assert code == 0
    assert "launch of a kernel: 0.95 us in a graph, 19.3 us by the host" in out


class Absent:
    def unavailable_because(self):
        return "it is not here"


def test_a_device_that_is_not_here_is_one_line(moesim, monkeypatch):
    monkeypatch.setattr(sources, "profilers", lambda: {"gpu": Absent(), "cpu": Absent()})
    code, _, err = moesim("measure", "--device", "gpu")
    assert (code, err) == (2, "error: measure: gpu: it is not here\n")
    code, _, err = moesim("measure")
    assert (code, err) == (2, "error: measure: gpu: it is not here; cpu: it is not here\n")
    monkeypatch.setattr(sources, "profilers", dict)
    code, _, err = moesim("measure", "--device", "cpu")
    assert (code, err) == (2, "error: measure: cpu: no installed package measures it\n")
    code, _, err = moesim("measure", "--device", "tpu")
    assert (code, err) == (2, "error: --device: expected cpu, gpu or auto, got 'tpu'\n")


def test_both_profilers_are_installed_and_say_whether_they_can():
    found = sources.profilers()
    assert {"cpu", "gpu"} <= set(found)
    assert {name: profiler.name for name, profiler in found.items()} == {
        name: name for name in found
    }
    assert found["cpu"].unavailable_because() is None
    reason = found["gpu"].unavailable_because()
    assert reason is None or "\n" not in reason


def test_a_profile_that_cannot_be_written(moesim, tmp_path):
    (tmp_path / "file").write_text("")
    code, _, err = moesim(
        "measure", "--device", "cpu", "--seconds", "1", "--out", str(tmp_path / "file" / "x.toml")
    )
    assert code == 2
    assert err.splitlines()[-1].endswith("x.toml: cannot write this profile: Not a directory")
