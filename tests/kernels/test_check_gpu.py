"""The GPU's closed loop with everything but the GPU: search, the source's rows, report; and one
line without one.
"""

import csv
import importlib.util
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from moesim_kernels.ops.runtime import device
from moesim_kernels.sources import gpu_loop
from moesim_kernels.sources.triton import timed_rows
from moesim_kernels.timing.peers import PEERS

from moesim import Workload, load_cluster, load_profile
from moesim.errors import ConfigError
from moesim.files import toml
from moesim.measured import check_loop
from moesim.measured.check_loop import check_each, recalibrated, report_checks
from moesim.search.drawn import winners_and_drawn

pytestmark = pytest.mark.full

STUDY = Path(__file__).parents[2] / "studies" / "check_gpu.py"
MACHINE = """
[measurement]
command = "a test"
created = "2026-11-27"
machine = "a test"
software = "none"
seconds = 1.0
slowdown = 0.0
contended = false

[compute]
"""


@pytest.fixture(scope="module")
def study():
    spec = importlib.util.spec_from_file_location("check_gpu", STUDY)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def timer(call, flush):
    """The interpreter's time, which is no GPU's."""
    started = time.perf_counter()
    call()
    return (time.perf_counter() - started) * np.array([1.0, 1.1, 1.2])


class Interpreted:
    """The source with kernels that are interpreted."""

    name = "triton"

    def unavailable_because(self):
        return None

    def check(self, candidate, cluster, workload):
        if candidate.layer.num_experts == 8:
            raise ConfigError("layer: not this one")
        return timed_rows(candidate, cluster, workload, timer, device(), "a test")


class Profiled:
    """A profiler that has measured an H100 already."""

    def unavailable_because(self):
        return None

    def write(self, path, seconds, command):
        text = toml.find("devices", "h100-sxm").read_text(encoding="utf-8")
        text = text.replace('aliases = ["h100_sxm", "h100", "h100-sxm5", "h100-80gb"]\n', "")
        path.write_text(text.replace("\n[compute]\n", MACHINE), encoding="utf-8")


WORK = Workload(num_tokens_per_device=4, routing="zipf:0.8", kv_tokens_per_device=64)


def small(study, experts):
    return study.SPACE.model_copy(
        update={
            "dense_part": "switch-base-128",
            "hidden_size": 768,
            "num_experts": experts,
            "top_k": [1, 2],
            "expert_intermediate_size": [16],
            "gate": ["flat"],
        }
    )


def read(path):
    with path.open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_search_run_and_report(study, tmp_path, capsys):
    cluster = load_cluster("h100-sxm")
    space = small(study, [8, 16])
    found = winners_and_drawn(space, cluster, WORK, trials=4, winners=8, drawn=2, seed=0)
    candidates = [(one.role, one.candidate) for one in found]
    assert {role for role, _ in candidates} <= {"winner", "random"}
    assert len({candidate.label for _, candidate in candidates}) == len(candidates) <= 4
    rows = check_each(Interpreted(), candidates, cluster, WORK, lambda _: None)
    report_checks(rows, tmp_path, "this GPU")
    written = read(tmp_path / "check.csv")
    assert {row["candidate"] for row in written} == {candidate.label for _, candidate in candidates}
    assert {row["status"] for row in written} == {"checked", "not_measured"}
    assert {"layer_time_us", "gate_time_us", "experts_time_us", "experts_warm_time_us", "none"} == {
        row["quantity"] for row in written
    }
    assert (tmp_path / "summary.csv").is_file()
    assert "plotly" in (tmp_path / "simulated_against_measured.html").read_text(encoding="utf-8")
    assert "layer: not this one" in capsys.readouterr().out
    # A shipped profile was not measured here, so that nothing is fitted to it.
    designs = [candidate for _, candidate in candidates]
    assert recalibrated(rows, designs, cluster, WORK) is None


@pytest.fixture
def stubbed(study, monkeypatch):
    """The study with everything but the GPU's clock and its profile."""
    monkeypatch.setattr(study, "SPACE", small(study, [16, 32, 64]))
    monkeypatch.setattr(study, "WORK", WORK)
    monkeypatch.setattr(study, "profilers", lambda: {"gpu": Profiled()})
    monkeypatch.setattr(study, "installed_sources", lambda: {"triton": Interpreted()})
    monkeypatch.setitem(gpu_loop.run_gpu_loop.__kwdefaults__, "timer", timer)
    monkeypatch.setenv("COLUMNS", "80")
    return study


@pytest.mark.full
def test_the_whole_study(stubbed, tmp_path, capsys):
    stubbed.main(trials=12, drawn=4, minutes=5.0, out=tmp_path)
    said = capsys.readouterr()
    assert load_profile(str(tmp_path / "local.toml")).machine == "a test"
    winners, peers = read(tmp_path / "winners.csv"), read(tmp_path / "peers.csv")
    libraries = {row["library"] for row in peers}
    assert {"moesim", "torch._grouped_mm"} <= libraries
    assert sum(row["library"] == "moesim" for row in peers) == len(winners)
    checked = read(tmp_path / "check.csv")
    drawn = read(tmp_path / "candidates.csv")
    assert len({row["candidate"] for row in checked}) == len(winners) + len(drawn) >= 5
    # The interpreter takes far longer than an H100, and the verdict says so in the first sentence.
    verdict = said.out[said.out.index("Do not rely on the simulator on this GPU: 0 of") :]
    words = " ".join(verdict.split())
    assert f"0 of {len(winners)} winners are confirmed, {len(winners)} refuted." in words
    assert "Simulated times of whole layers are off by" in words
    assert "too short" in words
    assert "of pairs of designs" in words
    assert "times as long as that of the fastest other library" in words
    assert "Factors fitted to half of the designs take the mean error" in words
    assert max(len(line) for line in said.out.splitlines()) <= 80
    for library in {peer.name for peer in PEERS} - libraries:
        assert f"not timed beside moesim: {library}" in said.out
    page = (tmp_path / "simulated_against_measured.html").read_text(encoding="utf-8")
    assert "Do not rely on the simulator" in page
    assert "torch._grouped_mm" in page
    assert "winner 1 of" in said.err
    assert "s left" in said.err


def test_no_design_is_begun_after_its_time(stubbed, tmp_path, capsys, monkeypatch):
    """Whatever was measured until then is reported."""
    clock = iter(range(0, 10_000, 10))
    tick = SimpleNamespace(monotonic=lambda: float(next(clock)))
    monkeypatch.setattr(check_loop, "time", tick)
    monkeypatch.setattr(gpu_loop, "time", tick)
    stubbed.main(trials=12, drawn=4, minutes=0.5, out=tmp_path)
    said = capsys.readouterr()
    assert "time is over: " in said.err
    assert "winners are confirmed" in " ".join(said.out.split())
    measured = {row["candidate"] for row in read(tmp_path / "check.csv")}
    assert 1 <= len(measured) <= 2
    assert not (tmp_path / "peers.csv").exists()


@pytest.mark.skipif(
    "__import__('torch').cuda.is_available()", reason="what machines without a GPU are told"
)
def test_without_a_gpu_one_line_and_exit_code_2(tmp_path):
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, str(STUDY), "--out", str(tmp_path)],
        capture_output=True,
        text=True,
        env=environment,
    )
    assert done.returncode == 2
    assert done.stderr == (
        "error: check_gpu: no CUDA or ROCm GPU with an active Triton driver; "
        "studies/check_local.py does the same on a CPU\n"
    )
    assert list(tmp_path.iterdir()) == []
