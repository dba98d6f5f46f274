"""Measure all-to-alls between the ranks of this host: processes over gloo on a CPU, GPUs over NCCL
or RCCL.

A timing is four calls after a barrier, on the rank that took longest: on GPUs back to back, on a
CPU each after a third of a millisecond of work on all ranks, as in a layer. There an exchange finds
the other process at work, and its start takes twice as long as that of calls back to back (1 KiB:
0.11 against 0.06 ms; no longer after 3 ms of work). All exchanges are timed in turn, for several
rounds, so that a slow period of the machine affects all of them. Between processes times have two
modes; the upper one contains a wait for the other process to be woken. Medians of the same exchange
a few seconds apart differ by 10 to 30 %, the P10 of 24 timings by 6 to 8 %. Therefore the P10
counts; minimum, median, and P90 are recorded with it.
`moesim_kernels.ranks` starts the ranks: no network is needed.
"""

import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from moesim_kernels.profile.fit import fit_start_and_rate, start_and_rate_ratios
from moesim_kernels.profile.text import held_out, quantity, spread
from moesim_kernels.ranks.group import rank_group, run_ranks

from moesim.errors import MeasurementError
from moesim.hardware import HostFabric
from moesim.units import GB, US

Array = np.ndarray
# Calls of a timing, timings of an exchange in a round, rounds, and calls that are not counted.
_CALLS, _TIMINGS, _ROUNDS, _WARM_UP = 4, 6, 4, 2
# Seconds of work before each call on a CPU.
_WORK_S = 3e-4
_GLOO_BYTES = tuple(1 << exponent for exponent in range(10, 24))
_NCCL_BYTES = tuple(1 << exponent for exponent in range(10, 28, 2))
_COUNTS = 0.1  # the quantile of the timings that counts


@dataclass(frozen=True, slots=True, kw_only=True)
class AllToAll:
    """Repeated timings of one all-to-all.

    Attributes:
        ranks: Number of ranks that take part.
        bytes_per_pair: Bytes from each rank to each other rank.
        seconds: Seconds per call of each timing, ndarray of shape (timings,).
    """

    ranks: int
    bytes_per_pair: int
    seconds: Array


def counted(seconds: Array) -> float:
    """Return the value that counts among repeated timings: their P10."""
    return float(np.quantile(seconds, _COUNTS))


def port_bytes(bytes_WW: Array) -> float:
    """Return the most bytes that any rank sends to others or gets from them, by which an exchange
    is priced.

    Args:
        bytes_WW: Array of shape (W, W): bytes from each rank to each rank; bytes to itself are not
            counted.
    """
    between_WW = np.asarray(bytes_WW, dtype=np.float64) * (1.0 - np.eye(len(bytes_WW)))
    # Rows are what a rank sends, columns what it gets; the busier direction counts.
    return float(max(between_WW.sum(axis=1).max(), between_WW.sum(axis=0).max()))


def measure_gloo_with(
    matrices: Sequence[Array], *, timeout_s: float = 30.0
) -> tuple[list[AllToAll], list[Array]]:
    """Do the work of `measure_gloo` and of `time_exchanges` in the same processes, which take
    longer to start than to measure.

    Args:
        matrices: Bytes from each rank to each rank, integers of shape (W, W).
        timeout_s: Seconds after which the processes are ended.

    Raises:
        MeasurementError: A rank failed, or the ranks did not finish in time.
    """
    return _run("gloo", len(matrices[0]), _GLOO_BYTES, timeout_s, matrices)


def measure_gloo(
    ranks: int = 2, *, sizes: Sequence[int] = _GLOO_BYTES, timeout_s: float = 30.0
) -> list[AllToAll]:
    """Time all-to-alls between processes on this CPU, one thread each.

    Args:
        ranks: Number of processes.
        sizes: Numbers of bytes from each rank to each other rank.
        timeout_s: Seconds after which the processes are ended.

    Raises:
        MeasurementError: A rank failed (the message is its last line), or the ranks did not finish
            in time.
    """
    return _run("gloo", ranks, sizes, timeout_s)[0]


def measure_nccl(
    ranks: int, *, sizes: Sequence[int] = _NCCL_BYTES, timeout_s: float = 60.0
) -> list[AllToAll]:
    """Time all-to-alls between the first ``ranks`` GPUs (NCCL, or RCCL on AMD); otherwise like
    `measure_gloo`.
    """
    return _run("nccl", ranks, sizes, timeout_s)[0]


def fabric_or_why(backend: str, measure: Callable[[], list[AllToAll]]) -> list[str]:
    """Return `fabric_lines` of what ``measure`` returns; if the all-to-all does not work, no lines,
    and print one on stderr.
    """
    try:
        return fabric_lines(backend, measure())
    except MeasurementError as error:
        print(f"all-to-all not measured: {error}", file=sys.stderr)
        return []


def _run(
    backend: str,
    ranks: int,
    sizes: Sequence[int],
    timeout_s: float,
    others: Sequence[Array] = (),
) -> tuple[list[AllToAll], list[Array]]:
    """Return the timings of even exchanges of each size, and those of other exchanges."""
    even = [np.full((ranks, ranks), size) for size in sizes]
    seconds = time_exchanges(backend, [*even, *others], timeout_s=timeout_s)
    measured = [
        AllToAll(ranks=ranks, bytes_per_pair=size, seconds=row)
        for size, row in zip(sizes, seconds, strict=False)
    ]
    return measured, seconds[len(even) :]


