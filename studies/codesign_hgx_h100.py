"""Expert count, placement and gating hierarchy for one HGX H100 node, and what real kernels say about the winners.

Searches loss, layer throughput and energy for a model of hidden size 4096 with 32 MoE layers, trained on 2e12 tokens,
served with 1,024 tokens and 131,072 tokens of KV cache per device under a power-law load. (Price per token follows
from throughput on one node; its column is there.) The bound engine looks at ``--screen`` points first, the fluid engine
simulates the best of them and what the sampler makes of these. Winners whose intervals overlap are one group. They are
simulated again chunk by chunk, and checked: against measured Triton kernels (every architecture of this width that was
measured on an H100 is tried first, so there is always something to compare), on this machine's GPU if it has one, and,
scaled down, numerically through the Triton interpreter and by the clock on this CPU.

Writes trials.csv, pareto.csv, importance.csv, winners.csv, check.csv and front.html. The same command again continues
where it stopped.
"""

from pathlib import Path
from typing import Annotated

import typer

from moesim import Workload, load_cluster
from moesim.cli import run_script
from moesim.measured.check import check_all, print_check, write_check
from moesim.measured.silicon_source import measured_architectures
from moesim.measured.sources import installed_sources
from moesim.report.terminal import say
from moesim.search import Space
from moesim.search.findings import show_findings
from moesim.search.watch import watched_study

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


def main(
    trials: Annotated[int, typer.Option(help="Trials in all, those of earlier runs in --out included.")] = 2000,
    seed: Annotated[int, typer.Option(help="Seed of search and routing.")] = 0,
    out: Annotated[Path, typer.Option(help="Output folder.")] = OUT,
    screen: Annotated[int, typer.Option(help="Points the bound engine looks at first; 0: none.", min=0)] = 10000,
    quick: Annotated[bool, typer.Option("--quick", help="40 trials, 500 screened points, no check.")] = False,
    workers: Annotated[int, typer.Option(help="Processes that evaluate trials.")] = 2,
    fresh: Annotated[bool, typer.Option("--fresh", help="Discard what the output folder holds.")] = False,
) -> None:
    """Search, simulate the winners again, check them, write tables and a figure."""
    if quick:
        trials, screen, workers = min(trials, 40), min(screen, 500), 1
    cluster = load_cluster("hgx-h100-8")
    workload = Workload(num_tokens_per_device=1024, routing="power_law:1.2", kv_tokens_per_device=131072, seed=seed)
    measured = [point | PLAIN for point in measured_architectures(cluster, workload, SPACE.hidden_size)]
    study = watched_study(
        SPACE, cluster, workload, objectives=["loss", "layer_tokens_per_s_per_device", "layer_joules_per_token"],
        num_trials=trials, screen=screen, seed=seed, storage=out, enqueue=measured, num_workers=workers, fresh=fresh)
    show_findings(study, out, limit=WINNERS, title="HGX H100")
    if quick:
        return

    tried = [SPACE.decode(point, cluster)[0] for point in measured]
    checks = check_all(study.pareto(limit=WINNERS), tried, cluster, workload, installed_sources(), say)
    write_check(out / "check.csv", checks)
    print_check(checks)
    say(f"wrote {out}/trials.csv, pareto.csv, winners.csv, check.csv, front.html")


if __name__ == "__main__":
    run_script(main)
