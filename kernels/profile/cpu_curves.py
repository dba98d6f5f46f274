"""What one thread of this CPU reaches: GEMM rate by format and size, streams and gathers by size
and working set.

Each number is of at least 7 repeats after one that is not counted, by the thread's own time. What
counts is the best: a disturbance only ever adds. Its minimum, median, P10 and P90 stand beside it.
"""

import math
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from moesim_kernels.cpu.layer import Sentinel
from moesim_kernels.cpu.primitives import DTYPES, time_call
from moesim_kernels.profile.text import quantity, spread

from moesim.costs.devices import serial
from moesim.units import GB, MIB, TERA, US

Array = np.ndarray
REPEATS = 7
#: formats whose GEMMs are measured; one without a fast path is found out here, and nothing else
#: uses it
GEMM_DTYPES = DTYPES | {"float16": torch.float16}
GEMM_SIZES = (64, 128, 256, 512, 1024, 2048)
ACCESS_BYTES = (32, 64, 128, 256, 512, 1024, 4096, 16384, 65536)
#: shortest timing of short calls, and bytes that one gather moves at most
_SHORTEST_S, _GATHER_BYTES = 2e-4, 2 << 20
#: working set from which on a pass no longer runs in a core's own cache
_SHARED_BYTES = 4 << 20


def repeated(
    call: Callable[[], object], repeats: int = REPEATS, before: Callable[[], object] = lambda: None
) -> Array:
    """Seconds of each repeat, several calls in one where a call is short: ndarray of shape
    (repeats,).
    """
    once = float(time_call(call, 1, before)[0])
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
    """FLOP/s of repeats of square products, by format and size; what would take over ``longest_s``
    is left out.
    """
    found: dict[str, dict[int, Array]] = {}
    for name, dtype in GEMM_DTYPES.items():
        best = 0.0
        for size in sizes:
            flops = 2.0 * size**3
            # a product eight times as large runs at best at twice the rate of the fastest so far
            if best and flops / (2.0 * best) > longest_s:
                break
            left, right = torch.ones(size, size, dtype=dtype), torch.ones(size, size, dtype=dtype)
            rates = flops / repeated(partial(torch.mm, left, right))
            best = max(best, float(rates.max()))
            found.setdefault(name, {})[size] = rates
    return found


def gemm_lines(rates: dict[str, dict[int, Array]]) -> list[str]:
    """``[compute.peak_tflops]`` of the formats that primitives are measured in, and every
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
    """Bytes/s, read and written, of passes over a working set: one half of it to the other, 256 KiB
    to 128 MiB.
    """
    found = {}
    size = 1 << 18
    while size <= sentinel.buffer.nbytes:
        source, target = sentinel.buffer[: size // 4].chunk(2)
        found[size] = size / repeated(partial(torch.mul, source, 1.0, out=target))
        size *= 2
    return found


def cache_bytes(rates: dict[int, Array]) -> float:
    """The last cache: the working set up to which a pass is nearer to its rate than to the memory's
    (geometric mean).

    Its rate is the best beyond what a core has for itself, from 4 MiB on.
    """
    best = {size: float(repeats.max()) for size, repeats in rates.items() if size >= _SHARED_BYTES}
    limit = math.sqrt(max(best.values()) * best[max(best)])
    return float(max(size for size, rate in best.items() if rate >= limit))


def gather_rates(sentinel: Sentinel, working_set: int, *, cold: bool) -> dict[int, Array]:
    """Bytes/s, read and written, of rows taken at random places of a table, by the bytes of a row.

    Args:
        sentinel: Whose buffer is the table.
        working_set: Bytes of the table.
        cold: Whether the caches are flushed before each repeat.
    """
    generator, found = torch.Generator().manual_seed(0), {}
    for access in ACCESS_BYTES:
        table = sentinel.buffer[: working_set // 4].view(-1, access // 4)
        count = max(min(_GATHER_BYTES, working_set) // access, 1)
        rows = torch.randint(0, len(table), (count,), generator=generator)
        out = torch.empty(count, access // 4)
        call = partial(torch.index_select, table, 0, rows, out=out)
        seconds = time_call(call, REPEATS, sentinel.buffer.sum) if cold else repeated(call)
        found[access] = 2.0 * count * access / seconds
    return found


def memory_lines(sentinel: Sentinel, streams: dict[int, Array], last_cache: float) -> list[str]:
    """Lines of ``[hbm]`` but its capacity, and ``[l2]``; gathers from memory, the last cache and
    the core's own.
    """
    far = streams[max(streams)]
    bandwidth = float(far.max())
    lines = [f"bandwidth_gb_per_s = {spread(far / GB, np.max)}"]
    for access, rates in gather_rates(sentinel, sentinel.buffer.nbytes, cold=True).items():
        shares = np.minimum(rates / bandwidth, 1.0)
        lines += [
            "[[hbm.gather]]",
            f"access_bytes = {float(access)}",
            f"efficiency = {spread(shares, np.max)}",
        ]
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
    """``kernel_us``: a call of the framework that does next to nothing, its code near."""
    few = torch.ones(64)
    add = partial(torch.add, few, 1.0)
    return f"kernel_us = {spread(repeated(add, 9) / US, np.min)}"
