"""What simulating an all-to-all costs, from 8 to 16,384 devices: wall time and memory against size.

NVLink domains of any size (star), nodes of 8 joined by rails (rail), and TPU tori, by the engines ``bound``, ``flow``
(one transfer per device) and ``event_compiled`` (one per pair, one chunk each). Every point is a process of its own,
``moesim bench alltoall --json``, so that its peak memory is its own. A point that would take more than ``--seconds``
or ``--gib``, going by how the one before grew, is left out, saying so; so is what moesim itself refuses.

Writes scaling.csv and scaling.html.
"""

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer

from moesim.cli import run_command
from moesim.errors import ConfigError
from moesim.report import write_csv
from moesim.report.network_plots import scaling_lines
from moesim.report.plots import write_html
from moesim.report.terminal import print_table, say
from moesim.units import GIB
from moesim.version import VERSION

OUT = Path(__file__).parent / "out" / "scaling"
SIZES = (8, 64, 256, 1024, 4096, 16384)
TORI = {8: "2x2x2", 64: "4x4x4", 256: "4x8x8", 1024: "8x8x16", 4096: "16x16x16", 16384: "16x32x32"}
TOPOLOGIES = {"star": lambda n: f"star-{n}", "rail": lambda n: f"rail-{n // 8}x8",
              "torus": lambda n: f"torus-{TORI[n]}"}
ENGINES = ("bound", "flow", "event_compiled")
PANELS = {"wall_s": "engine, s", "build_s": "building the program, s", "peak_memory_gib": "peak memory, GiB"}
#: power of the number of devices that cost grows with at least: two small points may say less
LEAST_GROWTH = {"bound": 1.0, "flow": 2.0, "event_compiled": 2.0}
COLUMNS = ("topology", "cluster", "num_devices", "engine", "granularity", "routing", "bytes_per_pair", "time_us",
           "events", "wall_s", "build_s", "peak_memory_gib", "left_out", "version")
BENCH = "import sys; from moesim.cli import main; sys.argv[1:1] = ['bench', 'alltoall', '--json']; main()"


def point(cluster: str, engine: str, routing: str) -> dict[str, object]:
    """One point in its own process: the values of its line of JSON, or why there is none under ``left_out``."""
    done = subprocess.run(
        [sys.executable, "-c", BENCH, "--cluster", cluster, "--engine", engine, "--bytes-per-pair", "1e6",
         "--routing", routing],
        capture_output=True, text=True, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"})
    if done.returncode:
        return {"left_out": done.stderr.strip().splitlines()[-1] if done.stderr.strip() else "killed"}
    found = json.loads(done.stdout)
    return {**found, "peak_memory_gib": found.pop("peak_memory_bytes") / GIB}


def grown(before: list[dict], column: str, size: int, least: float) -> float:
    """A figure at ``size`` devices, by the power with which the last two points grew."""
    if not before:
        return 0.0
    last = before[-1]
    power = least
    if len(before) > 1 and before[-2][column] > 0:
        step = math.log(last["num_devices"] / before[-2]["num_devices"])
        power = max(power, math.log(last[column] / before[-2][column]) / step)
    return last[column] * (size / last["num_devices"]) ** power


def line(topology: str, engine: str, routing: str, sizes: tuple[int, ...], limits: tuple[float, float]) -> list[dict]:
    """All sizes of one topology and engine, until one would not fit."""
    rows: list[dict] = []
    measured: list[dict] = []
    for size in sizes:
        named = {"topology": topology, "cluster": TOPOLOGIES[topology](size), "num_devices": size, "engine": engine,
                 "routing": routing, "version": VERSION}
        least = LEAST_GROWTH[engine]
        seconds = sum(grown(measured, column, size, least) for column in ("wall_s", "build_s"))
        # what Python and its packages take does not grow
        base = measured[0]["peak_memory_gib"] if measured else 0.0
        above = [{**row, "peak_memory_gib": max(row["peak_memory_gib"] - base, 0.0)} for row in measured]
        gib = base + grown(above, "peak_memory_gib", size, least)
        if seconds > limits[0] or gib > limits[1]:
            why = f"would take about {seconds:.0f} s and {gib:.1f} GiB"
            rows.append({**named, "left_out": why})
        else:
            rows.append({**named, **point(str(named["cluster"]), engine, routing)})
        row = rows[-1]
        if "left_out" in row:
            say(f"{row['cluster']} {engine}: left out: {row['left_out']}")
            continue
        measured.append(row)
        say(f"{row['cluster']} {engine}: {row['wall_s']:.4f} s, built in {row['build_s']:.3f} s, "
            f"{row['peak_memory_gib']:.2f} GiB")
    return rows


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    routing: Annotated[str, typer.Option(help="How bytes spread over receivers.")] = "power_law:1.2",
    seconds: Annotated[float, typer.Option(help="Longest point, about.", min=0.0)] = 15.0,
    gib: Annotated[float, typer.Option(help="Memory of a point at most, about.", min=0.0)] = 4.0,
    quick: Annotated[bool, typer.Option("--quick", help="8 and 64 devices only.")] = False,
    out: Annotated[Path, typer.Option(help="Output folder.")] = OUT,
) -> None:
    """Time all-to-alls of growing size and write what they cost."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{out}: cannot write to this output folder: {error.strerror}") from None
    sizes = SIZES[:2] if quick else SIZES
    rows = [row for topology in TOPOLOGIES for engine in ENGINES
            for row in line(topology, engine, routing, sizes, (seconds, gib))]
    write_csv(out / "scaling.csv", rows, COLUMNS)
    measured = [row for row in rows if "left_out" not in row]
    write_html(out / "scaling.html", scaling_lines(measured, PANELS))
    print_table("An all-to-all, simulated", measured, {
        "cluster": "cluster", "engine": "engine", "granularity": "granularity", "time_us": "time us",
        "events": "events", "wall_s": "wall s", "build_s": "build s", "peak_memory_gib": "GiB"})
    say(f"wrote {out}/scaling.csv and scaling.html")


if __name__ == "__main__":
    run_command(app)
