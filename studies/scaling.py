"""What do simulations of all-to-alls cost in time and memory, from 8 to 16,384 devices?

Simulates NVLink domains of any size (star), nodes of 8 joined by rails (rail), and TPU tori with
the engines ``bound``, ``flow`` (one transfer per device) and ``event_compiled`` (one per pair, one
chunk each). Every point runs in its own process. A point that would take more than ``--seconds`` or
``--gib``, judging by the growth of smaller ones, is left out, and its row says so
(`moesim.simulation.scaling`).

Writes scaling.csv and scaling.html.
"""

from itertools import product
from pathlib import Path
from typing import Annotated

import typer

from moesim.cli.script import Out, Quick, RoutingText, run_script
from moesim.report.plots.fidelity import write_html
from moesim.report.plots.network import scaling_lines
from moesim.report.ranked import print_ranked
from moesim.report.tables import writable_folder, write_csv
from moesim.report.terminal import print_table, say
from moesim.simulation.scaling import COLUMNS, SHOWN, Limits, Sweep, scaling_rows

OUT = Path(__file__).parent / "out" / "scaling"
SIZES = (8, 64, 256, 1024, 4096, 16384)
TOPOLOGIES = ("star", "rail", "torus")
ENGINES = ("bound", "flow", "event_compiled")
PANELS = dict(
    wall_s="engine, s", build_s="building the program, s", peak_memory_gib="peak memory, GiB"
)


def main(
    routing: RoutingText = "power_law:1.2",
    seconds: Annotated[float, typer.Option(help="Longest point, about.", min=0.0)] = 15.0,
    gib: Annotated[float, typer.Option(help="Most memory of a point, about.", min=0.0)] = 4.0,
    quick: Quick = False,
    out: Out = OUT,
) -> None:
    """Time all-to-alls of growing size and write what they cost."""
    writable_folder(out)
    limits, sizes = Limits(seconds=seconds, gib=gib), SIZES[:2] if quick else SIZES
    rows = []
    for topology, engine in product(TOPOLOGIES, ENGINES):
        sweep = Sweep(topology=topology, engine=engine, routing=routing, sizes=sizes)
        rows += scaling_rows(sweep, limits, say)
    write_csv(out / "scaling.csv", rows, COLUMNS)
    measured = [row for row in rows if "left_out" not in row]
    write_html(out / "scaling.html", scaling_lines(measured, PANELS))
    print_table("An all-to-all, simulated", measured, SHOWN)
    say(f"wrote {out}/scaling.csv and scaling.html")
    last = [row for row in measured if row["num_devices"] == sizes[-1]] or measured
    told = dict(name="{engine} on {cluster}", value="wall_s", reads="{:.3g} s", maximize=False)
    print_ranked(last, **told, next_step="Search with it; let the event engine confirm winners.")


if __name__ == "__main__":
    run_script(main)
