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

import numpy as np
import pytest
from moesim_kernels.ops.runtime import device
from moesim_kernels.sources.triton import timed_rows

from moesim import Workload, load_cluster
from moesim.errors import ConfigError
from moesim.measured.check_loop import check_each, report_checks
from moesim.search.drawn import winners_and_drawn

STUDY = Path(__file__).parents[2] / "studies" / "check_gpu.py"


@pytest.fixture(scope="module")
def study():
    spec = importlib.util.spec_from_file_location("check_gpu", STUDY)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Interpreted:
    """The source with kernels that are interpreted, so that its times are no GPU's."""

    name = "triton"

    def unavailable_because(self):
        return None

    def check(self, candidate, cluster, workload):
        if candidate.layer.num_experts == 8:
            raise ConfigError("layer: not this one")

        def timer(call, flush):
            started = time.perf_counter()
            call()
            return (time.perf_counter() - started) * np.array([1.0, 1.1, 1.2])

        return timed_rows(candidate, cluster, workload, timer, device(), "a test")


def test_search_run_and_report(study, tmp_path, capsys):
    cluster, work = load_cluster("h100-sxm"), Workload(num_tokens_per_device=4, routing="uniform")
    space = study.SPACE.model_copy(
        update={
            "dense_part": "switch-base-128",
            "hidden_size": 768,
            "num_experts": [8, 16],
            "top_k": [1, 2],
            "expert_intermediate_size": [16],
            "gate": ["flat"],
        }
    )
    found = winners_and_drawn(space, cluster, work, trials=4, winners=8, drawn=2, seed=0)
    candidates = [(one.role, one.candidate) for one in found]
    assert {role for role, _ in candidates} <= {"winner", "random"}
    assert len({candidate.label for _, candidate in candidates}) == len(candidates) <= 4
    rows = check_each(Interpreted(), candidates, cluster, work, lambda _: None)
    report_checks(rows, tmp_path, "this GPU")
    with (tmp_path / "check.csv").open(encoding="utf-8") as file:
        written = list(csv.DictReader(file))
    assert {row["candidate"] for row in written} == {candidate.label for _, candidate in candidates}
    assert {row["status"] for row in written} == {"checked", "not_measured"}
    assert {"layer_time_us", "gate_time_us", "experts_time_us", "experts_warm_time_us", "none"} == {
        row["quantity"] for row in written
    }
    assert (tmp_path / "summary.csv").is_file()
    assert "plotly" in (tmp_path / "simulated_against_measured.html").read_text(encoding="utf-8")
    assert "layer: not this one" in capsys.readouterr().out


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
