"""A GPU made of two clocks, the host's and its own, with the rules that capture has on a real one.

The host launches, and runs ahead; the GPU works through what it was given, one after another. A
kernel takes a gap and its work; a graph takes one launch for all its kernels. What would break a
real capture breaks this one: waiting, or a kernel that was never compiled.
"""

from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import torch

CLOCK_HZ = 2e9
#: seconds: between two kernels, the host's per launch, per graph, per event, and a graph's start
GAP_S, HOST_S, GRAPH_HOST_S, EVENT_S, START_S = 0.95e-6, 19e-6, 8e-6, 1e-6, 4e-6
L2_BYTES = 1 << 20
# A small GPU, so that little memory is needed to fill its L2 and to exceed it.
HBM, L2, LINK = 3e10, 9e10, 4e9
PEAK = {"bfloat16": 8e14, "float16": 8e14, "float32": 4e14, "float8_e4m3fn": 16e14, "int8": 16e14}


class FakeGpu:
    def __init__(self, noise=0.01):
        self.host_s = self.gpu_s = 0.0
        self.capturing = None
        self.compiled, self.in_l2 = set(), None
        self.rng, self.noise = np.random.default_rng(0), noise

    def launch(self, kernel, work):
        """Launch a kernel, known by its name; ``work`` returns its seconds when it runs."""
        if self.capturing is not None:
            assert kernel in self.compiled, f"{kernel} compiles while it is captured"
            self.capturing.append(work)
            return
        self.compiled.add(kernel)
        self.host_s += HOST_S
        self.gpu_s = max(self.gpu_s, self.host_s)
        self.run(work)

    def run(self, work):
        self.gpu_s += GAP_S + work() * (1.0 + self.noise * self.rng.random())

    def moved(self, num_bytes, data, share=1.0):
        """Seconds of moving data, which stay in L2 if they fit there."""
        warm = data == self.in_l2 and num_bytes <= L2_BYTES
        self.in_l2 = data
        return num_bytes / (L2 if warm else HBM * share)

    def flush(self):
        def overwrite():
            self.in_l2 = None
            return 50e-6

        self.launch("flush", overwrite)

    # What torch.cuda offers, as far as timing uses it.

    def wait(self):
        assert self.capturing is None, "operation not permitted when stream is capturing"
        self.host_s = max(self.host_s, self.gpu_s)

    def sleep(self, cycles):
        self.host_s += EVENT_S
        self.gpu_s = max(self.gpu_s, self.host_s) + cycles / CLOCK_HZ

    def event(self, enable_timing):
        assert enable_timing
        return Event(self)

    @contextmanager
    def graph(self, captured):
        self.wait()
        self.capturing = captured.works
        yield
        self.capturing = None

    def install(self, monkeypatch, modules):
        """Put it in the place of torch.cuda, and its host's clock in that of these modules."""
        stream = SimpleNamespace(wait_stream=lambda _: None)

        @contextmanager
        def entered(_):
            yield

        for name, value in {
            "Stream": lambda: stream,
            "current_stream": lambda: stream,
            "stream": entered,
            "CUDAGraph": lambda: Graph(self),
            "graph": self.graph,
            "Event": self.event,
            "_sleep": self.sleep,
            "synchronize": self.wait,
        }.items():
            monkeypatch.setattr(torch.cuda, name, value)
        for module in modules:
            monkeypatch.setattr(
                module, "time", SimpleNamespace(perf_counter=lambda: self.host_s), raising=False
            )


class Event:
    def __init__(self, gpu):
        self.gpu, self.at_s = gpu, 0.0

    def record(self):
        self.gpu.host_s += EVENT_S
        self.gpu.gpu_s = self.at_s = max(self.gpu.gpu_s, self.gpu.host_s)

    def elapsed_time(self, end):
        return 1e3 * (end.at_s - self.at_s)


class Graph:
    def __init__(self, gpu):
        self.gpu, self.works = gpu, []

    def replay(self):
        self.gpu.host_s += GRAPH_HOST_S
        self.gpu.gpu_s = max(self.gpu.gpu_s, self.gpu.host_s) + START_S
        for work in self.works:
            self.gpu.run(work)
