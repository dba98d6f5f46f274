"""Time calls on a GPU by what more of them add to a CUDA graph.

The host needs longer to launch a small kernel than the GPU to run it, so that timing launches one
by one times the host. Here a call is captured many times in one graph and in a graph three times as
long, both are replayed, and what the longer one takes more is that of the additional calls:

    seconds per call = (time of 3 n calls - time of n calls) / (2 n)

What a replay costs by itself drops out; what remains of a launch is the time between two kernels of
a graph. With a cold L2 every call of the graph follows a flush, and the time of a graph of flushes
alone is subtracted. A call that takes a millisecond or more is replayed by itself, since the start
of a replay is then less than a per cent.

Differences err to both sides, so that their best repeat is too good: take medians.

The arithmetic is apart from the GPU (`GpuClock`), so that it runs without one.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from moesim_kernels.ops.runtime import triton

from moesim.errors import MeasurementError

Array = np.ndarray
Call = Callable[[], object]
# Shortest time of the shorter graph, of a call that is replayed by itself, and most calls in a
# shorter graph.
_SHORT_S, _ALONE_S, _MOST = 100e-6, 1e-3, 100
# Repeats at least and at most, and calls of the first estimate.
_FEWEST, _REPEATS, _ESTIMATE = 7, 300, 5
# Seconds for which the GPU is kept busy before a replay, while the host catches up, and more for
# each call that the host launches by itself.
_LEAD_S, _LAUNCH_S = 50e-6, 30e-6


class GpuClock(Protocol):
    """What timing needs of a GPU."""

    def capture(self, calls: Sequence[Call]) -> Call:
        """Return a function that makes these calls without launching each of them."""

    def queued(self, calls: Sequence[Call]) -> Call:
        """Return a function that launches these calls one by one, all before the first runs."""

    def seconds(self, replays: Sequence[Call]) -> list[float]:
        """Return the time on the GPU of each of these functions, called in this order."""

    def flush(self) -> None:
        """Launch work that overwrites L2; it can be captured."""


def per_call_seconds(
    clock: GpuClock, call: Call, *, cold: bool, budget_s: float, graph: bool = True
) -> Array:
    """Return seconds per call, as many as ``budget_s`` allows but at least seven.

    Args:
        clock: The GPU.
        call: Function that launches work without waiting for it, and that may be captured.
        cold: Whether L2 is overwritten before each call.
        budget_s: About how many seconds of the GPU to take.
        graph: Whether calls are captured; what cannot be is queued behind other work, which hides
            the host's time as well.

    Returns:
        ndarray of shape (repeats,).

    Raises:
        MeasurementError: More calls take no longer than fewer, so that their time is below what the
            clock can tell.
    """
    repeater = clock.capture if graph else clock.queued
    # Queued once to compile what it launches, and once more to count.
    clock.seconds([clock.queued([call])])
    estimate = min(clock.seconds([clock.queued([call] * _ESTIMATE)])) / _ESTIMATE
    if estimate >= _ALONE_S and not cold:
        return _repeated(clock, [repeater([call])], estimate, budget_s)[0]
    count = int(np.clip(np.ceil(_SHORT_S / max(estimate, 1e-9)), 1, _MOST))
    if cold:
        # A flush takes as long as some hundred small kernels: a few of them are enough.
        count = min(count, _ESTIMATE)
        fewer, more = [clock.flush] * count, [clock.flush, call] * count
        added = count
    else:
        fewer, more = [call] * count, [call] * (3 * count)
        added = 2 * count
    short, long = _repeated(
        clock, [repeater(fewer), repeater(more)], estimate * len(more), budget_s
    )
    found = (long - np.median(short)) / added
    if np.median(found) <= 0.0:
        raise MeasurementError(
            f"timing: {len(more)} calls take {np.median(long):.3g} s, no longer than {len(fewer)} "
            "of them: something else is using this GPU, or the call launches nothing"
        )
    return np.maximum(found, 1e-9)


def _repeated(
    clock: GpuClock, replays: Sequence[Call], round_s: float, budget_s: float
) -> list[Array]:
    """Return the seconds of each replay, all called in turn so that a slow period affects all."""
    rounds = int(np.clip(budget_s / max(round_s, 1e-9), _FEWEST, _REPEATS))
    # The first quarter only brings the GPU to its clock.
    clock.seconds(list(replays) * max(rounds // 4, 1))
    times = np.array(clock.seconds(list(replays) * rounds)).reshape(rounds, len(replays))
    return list(times.T)


def host_seconds(call: Call, wait: Call, calls: int = 50, repeats: int = 20) -> Array:
    """Return the host's seconds per call of a function that launches work.

    Args:
        call: Function that launches work without waiting for it.
        wait: Function that waits for the GPU.
        calls: Calls of a repeat, few enough to fit into the GPU's queue.
        repeats: Number of repeats.

    Returns:
        ndarray of shape (repeats,).
    """
    call()
    found = []
    for _ in range(repeats):
        # An empty queue, so that no launch waits for room.
        wait()
        started = time.perf_counter()
        for _ in range(calls):
            call()
        found.append((time.perf_counter() - started) / calls)
    wait()
    return np.array(found)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Queued:
    calls: tuple[Call, ...]

    def __call__(self) -> None:
        for call in self.calls:
            call()


class CudaClock:
    """The current CUDA or ROCm GPU: graphs, device events, and a kernel that keeps it busy.

    Args:
        clock_hz: The GPU's highest clock rate, by which that kernel is told how long to spin.
    """

    def __init__(self, clock_hz: float) -> None:
        self._driver = triton.runtime.driver.active
        self._cache = self._driver.get_empty_cache_for_benchmark()
        self._clock_hz = clock_hz

    def capture(self, calls: Sequence[Call]) -> Call:
        """Capture the calls in a CUDA graph and return its replay.

        The calls may allocate: a graph has a pool of its own. They may not wait for the GPU.
        """
        return captured(calls).replay

    def queued(self, calls: Sequence[Call]) -> Call:
        """Return a function that makes the calls one after another."""

        return _Queued(calls=tuple(calls))

    def seconds(self, replays: Sequence[Call]) -> list[float]:
        """Return the time between device events around each function.

        Before each, the GPU spins until the host has launched what is to be timed: otherwise a
        short replay would contain the wait for its own launch.
        """
        # All events exist before the first call, so that making them is not timed.
        pairs = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in replays]
        for (start, end), replay in zip(pairs, replays, strict=True):
            ahead_s = _LEAD_S
            if isinstance(replay, _Queued):
                ahead_s += _LAUNCH_S * len(replay.calls)
            torch.cuda._sleep(int(ahead_s * self._clock_hz))
            start.record()
            replay()
            end.record()
        torch.cuda.synchronize()
        return [start.elapsed_time(end) / 1e3 for start, end in pairs]

    def flush(self) -> None:
        """Overwrite more memory than any L2 holds."""
        self._driver.clear_cache(self._cache)


def captured(calls: Sequence[Call]) -> Any:
    """Return a CUDA graph of these calls, each made three times before.

    Args:
        calls: Functions that launch work without waiting for it.

    Returns:
        torch.cuda.CUDAGraph, to be replayed.
    """
    # Compiled, and its memory known, before it is captured: nothing may wait meanwhile.
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for call in dict.fromkeys(calls):
            for _ in range(3):
                call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    return graph