def time_exchanges(
    backend: str, matrices: Sequence[Array], *, timeout_s: float = 30.0
) -> list[Array]:
    """Time uneven all-to-alls.

    Args:
        backend: Communication backend, ``gloo`` or ``nccl``.
        matrices: Bytes from each rank to each rank, integers of shape (W, W), with the same W for
            all.
        timeout_s: Seconds after which the ranks are ended.

    Returns:
        Seconds per call of each timing of each exchange, ndarrays of shape (timings,).

    Raises:
        MeasurementError: A rank failed (the message is its last line), or the ranks did not finish
            in time.
    """
    task = {"matrices": [np.asarray(matrix).tolist() for matrix in matrices]}
    answers = run_ranks(
        [sys.executable, "-m", "moesim_kernels.profile.host_fabric"],
        len(matrices[0]),
        task,
        backend=backend,
        timeout_s=timeout_s,
    )
    # An exchange takes as long as its slowest rank.
    return list(np.array(answers).max(axis=0))


def time_rank(task: dict) -> list[list[float]]:
    """Do the work of one rank: return the seconds per call of each timing of each exchange.

    Args:
        task: Task from `moesim_kernels.ranks.group.run_ranks`, with matrices of bytes.
    """
    import torch
    import torch.distributed as dist

    rank, small = task["rank"], torch.ones(64, 64)
    with rank_group(task) as device:
        # Calls on a GPU return before they are done.
        cuda = device.type == "cuda"
        wait = torch.cuda.synchronize if cuda else lambda: None
        seconds: list[list[float]] = [[] for _ in task["matrices"]]
        for _ in range(_ROUNDS):
            for matrix, found in zip(task["matrices"], seconds, strict=True):
                to, of = matrix[rank], [row[rank] for row in matrix]
                sent, received = (
                    torch.ones(sum(parts), dtype=torch.uint8, device=device) for parts in (to, of)
                )
                # Negative timings are the warm-up.
                for timing in range(-_WARM_UP, _TIMINGS):
                    dist.barrier()
                    wait()
                    started, worked_s = time.perf_counter(), 0.0
                    for _ in range(_CALLS):
                        if not cuda:
                            worked_s += _work(small)
                        dist.all_to_all_single(received, sent, of, to)
                    wait()
                    if timing >= 0:
                        found.append((time.perf_counter() - started - worked_s) / _CALLS)
    return seconds


def _work(small: Any) -> float:
    """Multiply a small matrix with itself for `_WORK_S`; return the seconds that it really took."""
    started = now = time.perf_counter()
    while now - started < _WORK_S:
        small @ small
        now = time.perf_counter()
    return now - started


def _fitted(measured: Sequence[AllToAll]) -> tuple[float, float, Array]:
    """Return start, port rate, and measured over predicted time of points left out of the fit."""
    # Bytes through a rank's port: what it sends to all others.
    amounts = np.array([(point.ranks - 1.0) * point.bytes_per_pair for point in measured])
    seconds = np.array([counted(point.seconds) for point in measured])
    return *fit_start_and_rate(amounts, seconds), start_and_rate_ratios(amounts, seconds)


def fabric_of(backend: str, measured: Sequence[AllToAll]) -> HostFabric:
    """Return what `fabric_lines` writes, in the form a profile holds it."""
    start, rate, ratios = _fitted(measured)
    low, high = np.percentile(ratios, (10, 90))
    return HostFabric(
        backend=backend,
        start_s=start,
        port_bytes_per_s=rate,
        ranks=tuple(point.ranks for point in measured),
        bytes_per_pair=tuple(float(point.bytes_per_pair) for point in measured),
        time_s=tuple(counted(point.seconds) for point in measured),
        interval=(float(low), float(high)),
    )


def fabric_lines(backend: str, measured: Sequence[AllToAll]) -> list[str]:
    """Return the lines of ``[host_fabric]``: start and port rate, every point, and residuals of
    points left out of the fit.

    The fit is time = start + (ranks - 1) x bytes / rate: what a rank sends to others passes its
    port once.

    Args:
        backend: Name of the backend in the file.
        measured: Measured points, at least three, of different sizes.
    """
    start, rate, ratios = _fitted(measured)
    low, high = np.percentile(ratios, (10, 90))
    lines = [
        "[host_fabric]",
        f'backend = "{backend}"',
        (
            "start_us = "
            f"{quantity(start / US, source='fit', low=start * low / US, high=start * high / US)}"
        ),
        (
            "gb_per_s = "
            f"{quantity(rate / GB, source='fit', low=rate / high / GB, high=rate / low / GB)}"
        ),
    ]
    lines += held_out("host_fabric.residuals", ratios)
    for point in measured:
        lines += [
            "[[host_fabric.points]]",
            f"ranks = {point.ranks}",
            f"bytes_per_pair = {float(point.bytes_per_pair)}",
            f"time_us = {spread(point.seconds / US, counted)}",
        ]
    return lines


if __name__ == "__main__":
    json.dump(time_rank(json.load(sys.stdin)), sys.stdout)
