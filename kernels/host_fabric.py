"""All-to-alls between the ranks of this host: processes over gloo on a CPU, GPUs over NCCL or RCCL.

Each rank is a process of its own, ``python -m moesim_kernels.host_fabric``, given its task as JSON on stdin; ranks meet
through a file and, for gloo, over the loopback interface: no network is needed. A timing is four calls back to back
after a barrier, of the rank that took longest. Single small calls are bimodal on a CPU, and their fastest one does not
come again; the lower quartile of at least 16 timings repeats best and is what counts. Its minimum, median, P10 and P90
stand beside it. If the ranks do not finish in time they are ended, and the caller gets one line.
"""

import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from moesim_kernels.cpu_fit import fit_start_and_rate, start_and_rate_ratios
from moesim_kernels.profile_text import held_out, quantity, spread
from moesim_kernels.ranks import rank_group, run_ranks

from moesim.errors import MeasurementError
from moesim.units import GB, US

Array = np.ndarray
_CALLS, _TIMINGS, _WARM_UP = 4, 16, 2
_GLOO_BYTES = tuple(1 << exponent for exponent in range(10, 24))
_NCCL_BYTES = tuple(1 << exponent for exponent in range(10, 28, 2))
_COUNTS = 0.25  # quantile of the timings that counts


@dataclass(frozen=True, slots=True, kw_only=True)
class AllToAll:
    """Repeated timings of one all-to-all.

    Attributes:
        ranks: How many take part.
        bytes_per_pair: From each rank to each other.
        seconds: ndarray of shape (timings,), per call.
    """

    ranks: int
    bytes_per_pair: int
    seconds: Array


def _lower_quartile(values: Array) -> float:
    return float(np.quantile(values, _COUNTS))


def measure_gloo(ranks: int = 2, *, sizes: Sequence[int] = _GLOO_BYTES, timeout_s: float = 30.0) -> list[AllToAll]:
    """Time all-to-alls between processes on this CPU, one thread each.

    Args:
        ranks: Processes.
        sizes: Bytes from each rank to each other.
        timeout_s: After which they are ended.

    Raises:
        MeasurementError: A rank failed (its last line), or they did not finish in time.
    """
    return _run("gloo", ranks, sizes, timeout_s)


def measure_nccl(ranks: int, *, sizes: Sequence[int] = _NCCL_BYTES, timeout_s: float = 60.0) -> list[AllToAll]:
    """Time all-to-alls between the first ``ranks`` GPUs (NCCL, or RCCL on AMD); else as `measure_gloo`."""
    return _run("nccl", ranks, sizes, timeout_s)


def fabric_or_why(backend: str, measure: Callable[[], list[AllToAll]]) -> list[str]:
    """`fabric_lines` of what ``measure`` returns; none, and a line on stderr, where the all-to-all does not work."""
    try:
        return fabric_lines(backend, measure())
    except MeasurementError as error:
        print(f"all-to-all not measured: {error}", file=sys.stderr)
        return []


def _run(backend: str, ranks: int, sizes: Sequence[int], timeout_s: float) -> list[AllToAll]:
    answers = run_ranks([sys.executable, "-m", "moesim_kernels.host_fabric"], ranks, {"sizes": list(sizes)},
                        backend=backend, timeout_s=timeout_s)
    seconds = np.array(answers).max(axis=0)
    return [AllToAll(ranks=ranks, bytes_per_pair=size, seconds=row) for size, row in zip(sizes, seconds, strict=True)]


def time_rank(task: dict) -> list[list[float]]:
    """What one rank does: seconds per call of each timing of each size.

    Args:
        task: As `moesim_kernels.ranks.run_ranks` gives it, with sizes (bytes per pair).
    """
    import torch
    import torch.distributed as dist

    with rank_group(task) as device:
        return [_time_size(size, task["ranks"], device, dist, torch) for size in task["sizes"]]


def _time_size(num_bytes: int, ranks: int, device, dist, torch) -> list[float]:
    sent = torch.ones(ranks * num_bytes, dtype=torch.uint8, device=device)
    received = torch.empty_like(sent)
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    seconds = []
    for timing in range(-_WARM_UP, _TIMINGS):
        dist.barrier()
        wait()
        started = time.perf_counter()
        for _ in range(_CALLS):
            dist.all_to_all_single(received, sent)
        wait()
        if timing >= 0:
            seconds.append((time.perf_counter() - started) / _CALLS)
    return seconds


def fabric_lines(backend: str, measured: Sequence[AllToAll]) -> list[str]:
    """Lines of ``[host_fabric]``: start and port rate, every point, and residuals of points left out of the fit.

    Fitted to time = start + (ranks - 1) x bytes / rate: what a rank sends to others passes its port once.

    Args:
        backend: As the file names it.
        measured: At least three, of different sizes.
    """
    amounts = np.array([(point.ranks - 1.0) * point.bytes_per_pair for point in measured])
    seconds = np.array([_lower_quartile(point.seconds) for point in measured])
    start, rate = fit_start_and_rate(amounts, seconds)
    ratios = start_and_rate_ratios(amounts, seconds)
    low, high = np.percentile(ratios, (10, 90))
    lines = ["[host_fabric]", f'backend = "{backend}"',
             f"start_us = {quantity(start / US, source='fit', low=start * low / US, high=start * high / US)}",
             f"gb_per_s = {quantity(rate / GB, source='fit', low=rate / high / GB, high=rate / low / GB)}"]
    lines += held_out("host_fabric.residuals", ratios)
    for point in measured:
        lines += ["[[host_fabric.points]]", f"ranks = {point.ranks}", f"bytes_per_pair = {float(point.bytes_per_pair)}",
                  f"time_us = {spread(point.seconds / US, _lower_quartile)}"]
    return lines


if __name__ == "__main__":
    json.dump(time_rank(json.load(sys.stdin)), sys.stdout)
