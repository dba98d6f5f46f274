"""The GPU source with everything but its clock: what it times really runs, and rows say what that
was.
"""

import time
from dataclasses import replace

import numpy as np
import pytest
from moesim_kernels.ops.runtime import device, triton_mode
from moesim_kernels.sources.triton import Triton, is_of, timed_rows

from moesim.design.candidate import Candidate, Parallelism, Workload
from moesim.errors import ConfigError
from moesim.hardware import load_cluster, single_device
from moesim.model import Gate, MoELayer, Precision

ALONE, HGX = load_cluster("h100-sxm"), load_cluster("hgx-h100-8")
WORK = Workload(num_tokens_per_device=12, routing="zipf:0.8", seed=4)


def layer(gate="flat", **sizes):
    return MoELayer(
        **{
            "hidden_size": 32,
            "expert_intermediate_size": 32,
            "num_experts": 8,
            "top_k": 2,
            "gate": Gate.parse(gate),
        }
        | sizes
    )


class Clock:
    """Runs each call once, and remembers whether L2 was to be overwritten."""

    def __init__(self):
        self.flushed = []

    def __call__(self, call, flush):
        self.flushed.append(flush)
        started = time.perf_counter()
        call()
        return (time.perf_counter() - started) * np.array([1.0, 2.0, 3.0])


@pytest.mark.parametrize("gate", ["flat", "two_level:4:2", "product_key:2:8"])
def test_one_device_is_timed_as_a_whole_and_by_phase(gate):
    clock, asked = Clock(), Candidate(layer=layer(gate, num_experts=16 if "product" in gate else 8))
    rows = timed_rows(asked, ALONE, WORK, clock, device(), "H100")
    assert [row.quantity for row in rows] == [
        "layer_time_us",
        "experts_time_us",
        "experts_warm_time_us",
        "gate_time_us",
    ]
    assert clock.flushed == [True, True, False, True]
    for row, flushed in zip(rows, clock.flushed, strict=True):
        assert (row.candidate, row.source, row.status, row.seed) == (
            asked.label,
            "triton",
            "checked",
            4,
        )
        assert 0 < row.measured_low < row.measured < row.measured_high
        assert row.simulated_low < row.simulated < row.simulated_high
        assert ("L2 overwritten" if flushed else "L2 left as it is") in row.detail
    assert rows[2].simulated < rows[1].simulated < rows[0].simulated


@pytest.mark.parametrize("precision", ["fp16", "fp8"])
def test_other_formats_run_too(precision):
    asked = Candidate(
        layer=layer(
            precision=Precision.named(precision), hidden_size=128, expert_intermediate_size=128
        )
    )
    rows = timed_rows(asked, ALONE, WORK, Clock(), device(), "H100")
    assert [row.status for row in rows] == ["checked"] * 4


def test_of_several_devices_the_busiest_is_timed():
    rows = timed_rows(
        Candidate(layer=layer(), parallelism=Parallelism(ep=8)),
        HGX,
        WORK,
        Clock(),
        device(),
        "H100",
    )
    assert [row.quantity for row in rows] == [
        "experts_time_us",
        "experts_warm_time_us",
        "gate_time_us",
    ]
    assert "rows over 1 experts" in rows[0].detail


def test_layers_the_kernels_do_not_compute_are_refused_before_anything_runs():
    clock = Clock()
    for options in (
        {"gated": False},
        {"capacity_factor": 1.0},
        {"expert_intermediate_size": (32,) * 8},
    ):
        with pytest.raises(ConfigError):
            timed_rows(Candidate(layer=layer(**options)), ALONE, WORK, clock, device(), "H100")
    assert clock.flushed == []


def test_never_another_gpu():
    assert is_of("NVIDIA H100 80GB HBM3", ALONE)
    assert not is_of("NVIDIA A100-SXM4-80GB", ALONE)
    assert not is_of("NVIDIA GH200 480GB", ALONE)
    measured = single_device(replace(ALONE.profile, name="local", machine="NVIDIA L4"))
    assert is_of("NVIDIA L4", measured)
    assert not is_of("NVIDIA L40", measured)


@pytest.mark.skipif(
    "__import__('torch').cuda.is_available()", reason="what machines without a GPU are told"
)
def test_without_a_gpu_it_says_so():
    assert triton_mode() == "interpreter"
    assert Triton().unavailable_because() == "no CUDA or ROCm GPU with an active Triton driver"
