"""Train real MoE layers on this CPU, simulated before they ever ran: forward, backward and AdamW.

A profile of primitives is measured in about 20 seconds and is not fitted to any layer. Random
layers are simulated on it and then trained for real, on one core and over two ranks joined by gloo
(`moesim_kernels.sources.train_loop`).

Writes steps.csv (a row per layer), summary.csv and simulated_against_measured.html. A disturbed
machine is reported but is not an error.
"""

import tempfile
from pathlib import Path
from typing import Annotated

import typer

from moesim.cli.script import Out, Quick, Seed, run_script
from moesim.errors import MeasurementError
from moesim.hardware import load_profile
from moesim.report import write_csv
from moesim.report.plots.fidelity import write_html
from moesim.report.plots.loop import loop_scatter
from moesim.report.ranked import print_trusted
from moesim.report.tables import writable_folder
from moesim.report.terminal import print_table, say

OUT = Path(__file__).parent / "out" / "train_local"
SCORES = ["what", "rows", "median", "mape", "p90", "bias", "kendall_tau", "regret", "contended"]
Layers = Annotated[int, typer.Option(help="Layers on one core, and over two ranks.", min=4)]


def main(layers: Layers = 28, seed: Seed = 0, out: Out = OUT, quick: Quick = False) -> None:
    """Measure, simulate, train and compare; write CSV files and a page."""
    # on use: this loads torch, and --help needs none
    from moesim_kernels.profile.cpu_profile import write_profile
    from moesim_kernels.sources.train_loop import training_rows, training_summary

    writable_folder(out)
    count, fitted_on = (4, 2) if quick else (layers, max(layers // 4, 2))
    sizes = dict(seconds=0.0 if quick else 0.25, fitted_on=fitted_on)
    with tempfile.TemporaryDirectory() as folder:
        say("measuring this CPU")
        write_profile(path := Path(folder) / "local.toml", 1.0 if quick else 20.0, fabric=True)
        profile = load_profile(str(path))
    rows = training_rows(profile, count, seed, 1, **sizes)
    say(f"trained {count} layers on one core")
    if profile.host_fabric is not None:
        try:
            rows += training_rows(profile, count, seed, 2, **sizes)
        except MeasurementError as error:
            say(f"several ranks: not here ({error})")
    write_csv(out / "steps.csv", rows)
    write_csv(out / "summary.csv", summary := training_summary(rows), SCORES)
    parts = {"one core": ([row for row in rows if row["ranks"] == 1], "simulated_us")}
    if several := [row for row in rows if row["ranks"] > 1 and not row["in_fit"]]:
        parts["two ranks, a + b x simulated"] = (several, "fitted_us")
    figure = loop_scatter(parts, "Training steps on this CPU, simulated before they ran")
    write_html(out / "simulated_against_measured.html", figure)
    print_table("Training steps, simulated against measured, error in %", summary, SCORES)
    say(f"wrote {out}/steps.csv, summary.csv and simulated_against_measured.html")
    print_trusted(summary, name="{what}", value="mape", next_step="Repeat it on an idle machine.")


if __name__ == "__main__":
    run_script(main)
