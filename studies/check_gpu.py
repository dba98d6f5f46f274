"""Measure this GPU, search designs for it, run them beside other libraries, and give a verdict.

A profile of this GPU is measured first (GEMMs, streams, gathers, launches; no layer), then experts,
width, top-k and kind of gate are searched on it. The measurement source ``triton`` runs winners and
randomly drawn candidates through this project's kernels in CUDA graphs, as a whole and by phase,
with the L2 cold and warm. The winners' experts also run through vLLM, SGLang, triton_kernels and
torch._grouped_mm, where those are installed. The verdict says in sentences whether the simulator
holds here, how far off it is, what factors fitted to half of the designs would do for the others,
and how fast the kernels are. After ``--minutes`` no further design is begun.

Writes local.toml (the profile), winners.csv, candidates.csv, check.csv, summary.csv, peers.csv and
simulated_against_measured.html. Without a GPU it says so and stops with exit code 2.
"""

from pathlib import Path
from typing import Annotated

import typer

from moesim import Workload, simulate
from moesim.cli.script import Out, Seed, run_script
from moesim.measured.answer import check_answer
from moesim.measured.check_loop import recalibrated, report_checks
from moesim.measured.sources import installed_sources, profilers
from moesim.report import write_csv
from moesim.report.answer import print_answer
from moesim.report.terminal import say
from moesim.search import Space

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
Seconds = Annotated[float, typer.Option(help="About how long to measure the profile.", min=1.0)]
Minutes = Annotated[float, typer.Option(help="After this no further design is begun.", min=0.1)]
Trials = Annotated[int, typer.Option(help="Trials of the search.", min=WINNERS)]
Drawn = Annotated[int, typer.Option(help="Random candidates beside winners.", min=0)]


def main(
    seconds: Seconds = 20.0,
    minutes: Minutes = 2.5,
    trials: Trials = 120,
    drawn: Drawn = 20,
    seed: Seed = 0,
    out: Out = OUT,
) -> None:
    """Measure, search, run, compare and judge; write the profile, five CSV files and a page."""
    # on use: this loads torch, and --help needs none
    from moesim_kernels.sources.gpu_loop import GpuLoopSizes, run_gpu_loop

    parts = profilers()["gpu"], installed_sources()["triton"]
    sizes = GpuLoopSizes(
        seconds=seconds, minutes=minutes, trials=trials, winners=WINNERS, drawn=drawn
    )
    found = run_gpu_loop(parts, SPACE, WORK, sizes, out, say, seed=seed)
    for name, role in (("winners", "winner"), ("candidates", "random")):
        if chosen := [one.candidate for one in found.chosen if one.role == role]:
            write_csv(out / f"{name}.csv", [simulate(c, found.cluster, WORK).row() for c in chosen])
    every = [one.candidate for one in found.chosen]
    fitted = recalibrated(found.rows, every, found.cluster, WORK)
    about = dict(beside=found.beside, notes=found.notes, recalibration=fitted)
    report_checks(found.rows, out, "this GPU", **about)
    files = "local.toml, winners.csv, candidates.csv, check.csv, summary.csv, peers.csv"
    say(f"wrote {out}/{files}, simulated_against_measured.html")
    print_answer(check_answer(found.rows))


if __name__ == "__main__":
    run_script(main)
