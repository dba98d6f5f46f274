"""Imbalance and layer time of every placement under every distribution, with and without redundant experts.

One MoE layer of DeepSeek-V3 (256 experts, 8 of them per token), on one HGX H100 node of 8 and on 8 nodes of 8 joined by
rails, with 0 and 64 redundant experts for the strategies that place copies. Plans are scored on the loads they were
made for, and a second time one step later on loads that drift, where a plan made in advance would meet them.

Writes placements.csv (a row per cluster, distribution, strategy and redundancy), drift.csv (layer time step by step
under new plans, with what moving the weights costs), best.csv (the fastest placement of each cluster, distribution and
redundancy), and pages that need no network: imbalance.html, layer_time.html and drift.html.
"""

from pathlib import Path
from typing import Annotated, Any

import typer

from moesim import Candidate, Parallelism, Workload, load_cluster, load_preset, simulate
from moesim.cli import run_command
from moesim.errors import ConfigError, MoesimError
from moesim.placement import REPLICATING
from moesim.rebalance import rebalanced
from moesim.refine import refine
from moesim.report import write_csv
from moesim.report.placement_plots import drift_lines, strategy_heatmap
from moesim.report.plots import write_html
from moesim.report.terminal import print_table, say
from moesim.simulation.prepare import prepare
from moesim.simulation.run import simulate_prepared
from moesim.units import US
from moesim.version import VERSION

OUT = Path(__file__).parent / "out" / "placement"
PRESET = "deepseek-v3"
CLUSTERS = {"hgx-h100-8": 1024, "h100-rail-8x8": 1024}
STRATEGIES = ("contiguous", "round_robin", "random:0", "balanced", "eplb", "eplb/nearest", "eplb_hierarchical",
              "hierarchical", "hierarchical/nearest", "affinity", "domain", "domain/nearest", "local_search:200")
DISTRIBUTIONS = ("uniform", "zipf:0.4", "zipf:0.8", "zipf:1.2", "power_law:1.2", "lognormal:1", "dirichlet:1", "w5",
                 "olmoe-c4", "olmoe-github", "olmoe-mix", "mixtral", "domains:8:0.3", "olmoe-domains")
REDUNDANT = (0, 64)
DRIFT, STEPS = "zipf:0.8+drift:0.02", 12
#: forward passes of the model between two steps: a prefill of 1,024 tokens per device takes 0.2 s, so about ten minutes
PASSES_PER_STEP = 3000
COLUMNS = ("cluster", "num_devices", "distribution", "placement", "num_replicas", "load_imbalance",
           "imbalance_next_step", "layer_time_us", "layer_time_next_step_us", "speed_up", "far_copies_per_token",
           "dispatch_us", "experts_us", "combine_us", "bottleneck", "reason", "evidence", "calibration", "engine",
           "seed", "version", "profile_hash")
BEST = {"cluster": "cluster", "distribution": "distribution", "num_replicas": "replicas", "placement": "fastest",
        "load_imbalance": "imbalance", "layer_time_us": "us", "speed_up": "x expert order",
        "imbalance_next_step": "imbalance later"}
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


