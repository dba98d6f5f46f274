"""A clock for a GPU, a row of the table of figures, and operands."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from moesim_kernels.ops.runtime import device as kernel_device

from moesim.model import MoELayer, Precision

#: calls in one graph, and microseconds from which a call is replayed by itself
CALLS, ALONE_US = 5, 2000.0


@dataclass(frozen=True)
class Row:
    """A line of the table.

    Attributes:
        what: What was timed.
        target: The bar, and in parentheses the goal.
        here: The figure of this GPU.
    """

    what: str
    target: str
    here: str


class Clock:
    """Times calls on a GPU, and knows when the run must end."""

    def __init__(self, seconds: float) -> None:
        self.end = time.monotonic() + seconds
        self.cache = torch.empty(128 << 20, dtype=torch.int8, device=kernel_device())

    def left(self) -> float:
        """Seconds that are left, 0 at the end."""
        return max(self.end - time.monotonic(), 0.0)

    def device_us(self, call: Callable[[], object], repeats: int = 7) -> float:
        """Median microseconds of a call in a CUDA graph with a cold L2.

        A graph has the call several times, each after work that overwrites L2; the time of a graph
        of that work alone is subtracted, and with it what a replay costs.
        """
        for _ in range(2):
            call()
        torch.cuda.synchronize()
        alone = self._replayed(lambda: (self.flush(), call()), 3) - self._replayed(self.flush, 3)
        if alone >= ALONE_US:
            return alone
        both = self._replayed(lambda: [(self.flush(), call()) for _ in range(CALLS)], repeats)
        flushes = self._replayed(lambda: [self.flush() for _ in range(CALLS)], repeats)
        return (both - flushes) / CALLS

    def flush(self) -> None:
        """Overwrite L2."""
        self.cache.zero_()

    def _replayed(self, call: Callable[[], object], repeats: int) -> float:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            call()
        times = []
        for _ in range(repeats + 1):
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            graph.replay()
            end.record()
            torch.cuda.synchronize()
            times.append(start.elapsed_time(end) * 1e3)
        return statistics.median(times[1:])

    def eager_us(self, call: Callable[[], object], repeats: int = 5) -> float:
        """Median microseconds of a call that runs kernel by kernel, with a cold L2: what has no
        graph, as training.
        """
        call()
        times = []
        for _ in range(repeats):
            self.flush()
            torch.cuda.synchronize()
            start = time.perf_counter()
            call()
            torch.cuda.synchronize()
            times.append((time.perf_counter() - start) * 1e6)
        return statistics.median(times)

    def host_us(self, call: Callable[[], object], repeats: int = 40) -> float:
        """Microseconds until a call returns, whatever the GPU does: the least of five means."""
        call()
        means = []
        for _ in range(5):
            torch.cuda.synchronize()
            start = time.perf_counter()
            for _ in range(repeats):
                call()
            means.append((time.perf_counter() - start) / repeats * 1e6)
        torch.cuda.synchronize()
        return min(means)

    def wait(self) -> None:
        """Wait until the GPU has done everything."""
        torch.cuda.synchronize()


def layer_of(
    hidden: int, width: int, num_experts: int, top_k: int, precision: str = "bf16"
) -> MoELayer:
    """A layer of these sizes."""
    return MoELayer(
        hidden_size=hidden,
        expert_intermediate_size=width,
        num_experts=num_experts,
        top_k=top_k,
        precision=Precision.named(precision),
    )


def tokens_of(num_tokens: int, hidden: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    """Random tokens on the GPU."""
    return torch.randn(num_tokens, hidden, dtype=dtype, device=kernel_device())


def equal_weights(ids_TK: torch.Tensor) -> torch.Tensor:
    """Router weights that are all the same."""
    return torch.full(ids_TK.shape, 1 / ids_TK.shape[1], device=ids_TK.device)
