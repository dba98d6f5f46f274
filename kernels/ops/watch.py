"""Note the first token whose numbers a kernel cannot use, and report it without a wait.

    each kernel that reads ids, logits or router weights and is told to watch:       # note
        watch[kind] = min(watch[kind], first token with an id out of range, or a number not finite)
    next checked call, or synchronize():                                             # report
        if watch has a token: clear it and raise a ValueError that names it

The watch is pinned memory of the host, which the GPU writes only when something is wrong, so that
good input costs no launch, no copy and no wait. Until the report, ids out of range are read as the
nearest expert and NaN logits as -inf, so no address is wrong.
"""

from functools import cache
from typing import Literal

import torch
from moesim_kernels.ops.runtime import capturing, jit, tl, triton, triton_mode

#: the places of a watch, as kernels read constants
IDS, LOGITS, WEIGHTS = range(3) if triton is None else (tl.constexpr(place) for place in range(3))
#: whether numbers are checked: by the host, which waits; by kernels, which report later; or not
Checked = bool | Literal["later"]
_NOTHING = 2**31 - 1
_MESSAGES = (
    "ids_TK: expected ids of experts that exist",
    "logits_TE: expected finite numbers; a token, a key of the gate or a bias is NaN or infinite",
    "weights_TK: expected finite weights",
)


@jit
def note(watch_ptr, place, bad, token):
    """Note the lowest of the tokens that are bad."""
    first = tl.min(tl.where(bad, token, 2147483647).to(tl.int32))
    # The host looks at this memory while kernels run.
    tl.atomic_min(watch_ptr + place, first, mask=first < 2147483647, sem="relaxed", scope="sys")


@cache
def _watch(device: torch.device) -> torch.Tensor:
    return new_watch(pinned=device.type == "cuda")


def new_watch(pinned: bool = False) -> torch.Tensor:
    """Return a watch on which nothing is noted: int32 of shape (3,) in memory of the host."""
    return torch.full((3,), _NOTHING, dtype=torch.int32, pin_memory=pinned)


def looks(checked: Checked, tensor: torch.Tensor) -> tuple[bool, torch.Tensor | None]:
    """Return how the numbers of a call are looked at.

    Args:
        checked: True for the host, which waits for a GPU; "later" for the kernels, on a GPU; False
            for neither. A CPU's numbers are always the host's to look at.
        tensor: Tensor on the device of the call.

    Returns:
        Whether the host looks, and the watch for the kernels. While a graph is recorded, neither:
        nothing may wait then, and a report would be about a replay.
    """
    if not checked:
        return False, None
    if triton_mode() != "gpu":
        return True, None
    if capturing():
        return False, None
    return (False, _watch(tensor.device)) if checked == "later" else (True, None)


def report(watch: torch.Tensor | None) -> None:
    """Raise what kernels have noted so far, and clear it.

    Raises:
        ValueError: A kernel found an id out of range, or a number that is not finite.
    """
    if watch is None:
        return
    tokens = watch.numpy()
    for token, message in zip(tokens.tolist(), _MESSAGES, strict=True):
        if token != _NOTHING:
            tokens[:] = _NOTHING
            raise ValueError(f"{message}; the first is token {token} of a call before this one")


def synchronize() -> None:
    """Wait for the active GPU, and raise what kernels have noted; without a GPU do nothing.

    Raises:
        ValueError: A kernel found an id out of range, or a number that is not finite.
    """
    if triton_mode() == "gpu":
        torch.cuda.synchronize()
        report(_watch(torch.device("cuda", torch.cuda.current_device())))
