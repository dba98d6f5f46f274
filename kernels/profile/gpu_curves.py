"""What a GPU reaches: GEMM rate by format and size, streams by working set, gathers by access size,
launches.

Every function takes a timer, so that a test can call what it would time.
"""

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
from moesim_kernels.ops.memory import gather, stream

Array = np.ndarray
#: (call, whether L2 is overwritten before each) -> seconds of repeats, ndarray of shape (repeats,)
Timer = Callable[[Callable[[], object], bool], Array]
GEMM_SIZES = (256, 512, 1024, 2048, 4096, 8192, 16384)
ACCESS_BYTES = (32, 64, 128, 256, 512, 1024, 4096, 16384, 65536)
_LONGEST_S, _LAUNCHES = 0.02, 100


def _products(size: int, device: torch.device) -> dict[str, Callable[[], Callable[[], object]]]:
    """Format -> what prepares a square product in it; preparing or calling may raise where the GPU
    has none.
    """

    def plain(dtype: torch.dtype) -> Callable[[], object]:
        left, right = (torch.ones(size, size, dtype=dtype, device=device) for _ in range(2))
        return partial(torch.mm, left, right, out=torch.empty_like(left))

    def scaled() -> Callable[[], object]:
        left = torch.ones(size, size, device=device).to(torch.float8_e4m3fn)
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


#: how torch, cuBLAS and hipBLASLt say that a GPU has no such product
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
    # torch raises NotImplementedError, a RuntimeError too, where it has no such kernel at all
    return isinstance(error, NotImplementedError) or any(
        text in str(error).lower() for text in _UNSUPPORTED
    )


def gemm_rates(
    timer: Timer, device: torch.device, sizes: Sequence[int] = GEMM_SIZES
) -> dict[str, dict[int, Array]]:
    """FLOP/s of repeats of square products, by format and size; formats the GPU cannot multiply are
    left out.

    float32 runs as TF32, like a data sheet's figure for tensor cores. Sizes beyond the GPU's memory
    end a format's.

    Raises:
        RuntimeError: A product fails, but not for want of memory, nor because it is the smallest of
            a format that the GPU says it does not support.
    """
    found: dict[str, dict[int, Array]] = {}
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        for name in _products(16, device):
            best = 0.0
            for size in sizes:
                flops = 2.0 * size**3
                if best and flops / (2.0 * best) > _LONGEST_S:
                    break
                try:
                    rates = flops / timer(_products(size, device)[name](), False)
                except torch.OutOfMemoryError:
                    break
                except RuntimeError as error:
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
    """Bytes/s, read and written, of copies of half a working set to the other half, from a quarter
    of L2 on.
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
    """Bytes/s, read and written, of random rows of a table, by the bytes of a row.

    Args:
        timer: Times the calls.
        device: Where.
        working_set: Bytes of the table.
        moved: Bytes of the result.
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
    """Seconds per launch of a kernel that does next to nothing, a hundred in a row, in a graph or
    not.
    """
    source, target = torch.ones(2, 64, device=device)

    def launches() -> None:
        for _ in range(_LAUNCHES):
            stream(source, target)

    if not graph:
        return timer(launches, False) / _LAUNCHES
    launches()
    captured = torch.cuda.CUDAGraph()
    with torch.cuda.graph(captured):
        launches()
    return timer(captured.replay, False) / _LAUNCHES
