"""A TPU v5p torus or a cluster of H100s, for the same money?

The same models (DeepSeek-V3's dense part, experts, top-k, width and format around it) are searched on a v5p slice and
on as many nodes of 8 H100 as cost the same per hour by the economics file (the residual is printed), with the same
tokens and the same KV cache over the whole cluster, each machine with its own parallelism, placement and exchange. By
default 4x4x12 chips against 256 GPUs.

Loss depends on the model alone, so that machines compare at equal loss: for every loss that either front reaches, the
most tokens per dollar on each, and who wins; overlapping intervals are a tie. No measured rows stand behind the TPU:
its kernels and its links (an assumed share of the data sheet's rate) are calibration ``none``, their interval an
assumed factor of 1.5, and prices are assumptions, too; a verdict here is of those. Beyond 64 devices one transfer per
device is known to be loose on a torus (up to 7 %).

Writes fronts.csv, verdicts.csv and fronts.html, and each machine's own tables beside them. The same command again
continues.
"""

from pathlib import Path
from typing import Annotated, Any

import typer

from moesim import Cluster, Workload, load_cluster
from moesim.cli import run_command
from moesim.economics import load_economics
from moesim.errors import ConfigError
from moesim.report import write_csv
from moesim.report.plots import write_html
from moesim.report.study_plots import fronts
from moesim.report.terminal import print_table, say
from moesim.search import Space, Study
from moesim.search.findings import show_findings
from moesim.search.watch import watched_study
from moesim.version import VERSION

OUT = Path(__file__).parent / "out" / "codesign_tpu"
MODELS: dict[str, Any] = {
    "dense_part": "deepseek-v3", "train_tokens": 14.8e12, "hidden_size": 7168, "num_shared_experts": 1,
    "num_experts": [192, 384, 768], "top_k": [4, 8, 16], "expert_intermediate_size": [1024, 1536, 2048, 3072],
    "placement": ["contiguous", "eplb"], "num_replicas": [0, 64, 128, 192, 256], "parallelism": ["tp1", "tp2", "tp4"],
    "precision": ["bf16", "fp8"], "num_micro_batches": [1, 2]}
EXCHANGES = {"tpu": ["ici"], "gpu": ["nccl", "deepep_normal", "deepep_ll"]}
#: tokens and cached tokens of one chip of the slice; a GPU's share follows from their number
TOKENS, KV_TOKENS = 1024, 65536
VERDICT = {"at": "loss at most", "tpu_shown": "v5p, M tokens/USD", "gpu_shown": "H100, M tokens/USD",
           "ratio": "v5p / H100", "verdict": "wins", "tpu_candidate": "on v5p"}
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


def equal_price(axes: list[int], economics: str) -> dict[str, Cluster]:
    """A slice, and the nodes of 8 H100 whose price per hour is nearest to its."""
    model, slice_ = load_economics(economics), load_cluster("tpu-v5p-4x4x4").with_(axes=axes)
    rails = load_cluster("h100-rail-8x8")
    nodes = round(model.usd_per_hour(slice_) / model.usd_per_hour(rails) * rails.file.num_nodes)
    if nodes < 2:
        raise ConfigError(f"--axes: expected a slice worth at least 2 nodes of 8 H100, got {slice_.num_devices} chips")
    return {"tpu": slice_, "gpu": rails.with_(num_nodes=nodes)}


