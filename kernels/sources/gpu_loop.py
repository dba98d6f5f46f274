"""Measure this machine's GPU, search designs for it, and run them, for a limited time.

The profile comes first and holds no layer. Winners of the search run before randomly drawn designs,
and their experts also through the peers that are installed (`moesim_kernels.timing.peers`), so that
a run that is cut short has what matters most.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from moesim_kernels.ops.runtime import device
from moesim_kernels.sources.beside import time_beside
from moesim_kernels.sources.triton import Timer, graph_seconds

from moesim.costs.libraries import running
from moesim.design.candidate import Workload
from moesim.errors import MeasurementError
from moesim.hardware import Cluster, load_profile, single_device
from moesim.measured.check_loop import check_each
from moesim.measured.sources import CheckRow, MeasurementSource, Profiler
from moesim.search import Space
from moesim.search.drawn import Chosen, winners_and_drawn

PROFILE = "local.toml"


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuLoopSizes:
    """How much a run does.

    Attributes:
        seconds: About how long to measure the profile.
        minutes: Minutes from the start after which no further design is begun.
        trials: Number of trials of the search.
        winners: Maximum number of winners to run.
        drawn: Maximum number of other designs to run.
    """

    seconds: float
    minutes: float
    trials: int
    winners: int
    drawn: int


@dataclass(slots=True, kw_only=True)
class GpuLoop:
    """What a run found.

    Attributes:
        cluster: This GPU, by its measured profile.
        chosen: Designs that were chosen to run.
        rows: Pairs of role and comparison, of the designs that ran.
        beside: Times of the winners' expert phase by library, see
            `moesim_kernels.sources.beside.COLUMNS`.
        notes: A line for each library that could not be timed.
    """

    cluster: Cluster
    chosen: list[Chosen]
    rows: list[tuple[str, CheckRow]] = field(default_factory=list)
    beside: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def refuse_without_gpu(*parts: Profiler | MeasurementSource) -> None:
    """Check that a profiler and a source can run here.

    Raises:
        MeasurementError: One of them cannot; the message says why, and what runs on a CPU.
    """
    for part in parts:
        if reason := part.unavailable_because():
            other = "studies/check_local.py does the same on a CPU"
            raise MeasurementError(f"check_gpu: {reason}; {other}")


def run_gpu_loop(
    parts: tuple[Profiler, MeasurementSource],
    space: Space,
    workload: Workload,
    sizes: GpuLoopSizes,
    out: Path,
    tell: Callable[[str], None],
    *,
    seed: int,
    timer: Timer = graph_seconds,
) -> GpuLoop:
    """Measure, search and run.

    Args:
        parts: Profiler and source of this GPU.
        space: Choices of the search, on one device.
        workload: Tokens and their routing.
        sizes: How much to do.
        out: Folder that gets the measured profile, as ``local.toml``.
        tell: Function that is told what is being done.
        seed: Seed of the search and of the random draw.
        timer: Function that times a call beside the peers'.

    Raises:
        MeasurementError: One of the parts cannot run here.
        MoesimError: No point of the space is a candidate.
        OSError: The profile cannot be written.
    """
    until = time.monotonic() + 60.0 * sizes.minutes
    profiler, source = parts
    refuse_without_gpu(profiler, source)
    tell(f"measuring this GPU, about {sizes.seconds:.0f} s")
    out.mkdir(parents=True, exist_ok=True)
    profiler.write(out / PROFILE, sizes.seconds, "studies/check_gpu.py")
    # Designs are searched for the kernels that will run them.
    cluster = running(single_device(load_profile(str(out / PROFILE))))
    tell("searching")
    found = GpuLoop(
        cluster=cluster,
        chosen=winners_and_drawn(
            space,
            cluster,
            workload,
            trials=sizes.trials,
            winners=sizes.winners,
            drawn=sizes.drawn,
            seed=seed,
        ),
    )
    pairs = [(one.role, one.candidate) for one in found.chosen]
    winners = [pair for pair in pairs if pair[0] == "winner"]
    found.rows = check_each(source, winners, cluster, workload, tell, until=until)
    found.beside, found.notes = time_beside(
        [candidate for _, candidate in winners],
        workload,
        timer,
        device(),
        until=until,
        tell=tell,
    )
    others = [pair for pair in pairs if pair[0] != "winner"]
    found.rows += check_each(source, others, cluster, workload, tell, until=until)
    return found
