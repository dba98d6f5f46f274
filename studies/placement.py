"""Score every placement under every distribution by imbalance and layer time, also with replicas.

Simulates one MoE layer of DeepSeek-V3 (256 experts, 8 of them per token) on one HGX H100 node of 8
and on 8 nodes of 8 joined by rails, with 0 and 64 redundant experts for the strategies that place
copies. `moesim.advice.placements` scores each plan on its own loads and one step of drift later.
Writes placements.csv (a row per cluster, distribution, strategy and redundancy), drift.csv (layer
time step by step under new plans, with what moving the weights costs), best.csv (the fastest ones)
and pages: imbalance.html, layer_time.html and drift.html.
"""

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from moesim import load_cluster
from moesim.advice.placements import COLUMNS, SHOWN, PlacementCase, fastest, shown, with_speed_up
from moesim.cli.script import Out, Quick, Seed, run_script
from moesim.report.plots.fidelity import write_html
from moesim.report.plots.placement import drift_lines, strategy_heatmap
from moesim.report.ranked import print_ranked
from moesim.report.tables import writable_folder, write_csv
from moesim.report.terminal import print_table, say

OUT = Path(__file__).parent / "out" / "placement"
PRESET = "deepseek-v3"
CLUSTERS = ("hgx-h100-8", "h100-rail-8x8")
STRATEGIES = "contiguous round_robin random:0 balanced eplb eplb/nearest eplb_hierarchical"
STRATEGIES += " hierarchical hierarchical/nearest affinity domain domain/nearest local_search:200"
DISTRIBUTIONS = "uniform zipf:0.4 zipf:0.8 zipf:1.2 power_law:1.2 lognormal:1 dirichlet:1 w5"
DISTRIBUTIONS += " olmoe-c4 olmoe-github olmoe-mix mixtral domains:8:0.3 olmoe-domains"
REDUNDANT = (0, 64)
DRIFT, STEPS = "zipf:0.8+drift:0.02", 12
#: forward passes between two steps: a prefill of 1,024 tokens per device takes 0.2 s, so about ten
#: minutes
PASSES_PER_STEP = 3000
HEATMAPS = (
    ("imbalance.html", "load_imbalance", "Busiest rank's rows over the mean"),
    ("layer_time.html", "speed_up", "Layer speed-up over expert order"),
)
Steps = Annotated[int, typer.Option(help="Exchanges simulated to refine; 0 for none.", min=0)]


def main(seed: Seed = 0, quick: Quick = False, refine_steps: Steps = 40, out: Out = OUT) -> None:
    """Score every placement under every distribution on 8 and 64 H100s."""
    writable_folder(out)
    distributions = ("zipf:0.8", "domains:8:0.3") if quick else DISTRIBUTIONS.split()
    common = dict(preset=PRESET, num_tokens=64 if quick else 1024, seed=seed)
    rows, drift = [], []
    steps = min(refine_steps, 2) if quick else refine_steps
    for name in CLUSTERS:
        base = PlacementCase(cluster=load_cluster(name), distribution=DRIFT, **common)
        cases = [replace(base, num_replicas=number) for number in REDUNDANT]
        for distribution in distributions:
            for case in (replace(each, distribution=distribution) for each in cases):
                rows += [case.score(strategy) for strategy in case.able(STRATEGIES.split())]
                rows += [case.refined(steps)] if steps else []
            say(f"{name}: {distribution}")
        for case in cases:
            drift += case.drifting(4 if quick else STEPS, PASSES_PER_STEP)
    done = with_speed_up(rows)
    best = fastest(done)
    write_csv(out / "placements.csv", rows, COLUMNS)
    write_csv(out / "best.csv", best, COLUMNS)
    write_csv(out / "drift.csv", drift)
    for page, column, title in HEATMAPS:
        write_html(out / page, strategy_heatmap(done, column, title))
    write_html(out / "drift.html", drift_lines(drift))
    title = f"One layer of {PRESET}: the fastest placement"
    print_table(title, shown(best), SHOWN)
    files = "placements.csv, best.csv, drift.csv, imbalance.html, layer_time.html, drift.html"
    say(f"wrote {out}/{files}")
    what = dict(name="{placement}+{num_replicas} on {cluster}, {distribution}", value="speed_up")
    next_step = "Record the load of your experts, and score placements on it with trace:FILE."
    print_ranked(best, **what, reads="{:.2f} x as fast", maximize=True, next_step=next_step)


if __name__ == "__main__":
    run_script(main)
