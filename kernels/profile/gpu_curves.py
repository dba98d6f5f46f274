"""Measure what a GPU reaches: GEMM rate by format and size, streams by working set, gathers by
access size, launches, copies to another GPU.

Operands are random: constant ones toggle fewer wires and run 5 to 13 % faster (seen on an H100).
Every function takes a timer, so that a test can make the calls without timing them.
"""

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
from moesim_kernels.ops.memory import gather, stream
from moesim_kernels.timing.graphs import host_seconds

Array = np.ndarray
#: (call, whether L2 is overwritten first) -> seconds per call, ndarray of shape (repeats,)
Timer = Callable[[Callable[[], object], bool], Array]
GEMM_SIZES = (256, 512, 1024, 2048, 4096, 8192, 16384)
ACCESS_BYTES = (32, 64, 128, 256, 512, 1024, 4096, 16384, 65536)
#: bytes of a copy from one GPU to another, 4 KiB to 256 MiB
COPY_BYTES = tuple(1 << exponent for exponent in range(12, 29, 2))
# Seconds of the longest product, and the largest share of a time that is taken for its launch.
_LONGEST_S, _MOST_LAUNCH = 0.02, 0.5


def _products(size: int, device: torch.device) -> dict[str, Callable[[], Callable[[], object]]]:
    """Return format -> function that prepares a square product in it; preparing or calling may
    raise if the GPU lacks the product.
    """

    def plain(dtype: torch.dtype) -> Callable[[], object]:
        left, right = (torch.randn(size, size, dtype=dtype, device=device) for _ in range(2))
        return partial(torch.mm, left, right, out=torch.empty_like(left))

    def scaled() -> Callable[[], object]:
        left, right = (
            torch.randn(size, size, dtype=torch.bfloat16, device=device).to(torch.float8_e4m3fn)
            for _ in range(2)
        )
        # Scales of 1: the rate does not depend on them.
        one = torch.ones((), device=device)
        return partial(
            torch._scaled_mm, left, right.T, scale_a=one, scale_b=one, out_dtype=torch.bfloat16
        )

    def whole() -> Callable[[], object]:
        left, right = (
            torch.randint(-128, 128, (size, size), dtype=torch.int8, device=device)
            for _ in range(2)
        )
        # The second operand by columns, as weights lie: by rows cuBLAS leaves its fast kernels.
        return partial(torch._int_mm, left, right.T)

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
                best = max(best, float(np.median(rates)))
                found.setdefault(name, {})[size] = rates
    finally:
        torch.set_float32_matmul_precision(precision)
    return found


def stream_rates(
    timer: Timer, device: torch.device, l2_bytes: int, largest: int, launch_s: float = 0.0
) -> dict[int, Array]:
    """Return bytes/s, read and written, of copies of half a working set to the other half, from a
    quarter of L2 on.

    Args:
        timer: Function that times the calls.
        device: Device that runs the copies.
        l2_bytes: Size of L2.
        largest: Size of the largest working set.
        launch_s: Seconds per launch that prices add by themselves, and that are subtracted here.
    """
    found, size = {}, max(l2_bytes // 4, 1 << 12)
    while size <= largest:
        source, target = torch.randn(2, size // 8, device=device)
        seconds = timer(partial(stream, source, target), False)
        found[size] = 2.0 * source.nbytes / _without_launch(seconds, launch_s)
        size *= 2
    return found


def gather_rates(
    timer: Timer,
    device: torch.device,
    working_set: int,
    moved: int,
    *,
    cold: bool,
    launch_s: float = 0.0,
) -> dict[int, Array]:
    """Return bytes/s, read and written, of random rows of a table, by the bytes of a row.

    Args:
        timer: Function that times the calls.
        device: Device that runs the gathers.
        working_set: Size of the table in bytes.
        moved: Size of the result in bytes.
        cold: Whether L2 is overwritten before each repeat.
        launch_s: Seconds per launch that prices add by themselves, and that are subtracted here.
    """
    generator, found = torch.Generator().manual_seed(0), {}
    for access in ACCESS_BYTES:
        table = torch.randn(max(working_set // access, 1), access // 4, device=device)
        rows = (
            torch.randint(0, len(table), (max(moved // access, 1),), generator=generator)
            .int()
            .to(device)
        )
        target = torch.empty(len(rows), access // 4, device=device)
        seconds = timer(partial(gather, table, rows, target), cold)
        found[access] = 2.0 * target.nbytes / _without_launch(seconds, launch_s)
    return found


def _without_launch(seconds: Array, launch_s: float) -> Array:
    # A time that is mostly launch says little of the rest, so that at most half is taken away.
    return np.maximum(seconds - launch_s, (1.0 - _MOST_LAUNCH) * seconds)


def _nothing(device: torch.device) -> Callable[[], None]:
    """Return a launch of a kernel that does next to nothing."""
    source, target = torch.ones(2, 64, device=device)
    return partial(stream, source, target)


def launch_seconds(timer: Timer, device: torch.device) -> Array:
    """Return seconds per launch of a kernel that does next to nothing, one after another."""
    return timer(_nothing(device), False)


def host_launch_seconds(device: torch.device, wait: Callable[[], object]) -> Array:
    """Return the host's seconds per launch of a kernel through Triton, as without graphs.

    Args:
        device: Device that runs the kernel.
        wait: Function that waits for the device.
    """
    return host_seconds(_nothing(device), wait)


def copy_rates(
    timer: Timer, source: torch.device, target: torch.device, sizes: Sequence[int]
) -> dict[int, Array]:
    """Return bytes/s of copies from one GPU's memory to another's, by the bytes of a copy.

    Args:
        timer: Function that times calls that cannot be captured: torch makes both GPUs wait for
            each other.
        source: GPU that is read, and whose clock counts.
        target: GPU that is written.
        sizes: Bytes of the copies.
    """
    found = {}
    for size in sizes:
        read = torch.randn(size // 4, device=source)
        written = torch.empty(size // 4, device=target)
        found[size] = size / timer(partial(_copy, read, written), False)
    return found


def _copy(source: torch.Tensor, target: torch.Tensor) -> None:
    target.copy_(source, non_blocking=True)
