"""Measure what a GPU reaches: GEMM rate by format and size, streams by working set, gathers by
access size, launches.

Every function takes a timer, so that a test can make the calls without timing them.
"""

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
from moesim_kernels.ops.memory import gather, stream

Array = np.ndarray
#: (call, whether L2 is overwritten first) -> seconds of repeats, ndarray of shape (repeats,)
Timer = Callable[[Callable[[], object], bool], Array]
GEMM_SIZES = (256, 512, 1024, 2048, 4096, 8192, 16384)
ACCESS_BYTES = (32, 64, 128, 256, 512, 1024, 4096, 16384, 65536)
# Seconds of the longest product, and launches in one timing.
_LONGEST_S, _LAUNCHES = 0.02, 100


def _products(size: int, device: torch.device) -> dict[str, Callable[[], Callable[[], object]]]:
    """Return format -> function that prepares a square product in it; preparing or calling may
    raise if the GPU lacks the product.
    """

    def plain(dtype: torch.dtype) -> Callable[[], object]:
        left, right = (torch.ones(size, size, dtype=dtype, device=device) for _ in range(2))
        return partial(torch.mm, left, right, out=torch.empty_like(left))

    def scaled() -> Callable[[], object]:
        left = torch.ones(size, size, device=device).to(torch.float8_e4m3fn)
        # Scales of 1: the rate does not depend on them.
        one = torch.ones((), device=device)
        return partial(
            torch._scaled_mm, left, left.T, scale_a=one, scale_b=one, out_dtype=torch.bfloat16
        )

    def whole() -> Callable[[], object]:
        left = torch.ones(size, size, dtype=torch.int8, device=device)
        return partial(torch._int_mm, left, left)

    return {
        "float32": partial(plain, torch.float32),
        "bfloat16": partial(plain, torch.bfloat16),
        "float16": partial(plain, torch.float16),
        "float8_e4m3": scaled,
        "int8": whole,
    }


#: parts of the messages by which torch, cuBLAS, and hipBLASLt say that a GPU lacks a product
_UNSUPPORTED = (
    "not supported",
    "unsupported",
    "not implemented",
    "only supported",
    "requires compute capability",
    "not_supported",
    "expected self.dtype",
    "could not find valid hipblaslt",
)


def _says_unsupported(error: Exception) -> bool:
    # torch raises NotImplementedError, a subclass of RuntimeError, if it has no such kernel at all.
    return isinstance(error, NotImplementedError) or any(
        text in str(error).lower() for text in _UNSUPPORTED
    )


def gemm_rates(
    timer: Timer, device: torch.device, sizes: Sequence[int] = GEMM_SIZES
) -> dict[str, dict[int, Array]]:
    """Return FLOP/s of repeats of square products, by format and size; formats the GPU cannot
    multiply are left out.

    float32 runs as TF32, like a data sheet's figure for tensor cores. The sizes of a format end
    where they exceed the GPU's memory.

    Raises:
        RuntimeError: A product fails for a reason other than lack of memory, unless it is the
            smallest of a format and the GPU says it does not support it.
    """
    found: dict[str, dict[int, Array]] = {}
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        for name in _products(16, device):
            best = 0.0
            for size in sizes:
                flops = 2.0 * size**3
                # Skip sizes that would take too long even at twice the fastest rate so far.
                if best and flops / (2.0 * best) > _LONGEST_S:
                    break
                try:
                    rates = flops / timer(_products(size, device)[name](), False)
                except torch.OutOfMemoryError:
                    break
                except RuntimeError as error:
                    # A format whose smaller product ran is supported, so its error is a real one.
                    if name in found or not _says_unsupported(error):
                        raise
                    break
                best = max(best, float(rates.max()))
                found.setdefault(name, {})[size] = rates
    finally:
        torch.set_float32_matmul_precision(precision)
    return found


def stream_rates(
    timer: Timer, device: torch.device, l2_bytes: int, largest: int
) -> dict[int, Array]:
    """Return bytes/s, read and written, of copies of half a working set to the other half, from a
    quarter of L2 on.
    """
    found, size = {}, max(l2_bytes // 4, 1 << 12)
    while size <= largest:
        source, target = torch.ones(2, size // 8, device=device)
        found[size] = 2.0 * source.nbytes / timer(partial(stream, source, target), False)
        size *= 2
    return found


def gather_rates(
    timer: Timer, device: torch.device, working_set: int, moved: int, *, cold: bool
) -> dict[int, Array]:
    """Return bytes/s, read and written, of random rows of a table, by the bytes of a row.

    Args:
        timer: Function that times the calls.
        device: Device that runs the gathers.
        working_set: Size of the table in bytes.
        moved: Size of the result in bytes.
        cold: Whether L2 is overwritten before each repeat.
    """
    generator, found = torch.Generator().manual_seed(0), {}
    for access in ACCESS_BYTES:
        table = torch.ones(max(working_set // access, 1), access // 4, device=device)
        rows = (
            torch.randint(0, len(table), (max(moved // access, 1),), generator=generator)
            .int()
            .to(device)
        )
        target = torch.empty(len(rows), access // 4, device=device)
        found[access] = 2.0 * target.nbytes / timer(partial(gather, table, rows, target), cold)
    return found


def launch_seconds(timer: Timer, device: torch.device, graph: bool) -> Array:
    """Return seconds per launch of a kernel that does next to nothing, a hundred in a row, in a
    graph or not.
    """
    source, target = torch.ones(2, 64, device=device)

    def launches() -> None:
        for _ in range(_LAUNCHES):
            stream(source, target)

    if not graph:
        return timer(launches, False) / _LAUNCHES
    # Compiled before the capture, during which nothing may wait.
    launches()
    captured = torch.cuda.CUDAGraph()
    with torch.cuda.graph(captured):
        launches()
    return timer(captured.replay, False) / _LAUNCHES
