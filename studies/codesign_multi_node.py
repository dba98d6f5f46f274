"""Which DeepSeek-V3-sized model, gate, placement and exchange to build for 8 nodes of 8 H100?

Searches around DeepSeek-V3's dense part (hidden size 7168, 14.8e12 training tokens, one shared expert): experts, top-k,
width, gates whose groups are the nodes (score and balancing, the same for all, are left out), placements with and
without a copy per device, number formats, exchanges and micro-batches. Every point (or ``--screen`` of them) is looked
at by the bound engine, the best are simulated by the fluid engine, and the winners again chunk by chunk. The published
design is one of the points and always tried.

On one cluster a token's price follows from throughput alone, so the third objective is energy; ``--hardware`` lets NIC
and HBM rates vary as well (twice the NIC, an H200's bandwidth), and then it is price. All simulated devices count as
``spec_sheet`` then. ``--phase decode`` takes 128 tokens per device with 4,096 tokens of cache each, and layers of at
most 1,000 us: 61 of them take 61 ms for a token.

Writes trials.csv, pareto.csv, importance.csv, winners.csv and front.html. The same command again continues.
"""

from pathlib import Path
from typing import Annotated, Any

import typer

from moesim import Workload, load_cluster
from moesim.cli import run_command
from moesim.errors import ConfigError
from moesim.report.terminal import say
from moesim.search import Space, Study
from moesim.search.findings import show_findings
from moesim.search.watch import watched_study

OUT = Path(__file__).parent / "out" / "codesign_multi_node"
CLUSTER = "h100-rail-8x8"
CHOICES: dict[str, Any] = {
    "dense_part": "deepseek-v3", "train_tokens": 14.8e12, "hidden_size": 7168, "num_shared_experts": 1,
    "num_experts": [128, 256, 512], "top_k": [4, 8, 16], "expert_intermediate_size": [1024, 1536, 2048, 3072],
    "gate": ["flat", "group_limited:8:4", "group_limited:8:3"],
    "placement": ["contiguous", "eplb", "eplb_hierarchical/nearest"], "num_replicas": [64, 128],
    "precision": ["bf16", "fp8"], "exchange": ["nccl", "deepep_normal", "deepep_ll", "hierarchical"],
    "num_micro_batches": [1, 2]}
#: twice the NIC, and the bandwidth of an H200
HARDWARE: dict[str, list[Any]] = {"nic_gb_per_s": ["1x", "2x"], "hbm_gb_per_s": [3350.0, 4800.0]}
#: tokens of a device, tokens in its KV cache, constraints
PHASES: dict[str, tuple[int, int, tuple[str, ...]]] = {
    "prefill": (2048, 65536, ()), "decode": (128, 128 * 4096, ("layer_time_us <= 1000",))}
PUBLISHED = {"num_experts": 256, "top_k": 8, "expert_intermediate_size": 2048, "gate": "group_limited:8:4",
             "precision": "fp8", "placement": "eplb", "num_replicas": 64, "exchange": "deepep_normal",
             "num_micro_batches": 2}
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


def against_published(study: Study) -> str:
    """What the search found that is better than the published design in everything."""
    mine = study.trials[0]
    row = mine.evaluation.row
    if not mine.feasible:
        return f"the published design breaks a constraint: {mine.row()['broken_constraints'] or mine.state}"
    better = [t for t in study.pareto_trials() if t is not mine
              and t.evaluation.row["loss"] <= row["loss"]
              and t.evaluation.row["layer_tokens_per_s_per_device"] > row["layer_tokens_per_s_per_device"]]
    text = (f"published design: loss {row['loss']:.4f}, {row['layer_tokens_per_s_per_device']:,.0f} tokens/s/device, "
            f"{row['layer_time_low_us']:,.0f}-{row['layer_time_high_us']:,.0f} us")
    if not better:
        return f"{text}; nothing found is as good in loss and faster"
    best = max(better, key=lambda t: t.evaluation.row["layer_tokens_per_s_per_device"]).evaluation.row
    tied = best["layer_time_high_us"] >= row["layer_time_low_us"]
    return (f"{text}; as good in loss and faster{', but within the intervals' if tied else ''}: {best['candidate']}, "
            f"loss {best['loss']:.4f}{' (extrapolated)' if best['loss_extrapolated'] else ''}, "
            f"x {row['layer_time_us'] / best['layer_time_us']:.2f}")


@app.command()
def main(
    phase: Annotated[str, typer.Option(help="prefill or decode.")] = "prefill",
    trials: Annotated[int, typer.Option(help="Trials in all, those of earlier runs in --out included.")] = 400,
    screen: Annotated[int, typer.Option(help="Points that the bound engine looks at first; 0: none.", min=0)] = 20000,
    routing: Annotated[str, typer.Option(help="Distribution of load.")] = "zipf:0.8",
    hardware: Annotated[bool, typer.Option("--hardware", help="Vary NIC and HBM rates too.")] = False,
    economics: Annotated[str, typer.Option(help="Cost and power model: a name or a file.")] = "default",
    seed: Annotated[int, typer.Option(help="Seed of search and routing.")] = 0,
    workers: Annotated[int, typer.Option(help="Processes that evaluate trials.")] = 2,
    quick: Annotated[bool, typer.Option("--quick", help="A small space and few trials, for a test.")] = False,
    fresh: Annotated[bool, typer.Option("--fresh", help="Discard what the output folder holds.")] = False,
    out: Annotated[Path | None, typer.Option(help="Output folder.")] = None,
) -> None:
    """Search, confirm the winners, compare with the published design."""
    if phase not in PHASES:
        raise ConfigError(f"--phase: expected {' or '.join(PHASES)}, got {phase!r}")
    tokens, kv_tokens, constraints = PHASES[phase]
    choices = dict(CHOICES)
    if quick:
        choices |= {"num_experts": [128, 256], "top_k": [8], "placement": ["eplb"], "num_replicas": [64]}
        tokens, trials, screen, workers = 128, min(trials, 40), min(screen, 200), 1
    space = Space(**choices, hardware=HARDWARE if hardware else {})
    third = "layer_usd_per_million_tokens" if hardware else "layer_joules_per_token"
    folder = out or OUT / phase
    study = watched_study(
        space, load_cluster(CLUSTER), Workload(num_tokens_per_device=tokens, phase=phase, routing=routing,
                                               kv_tokens_per_device=kv_tokens, seed=seed),
        objectives=["loss", "layer_tokens_per_s_per_device", third], constraints=constraints, num_trials=trials,
        screen=screen, seed=seed, storage=folder, enqueue=[PUBLISHED], economics=economics, num_workers=workers,
        fresh=fresh)
    show_findings(study, folder, limit=8, title=f"{phase} on {CLUSTER}")
    print(against_published(study))
    say(f"wrote {folder}/trials.csv, pareto.csv, importance.csv, winners.csv, front.html")


if __name__ == "__main__":
    run_command(app)
