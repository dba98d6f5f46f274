"""Launch kernels so that the launches of a call can be recorded once and repeated, without Triton
looking at their arguments again.

    record: run a call; keep each launch's compiled kernel, grid and arguments, and see that torch
            did nothing else
    replay: for each launch kept: run the same kernel, grid and arguments, with the new input and
            output in their places

A launch costs Triton some 8 us of host time, in which it binds names, looks at the alignment of
every argument and finds the kernel compiled for them. The same arguments find the same kernel, so a
repeated launch goes without that and costs 2 us. What a recorded call allocates on the way is kept
and used again by every replay: a `Tape` belongs to one stream.
"""

from collections.abc import Callable
from typing import Any

import torch
from moesim_kernels.ops.chain import chained
from moesim_kernels.ops.runtime import tensor_descriptor_type
from torch.utils._python_dispatch import TorchDispatchMode

#: what a recorded call may ask of torch: memory and other views of it; everything else would be
#: missing in a replay
_HARMLESS = frozenset(
    f"aten.{name}"
    for name in (
        "empty.memory_format",
        "split_with_sizes.default",
        "view.default",
        "_unsafe_view.default",
        "select.int",
        "slice.Tensor",
        "unsqueeze.default",
        "detach.default",
        "alias.default",
        "lift_fresh.default",
    )
)

#: a compiled kernel, its grid, and its arguments in order
Launch = tuple[Any, tuple[int, ...], list[Any]]
_recorders: list["_Recorder"] = []


def launch(kernel: Any, grid: tuple[int, ...], *args: Any, **kwargs: Any) -> None:
    """Launch a kernel with its arguments in order, then constants and options by name.

    Args:
        kernel: Kernel that `moesim_kernels.ops.runtime.jit` made.
        grid: Number of programs along each of at most three axes.
        *args: First arguments of the kernel.
        **kwargs: Other arguments of the kernel, and options of the launch.
    """
    if "PDL" in kernel.arg_names:
        kwargs["PDL"] = early = chained()
        # A launch without the option has one word less to look at, and the interpreter knows none.
        options = {"launch_pdl": True} if early else {}
        compiled = kernel[grid](*args, **kwargs, **options)
    else:
        compiled = kernel[grid](*args, **kwargs)
    if _recorders:
        names = kernel.arg_names[len(args) :]
        _recorders[-1].launches.append((compiled, grid, [*args, *(kwargs[name] for name in names)]))


class _Recorder(TorchDispatchMode):
    """Keep launches, and notice what torch does beside them."""

    def __init__(self) -> None:
        super().__init__()
        self.launches: list[Launch] = []
        self.num_others = 0

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if str(function) not in _HARMLESS:
            self.num_others += 1
        return function(*args, **(kwargs or {}))


class Tape:
    """Launches of one call from one input tensor to one output tensor of the same shape and format.

    Attributes:
        kept: Tensors of the recorded call that replays use again.
    """

    def __init__(
        self,
        launches: list[Launch],
        x: torch.Tensor,
        out: torch.Tensor,
    ) -> None:
        self.kept: list[Any] = []
        self._steps = [
            (compiled[(*grid, 1, 1)[:3]], *self._places(args, x, out))
            for compiled, grid, args in launches
        ]

    def _places(
        self, args: list[Any], x: torch.Tensor, out: torch.Tensor
    ) -> tuple[list[Any], list[int], list[int]]:
        """Return arguments with addresses for tensors, and the places of input and output."""
        inputs = [i for i, arg in enumerate(args) if _address(arg) == x.data_ptr()]
        outputs = [i for i, arg in enumerate(args) if _address(arg) == out.data_ptr()]
        self.kept += [
            arg
            for i, arg in enumerate(args)
            if isinstance(arg, (torch.Tensor, tensor_descriptor_type()))
            and i not in (*inputs, *outputs)
        ]
        return (
            [arg.data_ptr() if isinstance(arg, torch.Tensor) else arg for arg in args],
            inputs,
            outputs,
        )

    def replay(self, x: torch.Tensor, stream: int) -> torch.Tensor:
        """Launch everything again for another input of the recorded one's shape, format and
        alignment.
        """
        out = torch.empty_like(x)
        x_at, out_at = x.data_ptr(), out.data_ptr()
        for run, args, inputs, outputs in self._steps:
            for i in inputs:
                args[i] = x_at
            for i in outputs:
                args[i] = out_at
            run(*args, stream=stream)
        return out


def _address(arg: Any) -> int | None:
    return arg.data_ptr() if isinstance(arg, torch.Tensor) else None


def record(
    call: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor
) -> tuple[torch.Tensor, Tape | None]:
    """Run a call and keep its launches.

    Args:
        call: Function that makes a tensor like ``x`` of it, by kernels that `launch` starts.
        x: Input.

    Returns:
        The result, and its tape; None instead of a tape where torch did something a replay would
        miss, a descriptor describes the input, or the kernels were interpreted.
    """
    made: list[torch.Tensor] = []
    launched, num_others = launches_of(lambda: made.append(call(x)))
    out = made[0]
    described = [
        arg.base.data_ptr()
        for _, _, args in launched
        for arg in args
        if isinstance(arg, tensor_descriptor_type())
    ]
    whole = out.shape == x.shape and out.dtype == x.dtype and out.is_contiguous()
    usable = launched and all(compiled is not None for compiled, _, _ in launched)
    if (
        num_others
        or not whole
        or not usable
        or x.data_ptr() in described
        or out.data_ptr() in described
    ):
        return out, None
    return out, Tape(launched, x, out)


def launches_of(call: Callable[[], object]) -> tuple[list[Launch], int]:
    """Return the launches of a call, and the number of operators that torch runs beside them."""
    recorder = _Recorder()
    _recorders.append(recorder)
    try:
        with recorder:
            call()
    finally:
        _recorders.pop()
    return recorder.launches, recorder.num_others


def counted_launches(call: Callable[[], object]) -> int:
    """Return how many kernels a call launches through `launch`, plus how many operators of torch it
    runs, each of which counts as one.
    """
    launched, num_others = launches_of(call)
    return len(launched) + num_others
