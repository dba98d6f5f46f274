"""The closed loop on a GPU: measure it, search a small space for it, run what was found, and say how far off it was.

A profile of this GPU is measured first (GEMMs, streams, gathers, launches; no layer), then experts, width, top-k and
kind of gate are searched on it. Winners and candidates drawn at random are run through this project's kernels, in CUDA
graphs, as a whole and by phase, L2 cold and warm: the measurement source ``triton``. Beside each measured time stand
the simulated one, its interval and a verdict, and below them errors, rank correlation and the regret of the simulated
best.

Writes winners.csv, candidates.csv, check.csv, summary.csv and simulated_against_measured.html. Without a GPU it says so
and stops with exit code 2.
"""

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from moesim import Candidate, Cluster, Workload, load_profile, simulate
from moesim.cli import run_script
from moesim.errors import MeasurementError
from moesim.hardware import single_device
from moesim.measured.check import (
    check_candidate,
    print_check,
    source_scores,
    winner_verdicts,
    write_check,
)
from moesim.measured.sources import CheckRow, MeasurementSource, installed_sources, profilers
from moesim.report import write_csv
from moesim.report.plots.fidelity import write_html
from moesim.report.terminal import print_table, say
from moesim.search import Space, run_study

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
WINNERS, RANDOM, TRIALS = 8, 20, 120


def chosen(
    cluster: Cluster,
    trials: int,
    drawn: int,
    seed: int,
    space: Space = SPACE,
    workload: Workload = WORK,
) -> list[tuple[str, Candidate]]:
    """Winners of a search, and candidates drawn from the rest of what it tried: (role, candidate).

    Args:
        cluster: The measured device.
        trials: Of the search.
        drawn: Random candidates at most.
        seed: Of search and draw.
        space: Choices.
        workload: Tokens and routing.
    """
    with tempfile.TemporaryDirectory() as folder:
        study = run_study(
            space,
            cluster,
            workload,
            objectives=["loss", "layer_time_us"],
            num_trials=trials,
            seed=seed,
            sampler="nsga2",
            storage=folder,
        )
    winners = {candidate.label: candidate for candidate in study.pareto(limit=WINNERS)}
    tried = {
        str(trial.evaluation.row["candidate"]): trial for trial in study.trials if trial.feasible
    }
    others = [label for label in tried if label not in winners]
    some = np.random.default_rng(seed).permutation(others)[:drawn]
    return [("winner", candidate) for candidate in winners.values()] + [
        ("random", space.decode(tried[label].params, cluster)[0]) for label in some
    ]


def run_all(
    source: MeasurementSource,
    candidates: Sequence[tuple[str, Candidate]],
    cluster: Cluster,
    workload: Workload,
    told: Callable[[str], None] = say,
) -> list[tuple[str, CheckRow]]:
    """Check every candidate; what the source refuses is a row that says why."""
    rows: list[tuple[str, CheckRow]] = []
    for number, (role, candidate) in enumerate(candidates, 1):
        told(f"{number} of {len(candidates)}: {candidate.label}")
        rows += [(role, row) for row in check_candidate(source, candidate, cluster, workload)]
    return rows


def figure(rows: Sequence[CheckRow]):
    """Simulated over measured, a colour for each quantity."""
    import plotly.graph_objects as go

    timed = [row for row in rows if row.is_time and row.measured is not None]
    made = go.Figure(
        [
            go.Scatter(
                x=[row.measured for row in timed if row.quantity == quantity],
                y=[row.simulated for row in timed if row.quantity == quantity],
                mode="markers",
                text=[row.candidate for row in timed if row.quantity == quantity],
                name=quantity.removesuffix("_time_us"),
            )
            for quantity in dict.fromkeys(row.quantity for row in timed)
        ]
    )
    ends = (
        [min(row.measured or 1.0 for row in timed), max(row.measured or 1.0 for row in timed)]
        if timed
        else [1, 10]
    )
    made.add_trace(go.Scatter(x=ends, y=ends, mode="lines", name="equal"))
    made.update_layout(title="On this GPU, simulated before it ever ran", template="plotly_white")
    made.update_xaxes(type="log", title="measured, us")
    made.update_yaxes(type="log", title="simulated, us")
    return made


def report(rows: Sequence[tuple[str, CheckRow]], out: Path) -> None:
    """Write check.csv, summary.csv and the page, and print them."""
    every = [row for _, row in rows]
    write_check(out / "check.csv", rows)
    print_check(list(rows))
    summary: list[dict[str, Any]] = source_scores(every)
    if summary:
        columns = [
            "source",
            "quantity",
            "rows",
            "median",
            "mape",
            "p90",
            "bias",
            "kendall_tau",
            "regret",
        ]
        write_csv(out / "summary.csv", summary, columns)
        print_table("Simulated against measured on this GPU, error in %", summary, columns)
    write_html(out / "simulated_against_measured.html", figure(every))
    for candidate, verdict in winner_verdicts(
        row for role, row in rows if role == "winner"
    ).items():
        print(f"{verdict}: {candidate}")


def main(
    seconds: Annotated[
        float, typer.Option(help="About how long to measure the profile.", min=1.0)
    ] = 20.0,
    trials: Annotated[int, typer.Option(help="Trials of the search.", min=WINNERS)] = TRIALS,
    drawn: Annotated[
        int, typer.Option(help="Random candidates to run beside the winners.", min=0)
    ] = RANDOM,
    seed: Annotated[int, typer.Option(help="Seed of search and draws.")] = 0,
    out: Annotated[Path, typer.Option(help="Output folder.")] = OUT,
) -> None:
    """Measure, search, run, compare; four CSV files and a page."""
    profiler, source = profilers()["gpu"], installed_sources()["triton"]
    for what in (profiler, source):
        if reason := what.unavailable_because():
            raise MeasurementError(
                f"check_gpu: {reason}; studies/check_local.py does the same on a CPU"
            )
    say(f"measuring this GPU, about {seconds:.0f} s")
    out.mkdir(parents=True, exist_ok=True)
    profiler.write(out / "local.toml", seconds, "studies/check_gpu.py")
    cluster = single_device(load_profile(str(out / "local.toml")))
    say("searching")
    candidates = chosen(cluster, trials, drawn, seed)
    simulated = [(role, simulate(candidate, cluster, WORK).row()) for role, candidate in candidates]
    for name, wanted in (("winners", "winner"), ("candidates", "random")):
        if found := [row for role, row in simulated if role == wanted]:
            write_csv(out / f"{name}.csv", found)
    report(run_all(source, candidates, cluster, WORK), out)
    say(
        f"wrote {out}/winners.csv, candidates.csv, check.csv, summary.csv, simulated_against_measured.html"
    )


if __name__ == "__main__":
    run_script(main)
