"""How well does one transfer per device stand for one per pair, in layer time and expert starts?

Lowers the same layer at device and at pair granularity and compares the exact fluid model of the
first with the second, chunk by chunk (``event_compiled``; ``--reference flow`` up to 64 devices),
over topologies and over the six kinds of traffic that `moesim.simulation.granularity` describes.
Writes granularity.csv (a row per case), summary.csv (by topology) and granularity.html.
"""

from itertools import product
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from moesim import load_cluster
from moesim.cli.script import Out, Quick, run_script
from moesim.design.schedule import Schedule
from moesim.errors import ConfigError
from moesim.report.plots.fidelity import write_html
from moesim.report.plots.network import granularity_errors
from moesim.report.ranked import print_trusted
from moesim.report.tables import writable_folder, write_csv
from moesim.report.terminal import print_table, say
from moesim.simulation import granularity as grains

OUT = Path(__file__).parent / "out" / "granularity"
CLUSTERS = dict(star="star-8 star-16 star-64 star-256")
CLUSTERS |= dict(rail="rail-2x8 rail-4x8 rail-8x8 rail-16x8 rail-32x8")
CLUSTERS |= dict(torus="torus-4x4 torus-8x8 torus-4x4x4 torus-8x16 torus-4x8x8")
QUICK = dict(star="star-8", rail="rail-2x4", torus="torus-2x4")
SUMMARY = dict(topology="topology", traffic="traffic", cases="cases")
SUMMARY |= dict(mean_error_percent="mean %", worst_error_percent="worst %")
SUMMARY |= dict(mean_start_error_percent="start mean %", worst_start_error_percent="start worst %")
TITLE = "Layer time at device against pair granularity: |error|, and |error| of expert starts"
TITLE += " over layer time"
ENGINES, VARIED = ("event_compiled", "flow"), ("traffic", "micro_batches", "seed")
Reference = Annotated[str, typer.Option(help="event_compiled, or flow (up to 64 devices).")]


def main(
    tokens: Annotated[int, typer.Option(help="Tokens of a device.")] = 256,
    seeds: Annotated[int, typer.Option(help="Seeds, from 0.")] = 2,
    reference: Reference = ENGINES[0],
    exchange: Annotated[str | None, typer.Option(help="By default the ideal one.")] = None,
    quick: Quick = False,
    out: Out = OUT,
) -> None:
    """Compare device with pair granularity and write where they differ."""
    if reference not in ENGINES:
        raise ConfigError(f"--reference: expected {' or '.join(ENGINES)}, got {reference!r}")
    if tokens < 8 or seeds < 1:
        rule = "expected at least 8 tokens and 1 seed"
        raise ConfigError(f"--tokens, --seeds: {rule}, got {tokens} and {seeds}")
    writable_folder(out)
    Schedule(exchange=exchange)  # refuses an unknown exchange before any work is done
    rows, common = [], dict(tokens=tokens, engine=reference, exchange=exchange)
    for topology, names in (QUICK if quick else CLUSTERS).items():
        for name in names.split():
            if reference == "flow" and load_cluster(name).num_devices > grains.MOST_FLOW_DEVICES:
                say(f"{name}: left out: flow at pair granularity takes minutes; use {ENGINES[0]}")
                continue
            cases = product(grains.TRAFFIC, (1, 2), range(seeds))
            base = dict(topology=topology, cluster=name) | common
            asked = [base | dict(zip(VARIED, case, strict=True)) for case in cases]
            found = [grains.compare(grains.GranularityCase(**case)) for case in asked]
            errors = [abs(row["error_percent"]) for row in found]
            say(f"{name}: mean {np.mean(errors):.2f} %, worst {max(errors):.2f} %")
            rows += found
    write_csv(out / "granularity.csv", rows)
    write_csv(out / "summary.csv", table := grains.error_summary(rows))
    write_html(out / "granularity.html", granularity_errors(rows))
    print_table(TITLE, table, SUMMARY)
    say(f"wrote {out}/granularity.csv, summary.csv and granularity.html")
    told = dict(name="{topology} {traffic}", value="mean_error_percent", against="pair granularity")
    print_trusted(table, **told, next_step="Use --granularity pair where it is worse.")


if __name__ == "__main__":
    run_script(main)
