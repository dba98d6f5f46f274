"""Measure what simulating an all-to-all costs as clusters grow: wall time and memory, each point
alone.

Every point runs in its own process, ``moesim bench alltoall --json``, so that its peak memory is
measured alone. A point that would take too long or too much memory, judged by how the points before
it grew, is left out and says so; so does a point that moesim refuses.
"""

import json
import math
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from moesim.units import GIB
from moesim.version import VERSION

Row = dict[str, Any]
COLUMNS = (
    *("topology", "cluster", "num_devices", "engine", "granularity", "routing", "bytes_per_pair"),
    *("time_us", "events", "wall_s", "build_s", "peak_memory_gib", "left_out", "version"),
)
#: columns that the terminal shows, with their headings
SHOWN = {
    "cluster": "cluster",
    "engine": "engine",
    "granularity": "granularity",
    "time_us": "time us",
    "events": "events",
    "wall_s": "wall s",
    "build_s": "build s",
    "peak_memory_gib": "GiB",
}
#: least power of the number of devices with which the cost grows; two small points may say less
LEAST_GROWTH = {"bound": 1.0, "flow": 2.0, "event_compiled": 2.0}
_TORI = {
    8: "2x2x2",
    64: "4x4x4",
    256: "4x8x8",
    1024: "8x8x16",
    4096: "16x16x16",
    16384: "16x32x32",
}
_BENCH = (
    "import sys; from moesim.cli import main; "
    "sys.argv[1:1] = ['bench', 'alltoall', '--json']; main()"
)


def named_cluster(topology: str, num_devices: int) -> str:
    """Return the name of a fabric of a given size.

    Args:
        topology: ``star``, ``rail`` or ``torus``.
        num_devices: Number of devices; for a torus a size for which `_TORI` has a shape.
    """
    if topology == "star":
        return f"star-{num_devices}"
    return f"rail-{num_devices // 8}x8" if topology == "rail" else f"torus-{_TORI[num_devices]}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Limits of what a point may take.

    Attributes:
        seconds: Wall time in seconds.
        gib: Memory in GiB.
    """

    seconds: float
    gib: float


def point(cluster: str, engine: str, routing: str) -> Row:
    """Simulate one exchange in its own process.

    Args:
        cluster: Name of the fabric.
        engine: Name of the engine.
        routing: Distribution of bytes over receivers.

        Returns:
            What the process measured, or under ``left_out`` why there is nothing.
    """
    options = ["--cluster", cluster, "--engine", engine, "--bytes-per-pair", "1e6"]
    done = subprocess.run(
        [sys.executable, "-c", _BENCH, *options, "--routing", routing],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    if done.returncode:
        said = done.stderr.strip()
        return {"left_out": said.splitlines()[-1] if said else "killed"}
    found = json.loads(done.stdout)
    return {**found, "peak_memory_gib": found.pop("peak_memory_bytes") / GIB}


def grown(before: Sequence[Row], column: str, size: int, least: float) -> float:
    """Extrapolate a figure by the power with which it grew between the last two points.

    Args:
        before: Rows of smaller points, ascending.
        column: Name of the figure.
        size: Number of devices of the next point.
        least: Least power to assume.
    """
    if not before:
        return 0.0
    last, power = before[-1], least
    if len(before) > 1 and before[-2][column] > 0:
        step = math.log(last["num_devices"] / before[-2]["num_devices"])
        power = max(power, math.log(last[column] / before[-2][column]) / step)
    return last[column] * (size / last["num_devices"]) ** power


def expected(measured: Sequence[Row], size: int, engine: str) -> Limits:
    """Extrapolate what a point will take.

    Args:
        measured: Rows of smaller points, ascending.
        size: Number of devices of the next point.
        engine: Name of its engine.
    """
    least = LEAST_GROWTH[engine]
    seconds = sum(grown(measured, column, size, least) for column in ("wall_s", "build_s"))
    # the memory of Python and its packages does not grow
    base = measured[0]["peak_memory_gib"] if measured else 0.0
    column = "peak_memory_gib"
    above = [{**row, column: max(row[column] - base, 0.0)} for row in measured]
    return Limits(seconds=seconds, gib=base + grown(above, column, size, least))


@dataclass(frozen=True, slots=True, kw_only=True)
class Sweep:
    """One exchange on growing clusters.

    Attributes:
        topology: ``star``, ``rail`` or ``torus``.
        engine: Name of the engine.
        routing: Distribution of bytes over receivers.
        sizes: Numbers of devices, ascending.
    """

    topology: str
    engine: str
    routing: str
    sizes: Sequence[int]


def scaling_rows(sweep: Sweep, limits: Limits, say: Callable[[str], None]) -> list[Row]:
    """Time all sizes of one topology and engine until one would not fit.

    Args:
        sweep: The exchange, and the sizes.
        limits: What a point may take.
        say: Function that is told about each point.

    Returns:
        One row per size; a size that was not simulated says why under ``left_out``.
    """
    rows: list[Row] = []
    measured: list[Row] = []
    topology, engine, routing = sweep.topology, sweep.engine, sweep.routing
    for size in sweep.sizes:
        cluster = named_cluster(topology, size)
        named = {"topology": topology, "cluster": cluster, "num_devices": size}
        named |= {"engine": engine, "routing": routing, "version": VERSION}
        needs = expected(measured, size, engine)
        if needs.seconds > limits.seconds or needs.gib > limits.gib:
            why = f"would take about {needs.seconds:.0f} s and {needs.gib:.1f} GiB"
            row = named | {"left_out": why}
        else:
            row = named | point(cluster, engine, routing)
        rows.append(row)
        if "left_out" in row:
            say(f"{cluster} {engine}: left out: {row['left_out']}")
            continue
        measured.append(row)
        say(
            f"{cluster} {engine}: {row['wall_s']:.4f} s, built in {row['build_s']:.3f} s, "
            f"{row['peak_memory_gib']:.2f} GiB"
        )
    return rows
