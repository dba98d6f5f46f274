"""Close the loop on a GPU: measure it, search designs for it, run them, and report the errors.

A profile of this GPU is measured first (GEMMs, streams, gathers, launches; no layer), then experts,
width, top-k and kind of gate are searched on it. The measurement source ``triton`` runs winners and
randomly drawn candidates through this project's kernels in CUDA graphs, as a whole and by phase,
with the L2 cold and warm. Tables show each measured time next to the simulated one, its interval
and a verdict, and then errors, rank correlation and the regret of the simulated best.

Writes winners.csv, candidates.csv, check.csv, summary.csv and simulated_against_measured.html.
Without a GPU it says so and stops with exit code 2.
"""

from pathlib import Path
from typing import Annotated

import typer

from moesim import Workload, load_profile, simulate
from moesim.cli.script import Out, Seed, run_script
from moesim.errors import MeasurementError
from moesim.hardware import single_device
from moesim.measured.check_loop import check_each, report_checks
from moesim.measured.sources import installed_sources, profilers
from moesim.report import write_csv
from moesim.report.terminal import say
from moesim.search import Space
from moesim.search.drawn import winners_and_drawn

OUT = Path(__file__).parent / "out" / "check_gpu"
SPACE = Space(
    dense_part="olmoe-1b-7b",
    train_tokens=1e12,
    hidden_size=2048,
    num_experts=[8, 16, 32, 64, 128],
    top_k=[1, 2, 4, 8],
    expert_intermediate_size=[256, 512, 1024, 2048],
    gate=["flat", "two_level:8:4"],
    parallelism=["tp1"],
)
WORK = Workload(num_tokens_per_device=2048, routing="zipf:0.8", kv_tokens_per_device=8192)
WINNERS = 8


def main(
    seconds: Annotated[float, typer.Option(help="About how long to measure.", min=1.0)] = 20.0,
    trials: Annotated[int, typer.Option(help="Trials of the search.", min=WINNERS)] = 120,
    drawn: Annotated[int, typer.Option(help="Random candidates beside winners.", min=0)] = 20,
    seed: Seed = 0,
    out: Out = OUT,
) -> None:
    """Measure, search, run and compare; write four CSV files and a page."""
    profiler, source = profilers()["gpu"], installed_sources()["triton"]
    for what in (profiler, source):
        if reason := what.unavailable_because():
            other = "studies/check_local.py does the same on a CPU"
            raise MeasurementError(f"check_gpu: {reason}; {other}")
    say(f"measuring this GPU, about {seconds:.0f} s")
    out.mkdir(parents=True, exist_ok=True)
    profiler.write(out / "local.toml", seconds, "studies/check_gpu.py")
    cluster = single_device(load_profile(str(out / "local.toml")))
    say("searching")
    sizes = dict(trials=trials, winners=WINNERS, drawn=drawn, seed=seed)
    found = winners_and_drawn(SPACE, cluster, WORK, **sizes)
    chosen = [(one.role, one.candidate) for one in found]
    simulated = [(role, simulate(one, cluster, WORK).row()) for role, one in chosen]
    for name, wanted in (("winners", "winner"), ("candidates", "random")):
        if rows := [row for role, row in simulated if role == wanted]:
            write_csv(out / f"{name}.csv", rows)
    report_checks(check_each(source, chosen, cluster, WORK, say), out, "this GPU")
    files = "winners.csv, candidates.csv, check.csv, summary.csv, simulated_against_measured.html"
    say(f"wrote {out}/{files}")


if __name__ == "__main__":
    run_script(main)
