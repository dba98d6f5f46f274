"""Decide which Triton can run here, and hold the imports the kernels share.

There are three environments: a GPU with an active Triton driver; Triton's interpreter on the CPU
(``TRITON_INTERPRET=1`` must be in the environment before triton is first imported, since setting it
later leaves Triton's own functions compiled); and neither, for example on macOS, where no triton
package exists. The kernels' modules import in all three, and their torch references run.

Two facts about the interpreter shape the kernels. First, it keeps a bfloat16 number as its 16 bits
and computes with those as integers, without an error, so operands are cast to float32 right after
the load (`dot_dtype`). Second, its cast from float32 to bfloat16 truncates instead of rounding, and
its cast to 8 bits does not round ties to even, so kernels store float32 there and torch rounds
(`store_dtype`).
"""

from functools import cache
from types import SimpleNamespace
from typing import Any, Literal

import torch
from moesim_kernels.tiles.tiles import LIMITS, Limits

try:
    import triton
    import triton.language as tl
    from triton.runtime.interpreter import InterpretedFunction
    from triton.runtime.jit import JITFunction
    from triton.tools.tensor_descriptor import TensorDescriptor
except ImportError:
    triton = None
    # Kernel signatures are evaluated when their module is imported; they need nothing else from
    # triton.language.
    tl = SimpleNamespace(constexpr=object)

TritonMode = Literal["gpu", "interpreter", "none"]

# Triton decides for its own functions when it is imported. Our kernels must follow that decision,
# not the current value of the environment variable.
_INTERPRETED = triton is not None and isinstance(tl.max, InterpretedFunction)


#: Sizes that follow from the number of tokens. Triton would compile a kernel anew where one is a
#: multiple of 16, is 1, or neither, and no address is the better for knowing it.
_VARYING = (
    "num_tokens",
    "num_pairs",
    "num_rows",
    "num_elements",
    "num_queries",
    "max_tiles",
    "steps",
)


def jit(fn: Any) -> Any:
    """Make ``fn`` a Triton kernel, interpreted where Triton itself is interpreted.

    Without triton, ``fn`` stays a plain function; `require_triton` refuses the launch.
    """
    if triton is None:
        return fn
    if _INTERPRETED:
        return InterpretedFunction(fn)
    return JITFunction(fn, do_not_specialize=list(_VARYING))


@cache
def active_backends() -> tuple[str, ...]:
    """Return the names of the Triton backends whose driver is active: ("nvidia",), ("amd",) or ();
    asked once per process.
    """
    if triton is None:
        return ()
    return tuple(
        name for name, backend in triton.backends.backends.items() if backend.driver.is_active()
    )


def triton_mode() -> TritonMode:
    """Return how a kernel launched now would run.

    Returns:
        "interpreter" if triton was imported under ``TRITON_INTERPRET=1``, even on a machine with a
        GPU, since the kernels are then interpreted whatever the machine has. Otherwise "gpu" if any
        backend's driver is active, or "none".
    """
    # Asked first: an interpreted kernel never reaches the GPU's driver.
    if _INTERPRETED:
        return "interpreter"
    return "gpu" if active_backends() else "none"


def device() -> torch.device:
    """Return where kernels want their tensors: the active GPU, or the CPU."""
    if triton_mode() == "gpu":
        return triton.runtime.driver.active.get_active_torch_device()
    return torch.device("cpu")


def require_triton(*tensors: torch.Tensor) -> None:
    """Refuse a launch that cannot work, with a one-line error.

    Args:
        *tensors: Tensors of the launch. All must be contiguous and on one device, and on the GPU if
            kernels run there.

    Raises:
        RuntimeError: Triton is not installed, or has neither a GPU nor the interpreter.
        ValueError: A tensor is not contiguous, is on another device than the first, or is on the
            CPU while kernels run on a GPU.
    """
    # The most common causes come first, each with its remedy.
    if triton is None:
        raise RuntimeError(
            "this needs Triton, which is not installed here (it exists for Linux only); "
            "the function's _reference twin runs on torch alone"
        )
    if triton_mode() == "none":
        raise RuntimeError(
            "Triton has no active GPU driver; set TRITON_INTERPRET=1 before triton is first "
            "imported to interpret kernels on the CPU, or call the function's _reference twin"
        )
    for tensor in tensors:
        if tensor.device != tensors[0].device:
            raise ValueError(
                f"expected all tensors on {tensors[0].device}, got one on {tensor.device}"
            )
        if not tensor.is_contiguous():
            raise ValueError(
                f"expected contiguous tensors, got shape {tuple(tensor.shape)}, strides "
                f"{tensor.stride()}"
            )
        if triton_mode() == "gpu" and tensor.device.type == "cpu":
            raise ValueError("expected tensors on the GPU, got one on the CPU")


def require_float(name: str, tensor: torch.Tensor) -> None:
    """Refuse number formats the kernels do not know.

    Raises:
        ValueError: ``tensor`` is not bfloat16, float16 or float32.
    """
    if tensor.dtype not in (torch.bfloat16, torch.float16, torch.float32):
        raise ValueError(f"{name}: expected bfloat16, float16 or float32, got {tensor.dtype}")


