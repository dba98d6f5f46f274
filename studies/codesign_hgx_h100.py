"""Expert count, placement and gating hierarchy for one HGX H100 node, and what real kernels say about the winners.

Searches loss against layer throughput for a model of hidden size 4096 with 32 MoE layers, trained on 2e12 tokens,
served with 1,024 tokens and 131,072 tokens of KV cache per device under a power-law load. Then the Pareto winners are
simulated again chunk by chunk, and checked: against measured Triton kernels (every architecture of this width that
was measured on an H100 is tried first, so there is always something to compare), on this machine's GPU if it has one,
and, scaled down, numerically through the Triton interpreter and by the clock on this CPU.

Writes trials.csv, pareto.csv, winners.csv and check.csv. The same command again continues where it stopped.
"""

from pathlib import Path
from typing import Annotated

import typer

from moesim import Candidate, Cluster, Workload, load_cluster, simulate
from moesim.cli import run_script
from moesim.measured.check import check_all, print_check, write_check
from moesim.measured.silicon_source import measured_architectures
from moesim.measured.sources import installed_sources
from moesim.quality import estimate_loss
from moesim.report import write_csv
from moesim.report.terminal import print_table, say
from moesim.search import Space
from moesim.search.watch import watched_study, write_study

OUT = Path(__file__).parent / "out" / "codesign_hgx_h100"
SPACE = Space(
    dense_part="qwen3-235b-a22b", num_layers=32, train_tokens=2e12, hidden_size=4096,
    num_experts=[8, 16, 32, 64, 128, 256, 512], top_k=[1, 2, 4, 6, 8, 10, 22],
    expert_intermediate_size=[1024, 1536, 2048, 2688, 4096, 14336],
    gate=["flat", "group_limited:8:4", "group_limited:4:2", "two_level:8:4", "two_level:16:4"],
    placement=["contiguous", "balanced", "eplb"], num_replicas=[0, 8, 32],
    parallelism=["ep8tp1", "ep4tp2", "ep2tp4", "ep1tp8"], precision=["bf16", "fp8"],
)
WINNERS = 8
#: what a measured architecture leaves open: the plainest choice, which is what the measured kernels ran
PLAIN = {"gate": "flat", "placement": "contiguous", "num_replicas": 0}


def winner_rows(winners: list[Candidate], cluster: Cluster, workload: Workload) -> list[dict[str, object]]:
    """Simulate the winners with the event engine; loss beside it."""
    rows = []
    for rank, winner in enumerate(winners):
        loss = estimate_loss(winner.layer, SPACE.dense(), train_tokens=SPACE.train_tokens)
        rows.append({"rank": rank, **simulate(winner, cluster, workload, engine="event").row(), **loss.row()})
    return rows


def main(
    trials: Annotated[int, typer.Option(help="Trials in all, those of earlier runs in --out included.")] = 2000,
    seed: Annotated[int, typer.Option(help="Seed of search and routing.")] = 0,
    out: Annotated[Path, typer.Option(help="Output folder.")] = OUT,
    workers: Annotated[int, typer.Option(help="Processes that evaluate trials.")] = 1,
    fresh: Annotated[bool, typer.Option("--fresh", help="Discard what the output folder holds.")] = False,
) -> None:
    """Search, simulate the winners again, check them, write four CSV files."""
    cluster = load_cluster("hgx-h100-8")
    workload = Workload(num_tokens_per_device=1024, routing="power_law:1.2", kv_tokens_per_device=131072, seed=seed)
    measured = [point | PLAIN for point in measured_architectures(cluster, workload, SPACE.hidden_size)]
    study = watched_study(SPACE, cluster, workload, objectives=["loss", "layer_tokens_per_s_per_device"],
                          num_trials=trials, seed=seed, storage=out, enqueue=measured, num_workers=workers, fresh=fresh)
    write_study(study, out)

    winners = study.pareto(limit=WINNERS)
    rows = winner_rows(winners, cluster, workload)
    write_csv(out / "winners.csv", rows)
    print_table("Pareto winners, simulated with the event engine", rows, {
        "candidate": "candidate", "loss": "loss", "layer_time_us": "layer us", "layer_time_low_us": "low",
        "layer_time_high_us": "high", "layer_tokens_per_s_per_device": "tokens/s/device", "peak_memory_gib": "GiB",
        "bottleneck": "bottleneck"})

    checks = check_all(winners, [SPACE.decode(point, cluster)[0] for point in measured], cluster, workload,
                       installed_sources(), say)
    write_check(out / "check.csv", checks)
    print_check(checks)
    say(f"wrote {out}/trials.csv, pareto.csv, winners.csv, check.csv")


if __name__ == "__main__":
    run_script(main)