def rows_of(study: Study, machine: str) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Trials that fit, and the front with its groups, with tokens per dollar and their interval."""
    def row(trial: Any, **more: Any) -> dict[str, Any]:
        found = trial.row()
        per_usd = 1e6 / found["layer_usd_per_million_tokens"]
        low, high = (per_usd * found["layer_time_us"] / found[f"layer_time_{end}_us"] for end in ("high", "low"))
        return {"machine": machine, "tokens_per_usd": per_usd, "tokens_per_usd_low": low, "tokens_per_usd_high": high,
                **found, **more}

    front = study.pareto_trials()
    return ([row(t) for t in study.trials if t.feasible],
            [row(t, group=g) for t, g in zip(front, study.groups(front), strict=True)])


def verdicts(tpu: list[dict[str, Any]], gpu: list[dict[str, Any]], seed: int) -> list[dict[str, Any]]:
    """For every loss on either front the most tokens per dollar of each machine, and who wins."""
    found = []
    for loss in sorted({row["loss"] for row in [*tpu, *gpu]}):
        best = {name: max((r for r in rows if r["loss"] <= loss), key=lambda r: r["tokens_per_usd"], default=None)
                for name, rows in (("tpu", tpu), ("gpu", gpu))}
        row: dict[str, Any] = {"loss": loss}
        for name, r in best.items():
            if r is not None:
                row |= {f"{name}_{key}": r[key] for key in (
                    "tokens_per_usd", "tokens_per_usd_low", "tokens_per_usd_high", "candidate", "calibration",
                    "profile_hash")}
        one, other = best["tpu"], best["gpu"]
        if one is None or other is None:
            row["verdict"] = "v5p alone" if other is None else "H100 alone"
        else:
            row["ratio"] = one["tokens_per_usd"] / other["tokens_per_usd"]
            row["verdict"] = ("v5p" if one["tokens_per_usd_low"] > other["tokens_per_usd_high"] else
                              "H100" if other["tokens_per_usd_low"] > one["tokens_per_usd_high"] else "tie")
        found.append(row | {"evidence": "simulated", "engine": "flow", "seed": seed, "version": VERSION})
    return found


@app.command()
def main(
    axes: Annotated[str, typer.Option(help="The slice.")] = "4x4x12",
    trials: Annotated[int, typer.Option(help="Trials of each machine, those of earlier runs included.")] = 200,
    screen: Annotated[int, typer.Option(help="Points the bound engine looks at first; 0: none.", min=0)] = 20000,
    routing: Annotated[str, typer.Option(help="Distribution of load.")] = "zipf:0.8",
    economics: Annotated[str, typer.Option(help="Cost and power model: a name or a file.")] = "default",
    seed: Annotated[int, typer.Option(help="Seed of search and routing.")] = 0,
    workers: Annotated[int, typer.Option(help="Processes that evaluate trials.")] = 2,
    quick: Annotated[bool, typer.Option("--quick", help="48 chips, a small space, few trials: for a test.")] = False,
    fresh: Annotated[bool, typer.Option("--fresh", help="Discard what the output folder holds.")] = False,
    out: Annotated[Path, typer.Option(help="Output folder.")] = OUT,
) -> None:
    """Search both machines and compare them at equal loss."""
    try:
        sides = [int(n) for n in ("4x4x3" if quick else axes).split("x")]
    except ValueError:
        raise ConfigError(f"--axes: expected sizes such as '4x4x12', got {axes!r}") from None
    machines = equal_price(sides, economics)
    model = load_economics(economics)
    price = {name: model.usd_per_hour(cluster) for name, cluster in machines.items()}
    dearer = round(100 * (price["gpu"] / price["tpu"] - 1), 1) + 0.0
    print(f"{machines['tpu'].num_devices} v5p at {price['tpu']:,.2f} USD/h against {machines['gpu'].num_devices} H100 "
          f"at {price['gpu']:,.2f} USD/h: {dearer:+.1f} %, all prices assumed")
    models, tokens = dict(MODELS), TOKENS
    if quick:
        models |= {"num_experts": [192], "top_k": [8], "parallelism": ["tp1"], "num_replicas": [0],
                   "num_micro_batches": [1]}
        tokens, trials, screen, workers = 64, min(trials, 16), min(screen, 100), 1
    found = {}
    for name, cluster in machines.items():
        share = machines["tpu"].num_devices / cluster.num_devices
        work = Workload(num_tokens_per_device=round(tokens * share), routing=routing, seed=seed,
                        kv_tokens_per_device=round(KV_TOKENS * share))
        study = watched_study(
            Space(**models, exchange=EXCHANGES[name]), cluster, work, num_trials=trials, screen=screen, seed=seed,
            objectives=["loss", "layer_usd_per_million_tokens"], storage=out / name, economics=economics,
            num_workers=workers, fresh=fresh)
        show_findings(study, out / name, limit=4, title=cluster.name)
        found[name] = rows_of(study, name)
    table = verdicts(found["tpu"][1], found["gpu"][1], seed)
    shown = [row | {"at": f"{row['loss']:.4f}"} | {
        f"{name}_shown": "{:,.1f} ({:,.1f}-{:,.1f})".format(*(row[f"{name}_tokens_per_usd{end}"] / 1e6 for end in (
            "", "_low", "_high"))) for name in machines if f"{name}_tokens_per_usd" in row} for row in table]
    print_table("At equal price: most tokens per dollar through one MoE layer at no more than a loss", shown, VERDICT)
    counts = {who: sum(row["verdict"] == who for row in table) for who in dict.fromkeys(r["verdict"] for r in table)}
    print(", ".join(f"{who}: {count} of {len(table)} losses" for who, count in counts.items()))
    write_csv(out / "fronts.csv", [row for _, front in found.values() for row in front])
    write_csv(out / "verdicts.csv", table)
    write_html(out / "fronts.html", fronts(
        {f"{machines['tpu'].num_devices} v5p": found["tpu"], f"{machines['gpu'].num_devices} H100": found["gpu"]},
        rate="tokens_per_usd", label="tokens through one MoE layer per USD (assumed prices)",
        title="TPU v5p against H100 at equal price per hour: TPU intervals are assumed"))
    say(f"wrote {out}/fronts.csv, verdicts.csv and fronts.html")


if __name__ == "__main__":
    run_command(app)
