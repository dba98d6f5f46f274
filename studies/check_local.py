"""Close the loop on any machine: measure this CPU, search designs, run them, report the errors.

A profile of primitives is measured in about 20 seconds and is not fitted to any layer. Random
layers, all-to-alls, layers over two ranks and the winners of a search are simulated on it, and only
then run for real: `moesim_kernels.sources.closed_loop` describes the four parts.

Writes layers.csv, alltoall.csv, ranks.csv, candidates.csv, summary.csv, targets.csv and
simulated_against_measured.html. A disturbed machine is reported but is not an error.
"""

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from moesim import Workload
from moesim.cli.script import Out, Quick, Seed, run_script
from moesim.measured.loop_scores import against_targets
from moesim.report import write_csv
from moesim.report.plots.fidelity import write_html
from moesim.report.plots.loop import loop_scatter
from moesim.report.ranked import print_trusted
from moesim.report.terminal import print_table, say
from moesim.search import Space

OUT = Path(__file__).parent / "out" / "check_local"
SPACE = Space(
    dense_part="switch-base-128",
    train_tokens=1e10,
    hidden_size=768,
    num_experts=[8, 16, 32, 64],
    top_k=[1, 2, 4],
    expert_intermediate_size=[64, 128, 256, 512, 1024],
    gate=["flat", "two_level:4:2"],
    parallelism=["tp1"],
)
WORK = Workload(num_tokens_per_device=128, routing="zipf:0.8", kv_tokens_per_device=4096)
SCORES = "what rows median mape p90 bias kendall_tau regret inside_percent best_of_8_regret_percent"
SCORES += " roofline_ratio beaten_winners_percent seconds contended"
Seconds = Annotated[float, typer.Option(help="About how long to measure the profile.", min=1.0)]


def main(seconds: Seconds = 20.0, seed: Seed = 0, out: Out = OUT, quick: Quick = False) -> None:
    """Measure, simulate, search, run and compare; write CSV files and a page."""
    from moesim_kernels.sources.closed_loop import QUICK, LoopSizes, run_loop

    sizes = QUICK if quick else replace(LoopSizes(), profile_seconds=seconds)
    found = run_loop(SPACE, WORK, sizes, seed, say)
    targets = against_targets(found.summary)
    tables = dict(layers=found.layers, alltoall=found.exchanges, ranks=found.ranked)
    for name, rows in (tables | dict(candidates=found.candidates, targets=targets)).items():
        if rows:
            write_csv(out / f"{name}.csv", rows)
    write_csv(out / "summary.csv", found.summary, SCORES.split())
    parts = {
        "layers": (found.layers, "simulated_us"),
        "layers, roofline": (found.layers, "roofline_us"),
        "all-to-alls": (found.exchanges, "simulated_us"),
        "layers on 2 ranks, a + b x simulated": (found.ranked, "fitted_us"),
        "candidates": (found.candidates, "fitted_us"),
    }
    figure = loop_scatter(parts, "On this CPU, simulated before it ever ran")
    write_html(out / "simulated_against_measured.html", figure)
    title = "Simulated against measured on this CPU, error in %"
    print_table(title, found.summary, SCORES.split())
    columns = ["what", "score", "target", "found", "met"]
    print_table("Targets, for an idle machine", targets, columns)
    if found.ranked:
        start, slope = found.line
        say(f"layers on 2 ranks: measured = {start:.0f} us + {slope:.2f} x simulated")
    if found.contended:
        say("the machine was disturbed meanwhile: errors are larger than on an idle one")
    files = "layers.csv, alltoall.csv, ranks.csv, candidates.csv, summary.csv, targets.csv"
    say(f"wrote {out}/{files}, simulated_against_measured.html")
    print_trusted(found.summary, name="{what}", value="mape", next_step="Repeat when it is idle.")


if __name__ == "__main__":
    run_script(main)
