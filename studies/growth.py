"""From 1,000 to 1,000,000 experts over a year: devices, traffic, downtime and loss of each stage.

Grows the model of a plan (`studies/operate_growth.toml`) with experts of several widths, upcycled
or new, in training and in service; what fits nowhere is refused, and said.
Writes stages.csv (a row per stage), refused.csv, devices.html and loss.html.
"""

from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Annotated

import typer

from moesim.cli.script import Out, Quick, run_script
from moesim.errors import CapacityError
from moesim.operations import grow, planned_growth, read_plan, saved_device_hours
from moesim.report.plots.fidelity import write_html
from moesim.report.plots.operations import lines_by
from moesim.report.ranked import print_ranked
from moesim.report.tables import writable_folder, write_csv
from moesim.report.terminal import print_table, say

HERE = Path(__file__).parent
OUT = HERE / "out" / "growth"
WIDTHS = (16, 64, 256, 1024)
SHOWN = dict(way="way", num_experts="experts", devices="devices", loss="loss", loss_low="low")
SHOWN |= dict(loss_high="high", moved_gib="moved GiB", downtime_s="down s")


def main(
    plan: Annotated[Path, typer.Option(help="Plan.")] = HERE / "operate_growth.toml",
    quick: Quick = False,
    out: Out = OUT,
) -> None:
    """Grow in every way, and write what each stage comes to."""
    writable_folder(out)
    base = planned_growth(read_plan(plan), plan.name)
    rows, refused = [], []
    ways = product(WIDTHS[1:2] if quick else WIDTHS, (True, False), (True, False))
    for width, training, upcycled in ways:
        way = f"width {width}, {'training' if training else 'service'}"
        way += ", upcycled" if upcycled else ", new experts"
        grown = replace(
            base,
            expert_width=width,
            training=training,
            stages=tuple(replace(stage, upcycled=upcycled) for stage in base.stages),
        )
        try:
            stages = grow(grown)
        except CapacityError as error:
            refused.append({"way": way, "reason": str(error)})
            say(f"{way}: {error}")
            continue
        saved = saved_device_hours(stages)
        rows += [dict(way=way, saved_device_hours=saved) | stage.row() for stage in stages]
        say(f"{way}: {stages[-1].devices:,} devices at the end, {100 * saved:.0f} % saved")
    write_csv(out / "stages.csv", rows)
    write_csv(out / "refused.csv", refused, ["way", "reason"])
    for name, column in (("devices", "devices"), ("loss", "loss")):
        ends = ("loss_low", "loss_high") if name == "loss" else None
        chart = lines_by(
            rows,
            ("num_experts", column),
            by="way",
            title=f"Growth: {column} by number of experts",
            low_high=ends,
            log="x" if name == "loss" else "xy",
        )
        write_html(out / f"{name}.html", chart)
    print_table(f"Growth of {base.model.name}", rows, SHOWN)
    say(f"wrote {out}/stages.csv, refused.csv, devices.html and loss.html")
    last = [row for row in rows if row["month"] == max(r["month"] for r in rows)]
    told = dict(name="{way}", value="saved_device_hours", reads="{:.1%} of device-hours saved")
    print_ranked(last, **told, maximize=True, next_step="Train the first two stages small.")


if __name__ == "__main__":
    run_script(main)
