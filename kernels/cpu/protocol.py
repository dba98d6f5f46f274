"""Make times on a CPU repeatable: the thread's own clock, flushed caches, kept memory, and a
sentinel.

What the times of `moesim_kernels.cpu.layer` mean, and what makes them repeatable:

- They are times of the thread, not of the wall clock: time during which the core is taken away does
  not count.
- The layer stands for one of many. Before each repeat, a stream of 128 MiB flushes the caches, so
  that weights, buffers, and the framework's own code come from memory. Then 3 ms of GEMMs bring the
  clock down to the rate at which wide instructions keep it (some 15 % below the clock of a core
  that waited for memory), and the input is written.
- The histogram of experts stays the same while the order of tokens changes, and there is a warm-up:
  libraries compile a bfloat16 kernel for each new row count (about half a millisecond), and branch
  predictors memorize a single input.
- Freed memory is kept (glibc's mallopt): returning it and faulting it in again can cost more than
  the layer.
- A sentinel, a stream of 64 MiB and a GEMM, runs before and after. The spread inside a run does not
  reveal a neighbor that streams memory or competes for this core; the sentinel does. If it finds a
  run more than 8 % slower, the run is repeated once; if it is still slower, it is marked as
  contended.
"""

import ctypes
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch

#: slowdown of the sentinel above which a run counts as contended
CONTENDED = 0.08
#: bytes read before each repeat: more than the share of a last-level cache that one core gets
FLUSH_BYTES = 128 << 20
# Seconds of GEMMs before each timing, long enough for the core's clock to settle.
_SETTLE_S = 3e-3
# Numbers of glibc's mallopt parameters, from malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_MMAP_MAX = -1, -3, -4


def thread_clock() -> Callable[[], float]:
    """Return the clock of the core time this thread got, if known to a microsecond, else the wall
    clock.
    """
    return (
        time.thread_time
        if time.get_clock_info("thread_time").resolution <= 1e-6
        else time.perf_counter
    )


@contextmanager
def measuring() -> Iterator[None]:
    """Use one torch thread, no gradients, and keep freed memory; afterwards restore the old thread
    count and glibc's usual limits.
    """
    threads = torch.get_num_threads()
    libc = ctypes.CDLL(None)
    mallopt, malloc_trim = getattr(libc, "mallopt", None), getattr(libc, "malloc_trim", None)
    torch.set_num_threads(1)
    # No mmap and no trimming: freed memory stays with the process.
    if mallopt:
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
    try:
        with torch.no_grad():
            yield
    finally:
        torch.set_num_threads(threads)
        if mallopt:
            # glibc stops adapting its limits once one is set; these are the values it would have
            # grown to
            mallopt(_M_MMAP_MAX, 65536)
            mallopt(_M_MMAP_THRESHOLD, 32 << 20)
            mallopt(_M_TRIM_THRESHOLD, 64 << 20)
        if malloc_trim:
            malloc_trim(0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """Statistics of repeated times, in seconds."""

    min_s: float
    p10_s: float
    median_s: float
    p90_s: float

    @classmethod
    def of(cls, seconds: np.ndarray) -> "Spread":
        """Statistics of an ndarray of shape (repeats,)."""
        p10, median, p90 = np.percentile(seconds, (10, 50, 90))
        return cls(
            min_s=float(np.min(seconds)), p10_s=float(p10), median_s=float(median), p90_s=float(p90)
        )


class Sentinel:
    """A fixed amount of work that shows when the machine became slower; its buffer also flushes the
    caches.
    """

    def __init__(self) -> None:
        self.buffer = torch.ones(FLUSH_BYTES // 4)
        self.source, self.target = self.buffer.chunk(2)
        self._left, self._right = torch.ones(384, 384), torch.ones(384, 384)
        # The first run pays for page faults and compilation, so the second is the reference.
        self._seconds()
        self._reference = self._seconds()

    def settle(self, dtype: torch.dtype, flush: bool = True) -> None:
        """Bring the core into the state between two layers: caches full of other data, clock
        settled by GEMMs of this format.
        """
        if flush:
            self.buffer.sum()
        small = self._left[:128, :128].to(dtype)
        until = time.perf_counter() + _SETTLE_S
        # Tiny GEMMs use wide instructions without refilling the caches.
        while time.perf_counter() < until:
            torch.mm(small, small)

    def stream(self) -> None:
        """Read 64 MiB and write 64 MiB."""
        torch.mul(self.source, 2.0, out=self.target)

    def slowdown(self) -> float:
        """Return how much slower the machine is than when this sentinel was made, 0.1 for 10 %: the
        worst of stream, GEMM, and stolen time.

        Stolen time is the wall time beyond what the thread got: others ran on this core and used
        its caches.
        """
        started = time.perf_counter(), thread_clock()()
        seconds = self._seconds()
        # The thread's clock stands still while others run on this core, the wall clock does not.
        stolen = (time.perf_counter() - started[0]) / max(thread_clock()() - started[1], 1e-9)
        return float(max((seconds / self._reference).max(), stolen) - 1.0)

    def _seconds(self) -> np.ndarray:
        """Return the median of five streams and of five GEMMs: ndarray of shape (2,)."""
        clock = thread_clock()
        seconds = np.empty((5, 2))
        for row in seconds:
            start = clock()
            self.stream()
            between = clock()
            torch.mm(self._left, self._right)
            row[:] = between - start, clock() - between
        return np.median(seconds, axis=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerTiming:
    """Measured times of one layer.

    Attributes:
        seconds: Times by phase: `PHASES` and ``total`` -> ndarray of shape (repeats,).
        slowdown: Worst slowdown of the sentinel, before or after.
        contended: Whether the slowdown exceeds `CONTENDED`, also in the second attempt.
    """

    seconds: dict[str, np.ndarray]
    slowdown: float
    contended: bool

    @property
    def phases(self) -> dict[str, Spread]:
        """The statistics of each phase and of ``total``."""
        return {name: Spread.of(seconds_R) for name, seconds_R in self.seconds.items()}

    @property
    def repeats(self) -> int:
        """The number of repeats."""
        return len(self.seconds["total"])
