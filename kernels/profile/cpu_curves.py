"""Measure what one thread of this CPU reaches: GEMM rate by format and size, streams and gathers by
size and working set.

Each number comes from at least 7 repeats after one that is not counted, by the thread's own time.
The best repeat counts, since a disturbance only ever adds time. Minimum, median, P10, and P90 are
recorded with it.
"""

import math
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from moesim_kernels.cpu.primitives import DTYPES, time_call
from moesim_kernels.cpu.protocol import Sentinel
from moesim_kernels.profile.text import quantity, spread

from moesim.costs.devices import serial
from moesim.units import GB, MIB, TERA, US

Array = np.ndarray
REPEATS = 7
#: formats whose GEMMs are measured. The measurement shows whether a format has a fast path; nothing
#: else uses float16.
GEMM_DTYPES = DTYPES | {"float16": torch.float16}
GEMM_SIZES = (64, 128, 256, 512, 1024, 2048)
ACCESS_BYTES = (32, 64, 128, 256, 512, 1024, 4096, 16384, 65536)
#: seconds of the shortest timing of short calls, and the most bytes that one gather moves
_SHORTEST_S, _GATHER_BYTES = 2e-4, 2 << 20
#: working set above which a pass no longer runs in a core's own cache
_SHARED_BYTES = 4 << 20


def repeated(
    call: Callable[[], object], repeats: int = REPEATS, before: Callable[[], object] = lambda: None
) -> Array:
    """Return the seconds of each repeat, several calls in one if a call is short: ndarray of shape
    (repeats,).
    """
    once = float(time_call(call, 1, before)[0])
    # Short calls are timed in groups, far above the resolution of the clock.
    times = max(1, math.ceil(_SHORTEST_S / max(once, 1e-7)))
    if times == 1:
        return time_call(call, repeats, before)

    def several() -> None:
        for _ in range(times):
            call()

    return time_call(several, repeats, before) / times


def gemm_rates(
    longest_s: float = 0.06, sizes: tuple[int, ...] = GEMM_SIZES
) -> dict[str, dict[int, Array]]:
    """Return FLOP/s of repeats of square products, by format and size; sizes that would take over
    ``longest_s`` are left out.
    """
    found: dict[str, dict[int, Array]] = {}
    for name, dtype in GEMM_DTYPES.items():
        best = 0.0
        for size in sizes:
            flops = 2.0 * size**3
            # Skip sizes that would take too long even at twice the fastest rate so far.
            if best and flops / (2.0 * best) > longest_s:
                break
            left, right = torch.ones(size, size, dtype=dtype), torch.ones(size, size, dtype=dtype)
            rates = flops / repeated(partial(torch.mm, left, right))
            best = max(best, float(rates.max()))
            found.setdefault(name, {})[size] = rates
    return found


def gemm_lines(rates: dict[str, dict[int, Array]]) -> list[str]:
    """Return ``[compute.peak_tflops]`` of the formats that primitives are measured in, and every
    ``[[compute.gemm]]``.
    """
    lines = ["[compute.peak_tflops]"]
    for name in DTYPES:
        fastest = max(rates[name].values(), key=np.max)
        lines.append(f"{name} = {spread(fastest / TERA, np.max)}")
    for name, by_size in rates.items():
        for size, repeats in by_size.items():
            lines += [
                "[[compute.gemm]]",
                f'format = "{name}"',
                f"size = {size}",
                f"tflops = {spread(repeats / TERA, np.max)}",
            ]
    return lines


def stream_rates(sentinel: Sentinel) -> dict[int, Array]:
    """Return bytes/s, read and written, of passes over a working set: one half of it to the other,
    256 KiB to 128 MiB.
    """
    found = {}
    size = 1 << 18
    while size <= sentinel.buffer.nbytes:
        # Half of the working set is read and half is written.
        source, target = sentinel.buffer[: size // 4].chunk(2)
        found[size] = size / repeated(partial(torch.mul, source, 1.0, out=target))
        size *= 2
    return found


def cache_bytes(rates: dict[int, Array]) -> float:
    """Return the size of the last cache: the working set up to which a pass is nearer to the
    cache's rate than to the memory's (geometric mean).

    The cache's rate is the best one for working sets larger than a core's own cache, from 4 MiB on.
    """
    best = {size: float(repeats.max()) for size, repeats in rates.items() if size >= _SHARED_BYTES}
    # The largest working set is far beyond any cache, so its rate is the memory's.
    limit = math.sqrt(max(best.values()) * best[max(best)])
    return float(max(size for size, rate in best.items() if rate >= limit))


def gather_rates(sentinel: Sentinel, working_set: int, *, cold: bool) -> dict[int, Array]:
    """Return bytes/s, read and written, of rows gathered from random places of a table, by the
    bytes of a row.

    Args:
        sentinel: Sentinel; its buffer is the table.
        working_set: Size of the table in bytes.
        cold: Whether the caches are flushed before each repeat.
    """
    generator, found = torch.Generator().manual_seed(0), {}
    for access in ACCESS_BYTES:
        table = sentinel.buffer[: working_set // 4].view(-1, access // 4)
        # Enough rows to be timed, but not more than the table's size.
        count = max(min(_GATHER_BYTES, working_set) // access, 1)
        rows = torch.randint(0, len(table), (count,), generator=generator)
        out = torch.empty(count, access // 4)
        call = partial(torch.index_select, table, 0, rows, out=out)
        seconds = time_call(call, REPEATS, sentinel.buffer.sum) if cold else repeated(call)
        found[access] = 2.0 * count * access / seconds
    return found


def memory_lines(sentinel: Sentinel, streams: dict[int, Array], last_cache: float) -> list[str]:
    """Return the lines of ``[hbm]`` except its capacity, and ``[l2]``; gathers are from memory, the
    last cache, and the core's own cache.
    """
    far = streams[max(streams)]
    bandwidth = float(far.max())
    lines = [f"bandwidth_gb_per_s = {spread(far / GB, np.max)}"]
    for access, rates in gather_rates(sentinel, sentinel.buffer.nbytes, cold=True).items():
        # A gather cannot beat the stream; a rate above it is noise.
        shares = np.minimum(rates / bandwidth, 1.0)
        lines += [
            "[[hbm.gather]]",
            f"access_bytes = {float(access)}",
            f"efficiency = {spread(shares, np.max)}",
        ]
    # Half of each cache fits into it for sure.
    for working_set in sorted(
        {serial.OWN_CACHE_BYTES // 2, max(int(last_cache) // 2, serial.OWN_CACHE_BYTES // 2)}
    ):
        for access, rates in gather_rates(sentinel, working_set, cold=False).items():
            lines += [
                "[[hbm.gather_cached]]",
                f"access_bytes = {float(access)}",
                f"working_set_mib = {working_set / MIB}",
                f"efficiency = {spread(rates / bandwidth, np.max)}",
            ]
    for size, rates in streams.items():
        lines += [
            "[[hbm.streaming]]",
            f"working_set_mib = {size / MIB}",
            f"efficiency = {spread(rates / bandwidth, np.max)}",
        ]
    return [*lines, "[l2]", f"capacity_mib = {quantity(last_cache / MIB)}"]


def launch_line() -> str:
    """Return ``kernel_us``: a call of the framework that does next to nothing, with its code in the
    caches.
    """
    few = torch.ones(64)
    add = partial(torch.add, few, 1.0)
    return f"kernel_us = {spread(repeated(add, 9) / US, np.min)}"
