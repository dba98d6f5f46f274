"""What is worth more for this model: twice the NVLink, twice the HBM, or twice the experts?

For a published model and a cluster, every number of the hardware and of the design is changed
alone: elasticities from +-10 %, the gain of twice as much, what that does to price and power
according to the economics file, and, where the design changes, to the loss (`moesim.advice.worth`).
The workloads are prefill, and decoding as many sequences as memory holds (`moesim.advice.doubled`).

Placement, exchange and micro-batches are the fastest for the unchanged model, and stay the same
unless ``--replan`` is given. Hardware that nobody built counts as ``spec_sheet``.
Writes what_if.csv (a row per change) and what_if.html.
"""

from pathlib import Path
from typing import Annotated

import typer

from moesim import Candidate, Precision, load_cluster, load_preset
from moesim.advice.doubled import System
from moesim.advice.worth import COLUMNS, SHOWN, Comparison, answer, ranked
from moesim.cli.script import EconomicsName, Out, Quick, Seed, run_script
from moesim.errors import ConfigError
from moesim.hardware.economics import load_economics
from moesim.report import write_csv
from moesim.report.plots.fidelity import write_html
from moesim.report.plots.study import gain_bars
from moesim.report.ranked import print_ranked
from moesim.report.terminal import print_table, say, tell

OUT = Path(__file__).parent / "out" / "what_if_hardware"
#: preset, cluster, training tokens (as published: arXiv 2412.19437, arXiv 2505.09388)
SYSTEMS = (("deepseek-v3", "h100-rail-8x8", 14.8e12), ("qwen3-235b-a22b", "hgx-h100-8", 36e12))


def main(
    model: Annotated[str, typer.Option(help="One preset instead of both default systems.")] = "",
    cluster: Annotated[str, typer.Option(help="Where that preset runs.")] = "",
    precision: Annotated[str, typer.Option(help="Formats of the unchanged model.")] = "fp8",
    train_tokens: Annotated[float, typer.Option(help="Training tokens of that preset.")] = 10e12,
    context: Annotated[int, typer.Option(help="Tokens of a decoded sequence.", min=1)] = 4096,
    replan: Annotated[bool, typer.Option("--replan", help="Plan anew after changes.")] = False,
    economics: EconomicsName = "default",
    seed: Seed = 0,
    quick: Quick = False,
    out: Out = OUT,
) -> None:
    """Change every number of hardware and design alone, and rank what the changes are worth."""
    if bool(model) != bool(cluster):
        given = model or cluster
        raise ConfigError(f"--model and --cluster: expected both or neither, got {given!r} alone")
    systems = ((model, cluster, train_tokens),) if model else SYSTEMS[1:] if quick else SYSTEMS
    table = []
    for name, where, budget in systems:
        preset, machine = load_preset(name, Precision.named(precision)), load_cluster(where)
        start = Candidate(layer=preset.layer, dense_part=preset.dense_part, placement="eplb")
        for kind, length in (("decode", context), ("prefill", 0))[: 1 if quick else 2]:
            system = System(cluster=machine, context=length, seed=seed, replan=replan)
            base = system.run(start, machine, plan=True)
            about = dict(train_tokens=budget, economics=load_economics(economics))
            comparison = Comparison(system=system, base=base, **about)
            rows = ranked(list(comparison.changes()))
            print_table(f"{name} {precision} on {where}, {kind}, {base.plan_text}", rows, SHOWN)
            tell(answer(rows))
            unchanged = comparison.row(base) | {"change": "none", "kind": "base"}
            common = {"model": name, "cluster": where, "workload": kind, "seed": seed}
            table += [row | common for row in (unchanged, *rows)]
            for row in rows:
                if row.get("note") and not row.get("gain"):
                    say(f"{row['change']}: {row['note']}")
    write_csv(out / "what_if.csv", table, COLUMNS)
    worth = [row for row in table if row.get("gain") and row["kind"] != "base"]
    write_html(out / "what_if.html", gain_bars(worth))
    say(f"wrote {out}/what_if.csv and what_if.html")
    told = dict(name="{change} ({workload} of {model})", value="gain", reads="x {:.2f}")
    ends, next_step = ("gain_low", "gain_high"), "Profile the layer for the resource it relieves."
    print_ranked(worth, **told, ends=ends, maximize=True, next_step=next_step)


if __name__ == "__main__":
    run_script(main)
