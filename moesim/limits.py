"""What a request may ask for: it is refused in one line before anything of its size is made.

Two things are limited. The size of a field is, where every use of it makes objects of that number
(``MOST_...``). The memory and the work of a request as a whole are, since sizes that are moderate
each make a request without end together: whoever is about to allocate or to loop states the bytes
and the time, and `check_request` compares them with what this machine and a person have.
"""

import os
from pathlib import Path

from moesim.errors import CapacityError
from moesim.units import GIB

#: experts of a layer: tables of them are held for every layer and device. Four times the largest
#: studied in print, 2^20 (https://arxiv.org/abs/2407.04153)
MOST_EXPERTS = 1 << 22
#: hidden sizes and widths of experts, a thousand times those of published models: products of two
#: widths and a number of tokens still fit in 64 bits
MOST_WIDTH = 1 << 24
#: layers of a model, each an object of its own
MOST_LAYERS = 1 << 14
#: devices of a cluster, more than any has, and the degree of any parallelism among them; several
#: arrays have an entry for each
MOST_DEVICES = 1 << 20
#: processes of one machine that evaluate the trials of a study
MOST_WORKERS = 1024
#: trials of a study, each held with its row
MOST_TRIALS = 1 << 20
#: days that are drawn anew, each with all of its events in memory
MOST_SEEDS = 1000
#: microseconds that a request may take by its estimate: a quarter of an hour
MOST_WORK_US = 9e8
_MINUTE_US = 6e7
#: share of the machine's memory that a run may plan to use
_ROOM = 0.7
#: where Linux says how much memory a container may use
_CONTAINER = Path("/sys/fs/cgroup/memory.max")


def check_request(
    what: str,
    *,
    memory_bytes: float = 0.0,
    work_us: float = 0.0,
    advice: str = "",
    most_bytes: float | None = None,
) -> None:
    """Refuse a request that would take more memory or more work than one run may.

    Args:
        what: What is asked for, with its figures, as the beginning of an error's line.
        memory_bytes: Bytes that would be held at once; estimates hold within a factor of 2.
        work_us: Microseconds of one core of a cloud machine; estimates hold within a factor of 3.
        advice: What to ask for instead.
        most_bytes: Bytes that this may take; None for what this machine can spare.

    Raises:
        CapacityError: It would take more; the message has the figure, the limit and the advice.
    """
    hint = f": {advice}" if advice else ""
    most_bytes = _ROOM * memory_of_machine() if most_bytes is None else most_bytes
    # written so that nan is refused
    if not memory_bytes <= most_bytes:
        raise CapacityError(
            f"{what} would take {_figure(memory_bytes / GIB)} GiB of memory "
            f"(limit {most_bytes / GIB:.1f} GiB){hint}"
        )
    if not work_us <= MOST_WORK_US:
        raise CapacityError(
            f"{what} would take {_figure(work_us / _MINUTE_US)} minutes "
            f"(limit {MOST_WORK_US / _MINUTE_US:.0f}){hint}"
        )


def _figure(value: float) -> str:
    return f"{value:,.1f}" if value < 1e6 else f"{value:.3g}"


def memory_of_machine() -> float:
    """Return the bytes of memory that this machine, or the container around it, has."""
    there = float(os.sysconf("SC_PAGE_SIZE")) * os.sysconf("SC_PHYS_PAGES")
    try:
        return min(there, float(_CONTAINER.read_text(encoding="ascii")))
    except (OSError, ValueError):  # no container, or one without a limit, which says "max"
        return there
