"""Times of single calls out of graphs of many, on a GPU made of two clocks whose truth is known."""

from types import SimpleNamespace

import numpy as np
import pytest
from moesim_kernels.timing import graphs
from moesim_kernels.timing.graphs import CudaClock, host_seconds, per_call_seconds

from moesim.errors import MeasurementError

CLOCK_HZ = 2e9


@pytest.fixture
def gpu(fake, monkeypatch):
    made = fake.FakeGpu()
    made.install(monkeypatch, [graphs])
    driver = SimpleNamespace(
        get_empty_cache_for_benchmark=lambda: made, clear_cache=lambda cache: cache.flush()
    )
    monkeypatch.setattr(graphs.triton.runtime.driver, "_active", driver, raising=False)
    return made


def kernel(gpu, work_s):
    return lambda: gpu.launch("a kernel", lambda: work_s)


@pytest.mark.parametrize("work_s", [0.0, 1e-7, 3e-6, 5e-5, 4e-4])
@pytest.mark.parametrize("graph", [True, False])
def test_what_one_more_call_takes(fake, gpu, work_s, graph):
    """Neither the host's 19 us per launch nor the start of a graph is in it."""
    found = per_call_seconds(
        CudaClock(CLOCK_HZ), kernel(gpu, work_s), cold=False, budget_s=0.05, graph=graph
    )
    assert np.median(found) == pytest.approx(fake.GAP_S + work_s, rel=0.02)
    assert len(found) >= 7
    assert gpu.capturing is None


def test_long_calls_are_replayed_by_themselves(gpu):
    calls = []

    def call():
        calls.append(1)
        gpu.launch("a long kernel", lambda: 8e-3)

    found = per_call_seconds(CudaClock(CLOCK_HZ), call, cold=False, budget_s=0.1)
    assert np.median(found) == pytest.approx(8e-3, rel=0.02)
    assert len(calls) == 1 + 5 + 3 + 1, "compiled, estimated, warmed up, captured once"


@pytest.mark.parametrize("cold", [True, False])
def test_l2_is_as_asked(fake, gpu, cold):
    moved, rate = fake.L2_BYTES / 2, fake.HBM if cold else fake.L2
    found = per_call_seconds(
        CudaClock(CLOCK_HZ),
        lambda: gpu.launch("a stream", lambda: gpu.moved(moved, "these")),
        cold=cold,
        budget_s=0.05,
    )
    assert np.median(found) == pytest.approx(fake.GAP_S + moved / rate, rel=0.03)


def test_more_repeats_for_more_time(gpu):
    few, many = (
        len(per_call_seconds(CudaClock(CLOCK_HZ), kernel(gpu, 1e-4), cold=False, budget_s=budget))
        for budget in (1e-6, 0.05)
    )
    assert few == 7
    assert 50 < many <= 300


def test_what_launches_nothing_has_no_time(gpu):
    with pytest.raises(MeasurementError, match=r"timing: 300 calls take .* no longer than 100"):
        per_call_seconds(CudaClock(CLOCK_HZ), lambda: None, cold=False, budget_s=0.01)


def test_a_call_that_waits_cannot_be_captured(gpu):
    def call():
        gpu.launch("a kernel", lambda: 1e-6)
        gpu.wait()

    with pytest.raises(AssertionError, match="not permitted when stream is capturing"):
        per_call_seconds(CudaClock(CLOCK_HZ), call, cold=False, budget_s=0.01)


def test_the_hosts_time_is_the_hosts(fake, gpu):
    found = host_seconds(kernel(gpu, 1e-6), gpu.wait)
    assert found == pytest.approx(np.full(20, fake.HOST_S))
