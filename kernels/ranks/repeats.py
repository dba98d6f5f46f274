"""Repeat work that all ranks of a group do together, as often on each."""

import time
from collections.abc import Callable

import numpy as np
import torch
import torch.distributed as dist

# Repeats that are not counted, and bounds on those that are.
_WARM_UP, _MIN_REPEATS, _MAX_REPEATS = 2, 7, 60


def both_clocks() -> tuple[float, float]:
    """Return the wall clock and the clock of this thread."""
    return time.perf_counter(), time.thread_time()


def repeated(repeat: Callable[[int], np.ndarray], seconds: float) -> np.ndarray:
    """Return what the repeats return, stacked; the warm-up is left out.

    Args:
        repeat: Function that does the work, given the number of the repeat.
        seconds: About how many seconds to spend, within bounds.
    """
    once = 1.0
    for number in range(_WARM_UP):
        started = time.perf_counter()
        repeat(number)
        once = time.perf_counter() - started
    # As many repeats as fit into the time, within bounds.
    count = torch.tensor([min(max(int(seconds / once), _MIN_REPEATS), _MAX_REPEATS)])
    # All ranks make the same number of repeats, or the exchanges would hang.
    dist.broadcast(count, 0)
    return np.array([repeat(number) for number in range(int(count))])
