"""Let a kernel be launched before the one in front of it has ended: programmatic dependent launch.

    each kernel that takes PDL, as its first step:       # await_inputs
        wait until every kernel in front of it has ended and its results are visible
        allow the next kernel to be launched, which then waits here in turn
        ... loads and stores

On compute capability 9.0 and later a kernel's launch, its program's start, and its wait for a free
multiprocessor can overlap the end of the kernel in front of it (CUDA C++ Programming Guide,
"Programmatic Dependent Launch and Synchronization"). A layer is a chain of short kernels, so this
hides a microsecond of each.

The wait comes before everything: before the first load, because the kernel in front may have
written what is loaded, and before the first store, because it, or one further in front that it
waited for, may still read the memory. So the order of the chain is that of plain launches, and a
kernel outside this package on either side of a chain finds what it would find there.
"""

from functools import cache

from moesim_kernels.ops.runtime import jit, target, tl


@jit
def await_inputs(PDL: tl.constexpr):
    """Wait for the kernels in front of this one, then let the next one be launched."""
    if PDL:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()


@cache
def chains(target: str) -> bool:
    """Return whether a GPU of this architecture, such as "sm_90", launches dependent kernels
    early.
    """
    return target.startswith("sm_") and int(target.removeprefix("sm_")) >= 90


def chained() -> bool:
    """Return whether kernels are launched early on the active GPU."""
    return chains(target())