def dot_dtype(dtype: torch.dtype) -> Any:
    """Return the ``tl.dtype`` in which operands of ``dtype`` are multiplied: their own, or float32
    for interpreted bfloat16 and fp8.
    """
    if _INTERPRETED and store_dtype(dtype) == torch.float32:
        return tl.float32
    return {
        torch.bfloat16: tl.bfloat16,
        torch.float16: tl.float16,
        torch.float32: tl.float32,
        torch.float8_e4m3fn: tl.float8e4nv,
        torch.float8_e4m3fnuz: tl.float8e4b8,
    }[dtype]


def store_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the format in which kernels store results of ``dtype``: the same, or float32 for
    interpreted bfloat16 and fp8.
    """
    return (
        torch.float32
        if _INTERPRETED and (dtype == torch.bfloat16 or dtype.itemsize == 1)
        else dtype
    )


def cdiv(number: int, divisor: int) -> int:
    """Return the quotient of two integers, rounded up. (Triton's own takes microseconds of host
    time, since kernels can call it, too.)
    """
    return -(-number // divisor)


def next_power_of_2(number: int) -> int:
    """Return the lowest power of two that is at least this number, and at least 1."""
    return 1 << max(number - 1, 0).bit_length()


def tensor_descriptor(tensor: torch.Tensor, block: list[int]) -> Any:
    """Return what a launch turns into a descriptor of a contiguous tensor with blocks of this
    shape.
    """
    return TensorDescriptor(tensor, list(tensor.shape), list(tensor.stride()), block)


def tensor_descriptor_type() -> type:
    """Return the type that `tensor_descriptor` makes; without Triton a type that nothing has."""
    return type(None) if triton is None else TensorDescriptor


def fp8_dtype() -> torch.dtype:
    """Return the 8-bit format of operands here: the active GPU's where it has one, otherwise OCP
    e4m3.
    """
    return (
        getattr(torch, limits().fp8 or "float8_e4m3fn")
        if triton_mode() == "gpu"
        else torch.float8_e4m3fn
    )


def tile_rows(num_rows: int, row_elements: int, num_columns: int = 1) -> int:
    """Return how many rows, each ``row_elements`` wide (a power of two), a program takes at once: a
    power of two.

    A GPU wants many programs with few registers: four for each multiprocessor where there is work
    for them. The interpreter pays per program and operation, not per element, so it gets larger
    blocks.

    Args:
        num_rows: Number of all rows.
        row_elements: Number of elements of a row that one program takes.
        num_columns: Number of programs that share a row.
    """
    # Elements of one block, for the interpreter and for a GPU.
    if _INTERPRETED:
        return max(1, min(2**18 // row_elements, next_power_of_2(num_rows)))
    spread = max(num_rows * num_columns // (4 * num_sms()), 1)
    return max(1, min(2**12 // row_elements, next_power_of_2(spread)))


def limits() -> Limits:
    """Return what the active GPU gives a program: an A100's limits without a GPU, the driver's for
    an unknown one.
    """
    if triton_mode() != "gpu":
        return LIMITS["sm_80"]
    return _gpu_limits(_index())


def target() -> str:
    """Return the architecture of the active GPU, such as "sm_90" or "gfx942"; "" without one."""
    return "" if triton_mode() != "gpu" else _gpu_target(_index())


def device_name() -> str:
    """Return the driver's name of the active GPU; "" without one."""
    return "" if triton_mode() != "gpu" else _gpu_name(_index())


def num_sms() -> int:
    """Return the number of multiprocessors of the active GPU; 2 without one, so that interpreted
    programs also loop.
    """
    return 2 if triton_mode() != "gpu" else _gpu_sms(_index())


def capturing() -> bool:
    """Return whether the current stream is recorded into a graph, during which nothing may wait for
    the device.
    """
    return triton_mode() == "gpu" and torch.cuda.is_current_stream_capturing()


def _index() -> int:
    return int(triton.runtime.driver.active.get_current_device())


# A driver takes a millisecond to list a device's properties, and a launch needs some of them, so
# each device is asked once.
@cache
def _gpu_target(index: int) -> str:
    found = triton.runtime.driver.active.get_current_target()
    return f"sm_{found.arch}" if found.backend == "cuda" else str(found.arch)


@cache
def _gpu_name(index: int) -> str:
    return str(triton.runtime.driver.active.get_device_interface().get_device_name(index))


@cache
def _gpu_sms(index: int) -> int:
    # Asked of the driver that launches the kernels.
    return int(
        triton.runtime.driver.active.utils.get_device_properties(index)["multiprocessor_count"]
    )


@cache
def _gpu_limits(index: int) -> Limits:
    name = _gpu_target(index)
    if name in LIMITS:
        return LIMITS[name]
    properties = triton.runtime.driver.active.utils.get_device_properties(index)
    # NVIDIA multiplies e4m3 from compute capability 8.9 on; nothing is assumed of other vendors.
    fp8 = "float8_e4m3fn" if name.startswith("sm_") and int(name[3:]) >= 89 else ""
    # An unknown GPU gets the most careful value of every other limit.
    careful = {
        "most_stages": min(limits.most_stages for limits in LIMITS.values()),
        "whole_line_rows": min(limits.whole_line_rows for limits in LIMITS.values()),
        "float32_per_warp": min(limits.float32_per_warp for limits in LIMITS.values()),
    }
    return Limits(
        shared_bytes=properties["max_shared_mem"], elements_per_warp=2048, fp8=fp8, **careful
    )