def score(name: str, strategy: str, replicas: int, distribution: str, tokens: int, seed: int) -> dict[str, Any]:
    """One row: a placement planned on a distribution's first step, on that step and on the next."""
    machine = load_cluster(name)
    candidate = Candidate(layer=load_preset(PRESET).layer, parallelism=Parallelism(ep=machine.num_devices),
                          placement=strategy, num_replicas=replicas)
    work, later = (Workload(num_tokens_per_device=tokens, routing=text, seed=seed)
                   for text in (distribution, f"{distribution}+drift:0.1@1"))
    row: dict[str, Any] = {"cluster": name, "num_devices": machine.num_devices, "distribution": distribution,
                           "placement": strategy, "num_replicas": replicas, "engine": "flow", "seed": seed,
                           "version": VERSION, "reason": ""}
    try:
        prepared = prepare(candidate, machine, work)
        traffic = prepared.traffic
        found = simulate_prepared(prepared)
        # a distribution that cannot drift, such as a trace, has no next step
        after = simulate(candidate, machine, later, placement=prepared.placement)
    except MoesimError as error:
        return row | {"reason": str(error), "evidence": "simulated", "calibration": "none"}
    far = traffic.domains_SG.sum() - sum(traffic.domains_SG[s, s // machine.devices_per_domain]
                                         for s in range(machine.num_devices))
    return row | {"load_imbalance": found.load_imbalance, "imbalance_next_step": after.load_imbalance,
                  "layer_time_us": found.layer_time_s / US, "layer_time_next_step_us": after.layer_time_s / US,
                  "far_copies_per_token": float(far / traffic.num_tokens_S.sum()),
                  **{f"{phase}_us": found.phase_time_s[phase] / US for phase in ("dispatch", "experts", "combine")},
                  "bottleneck": found.bottleneck, "evidence": found.evidence, "calibration": found.calibration,
                  "profile_hash": found.profile_hash}


def refined(name: str, replicas: int, distribution: str, tokens: int, seed: int, steps: int) -> dict[str, Any]:
    """One row of local search on the simulated time itself, from the best strategy."""
    machine = load_cluster(name)
    candidate = Candidate(layer=load_preset(PRESET).layer, parallelism=Parallelism(ep=machine.num_devices),
                          placement="eplb", num_replicas=replicas)
    work = Workload(num_tokens_per_device=tokens, routing=distribution, seed=seed)
    found = refine(candidate, machine, work, steps=steps, engine="flow")
    result = simulate(candidate, machine, work, placement=found.placement)
    return {"cluster": name, "num_devices": machine.num_devices, "distribution": distribution,
            "placement": "refined", "num_replicas": replicas, "load_imbalance": result.load_imbalance,
            "layer_time_us": result.layer_time_s / US, "bottleneck": result.bottleneck, "engine": "flow", "seed": seed,
            **{f"{phase}_us": result.phase_time_s[phase] / US for phase in ("dispatch", "experts", "combine")},
            "reason": f"from {found.start}, {found.simulated} simulated", "evidence": result.evidence,
            "calibration": result.calibration, "version": VERSION, "profile_hash": result.profile_hash}


def compared(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows with their speed-up over expert order without copies, on the same cluster and distribution."""
    plain = {(r["cluster"], r["distribution"]): r["layer_time_us"] for r in rows if r["placement"] == "contiguous"
             and not r["reason"]}
    for row in rows:
        base = plain.get((row["cluster"], row["distribution"]))
        if base is not None and row.get("layer_time_us"):
            row["speed_up"] = base / row["layer_time_us"]
    return rows


def drifted(name: str, replicas: int, tokens: int, seed: int, steps: int) -> list[dict[str, Any]]:
    """Rows of a workload that drifts: plans never renewed, renewed every fourth step, and every step."""
    machine = load_cluster(name)
    model = load_preset(PRESET)
    candidate = Candidate(layer=model.layer, parallelism=Parallelism(ep=machine.num_devices), placement="eplb",
                          num_replicas=replicas)
    work = Workload(num_tokens_per_device=tokens, routing=DRIFT, seed=seed)
    rows = []
    for every in (0, 4, 1):
        for row in rebalanced(candidate, machine, work, range(steps), every=every, passes_per_step=PASSES_PER_STEP,
                              num_layers=model.dense_part.num_moe_layers):
            rows.append({"cluster": name, "num_replicas": replicas, "renewed_every": every, **row,
                         "distribution": DRIFT, "passes_per_step": PASSES_PER_STEP, "evidence": "simulated",
                         "engine": "flow", "seed": seed, "version": VERSION})
    return rows


@app.command()
def main(
    seed: Annotated[int, typer.Option(help="Seed of the routing.")] = 0,
    quick: Annotated[bool, typer.Option("--quick", help="Few tokens, two distributions, few steps.")] = False,
    refine_steps: Annotated[int, typer.Option(help="Exchanges that are simulated to refine; 0 for none.", min=0)] = 40,
    out: Annotated[Path, typer.Option(help="Output folder.")] = OUT,
) -> None:
    """Every placement under every distribution on 8 and 64 H100s."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{out}: cannot write to this output folder: {error.strerror}") from None
    distributions = ("zipf:0.8", "domains:8:0.3") if quick else DISTRIBUTIONS
    rows: list[dict[str, Any]] = []
    drift: list[dict[str, Any]] = []
    for name, usual in CLUSTERS.items():
        tokens = 64 if quick else usual
        for distribution in distributions:
            for replicas in REDUNDANT:
                rows += [score(name, strategy, replicas, distribution, tokens, seed) for strategy in STRATEGIES
                         if not replicas or strategy.partition(":")[0].partition("/")[0] in REPLICATING]
                steps = min(refine_steps, 2) if quick else refine_steps
                if steps:
                    rows.append(refined(name, replicas, distribution, tokens, seed, steps))
            say(f"{name}: {distribution}")
        for replicas in REDUNDANT:
            drift += drifted(name, replicas, tokens, seed, 4 if quick else STEPS)
    compared(rows)
    done = [row for row in rows if row.get("layer_time_us")]
    best = [min((r for r in done if (r["cluster"], r["distribution"], r["num_replicas"]) == key),
                key=lambda r: r["layer_time_us"])
            for key in dict.fromkeys((r["cluster"], r["distribution"], r["num_replicas"]) for r in done)]
    write_csv(out / "placements.csv", rows, COLUMNS)
    write_csv(out / "best.csv", best, COLUMNS)
    write_csv(out / "drift.csv", drift)
    write_html(out / "imbalance.html", strategy_heatmap(done, "load_imbalance", "Busiest rank's rows over the mean"))
    write_html(out / "layer_time.html", strategy_heatmap(done, "speed_up", "Layer speed-up over expert order"))
    write_html(out / "drift.html", drift_lines(drift))
    shown = [row | {"load_imbalance": f"{row['load_imbalance']:.3f}", "layer_time_us": f"{row['layer_time_us']:,.0f}",
                    "speed_up": f"{row['speed_up']:.2f}",
                    "imbalance_next_step": f"{row.get('imbalance_next_step', float('nan')):.3f}"} for row in best]
    print_table(f"One layer of {PRESET}: the fastest placement", shown, BEST)
    say(f"wrote {out}/placements.csv, best.csv, drift.csv, imbalance.html, layer_time.html, drift.html")


if __name__ == "__main__":
    run_command(app)
