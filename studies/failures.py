"""What do failures cost a month of training, and what do copies of experts, checkpoints and spares
bring?

Runs the job of a plan (`studies/operate_plan.toml`) on 1,024 to 131,072 devices with the failure
rates of each published fleet, with checkpoints only, with partial and sparse checkpoints, and with
copies of experts; every way meets the same failures. States and step time stay as they are.

Writes days.csv (a row per fleet, size and way), summary.csv (means over seeds) and ettr.html.
"""

from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from moesim.cli.script import Out, Quick, run_script
from moesim.operations import load_fleet, planned_training, read_plan, simulate_days
from moesim.report.plots.fidelity import write_html
from moesim.report.plots.operations import lines_by
from moesim.report.ranked import print_ranked
from moesim.report.tables import writable_folder, write_csv
from moesim.report.terminal import print_table, say

HERE = Path(__file__).parent
OUT = HERE / "out" / "failures"
FLEETS = ("llama3-2024", "meta-a100-fleet")
DEVICES = (1024, 4096, 16384, 65536, 131072)
#: way -> kind of checkpoint, copies of experts
WAYS = dict(full=("full", 0), partial=("partial", 0), sparse=("sparse", 0), copies=("full", 1))
MEANS = ("ettr", "down_h", "lost_steps", "lost_update_fraction", "interruptions")
SHOWN = dict(fleet="fleet", devices="devices", way="way", ettr="ETTR", lost_steps="steps lost")
SHOWN |= dict(lost_update_fraction="updates lost")


def main(
    plan: Annotated[Path, typer.Option(help="Plan with [job].")] = HERE / "operate_plan.toml",
    seeds: Annotated[int, typer.Option(help="Seeds, from 0.", min=1)] = 5,
    quick: Quick = False,
    out: Out = OUT,
) -> None:
    """Simulate every way on every size, and write what it comes to."""
    writable_folder(out)
    base = planned_training(read_plan(plan), plan.name)
    sizes, count = (DEVICES[:2], 1) if quick else (DEVICES, seeds)
    rows, table = [], []
    for fleet, devices in product(FLEETS, sizes):
        topology = replace(base.job.topology, devices=devices)
        job = replace(base.job, topology=topology)
        part = replace(base, job=job, causes=load_fleet(fleet).causes)
        draws = {seed: part.draws(seed) for seed in range(count)}
        for way, (kind, degree) in WAYS.items():
            setting = replace(
                part,
                checkpoint=replace(part.checkpoint, kind=kind),
                replication=replace(part.replication, degree=degree),
            )
            found = [simulate_days(setting, seed, drawn).row() for seed, drawn in draws.items()]
            named = dict(fleet=fleet, devices=devices, way=way)
            rows += [named | row for row in found]
            table.append(named | {key: np.mean([row[key] for row in found]) for key in MEANS})
        say(f"{fleet}, {devices:,} devices: {len(WAYS)} ways, {count} seeds")
    write_csv(out / "days.csv", rows)
    write_csv(out / "summary.csv", table)
    drawn = [row | {"line": f"{row['way']}, {row['fleet']}"} for row in table]
    title = "Effective training time ratio by number of devices"
    chart = lines_by(drawn, ("devices", "ettr"), by="line", title=title, log="x")
    write_html(out / "ettr.html", chart)
    print_table(f"{base.days:g} days, mean of {count} seeds", table, SHOWN)
    say(f"wrote {out}/days.csv, summary.csv and ettr.html")
    last = [row for row in table if (row["fleet"], row["devices"]) == (FLEETS[0], sizes[-1])]
    what = dict(name="{way} on {devices:,} devices of {fleet}", value="ettr", reads="ETTR {:.3f}")
    print_ranked(last, **what, maximize=True, next_step="Repeat with your own failure rates.")


if __name__ == "__main__":
    run_script(main)
