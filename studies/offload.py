"""What do experts in the memory of the host cost, and what does compressing them give back?

Simulates one MoE layer of a published model on one device, by the share of experts that stays on
it, guesses one layer ahead, and the format of the cold half, over PCIe and over NVLink-C2C (GB200).
Writes offload.csv (a row per case), best.csv (the fastest that fits) and offload.html.
"""

from itertools import product
from pathlib import Path
from typing import Annotated

import typer

from moesim import Candidate, Workload, load_cluster, load_preset, simulate
from moesim.cli.script import Out, Quick, Seed, run_script
from moesim.design.offload import Offload
from moesim.model.compression import Compression
from moesim.quality.compressed import compression_delta
from moesim.report.plots.fidelity import write_html
from moesim.report.plots.offload import offload_lines
from moesim.report.ranked import print_ranked
from moesim.report.tables import writable_folder, write_csv
from moesim.report.terminal import print_table, say

OUT = Path(__file__).parent / "out" / "offload"
DEVICES, TOKENS = ("h100-sxm", "gb200"), (1, 16, 256)
RESIDENT, RECALL = (1.0, 0.75, 0.5, 0.25, 0.0), (0.0, 0.8, 1.0)
HALF = dict(cold_fraction=0.5, cold_format="int4")
FORMS = {"whole": {}, "cold half int4": HALF, "all int4": HALF | dict(cold_fraction=1.0)}
FORMS |= {"a quarter pruned": dict(pruned_fraction=0.25)}
FORMS |= {"cold half rank 1/4": dict(cold_fraction=0.5, cold_rank_fraction=0.25)}
COLUMNS = "cluster num_tokens_per_device form resident_fraction prefetch_recall fits layer_time_us"
COLUMNS += " layer_time_low_us layer_time_high_us fetch_us experts_us prefetch_us bottleneck"
COLUMNS += " expert_hit_fraction host_mb_per_layer peak_memory_gib loss_delta loss_delta_low"
COLUMNS += " loss_delta_high loss_unknown grade rests_on engine seed version profile_hash"
SHOWN = "cluster num_tokens_per_device form resident_fraction layer_time_us expert_hit_fraction"
SHOWN += " host_mb_per_layer peak_memory_gib loss_delta"
Preset = Annotated[str, typer.Option(help="Published model, or a config.json.")]


def main(
    preset: Preset = "mixtral-8x22b",
    routing: Annotated[str, typer.Option(help="Load of the experts.")] = "zipf:0.8",
    seed: Seed = 0,
    quick: Quick = False,
    out: Out = OUT,
) -> None:
    """Simulate every case, and write what is fastest where it fits."""
    writable_folder(out)
    model, rows = load_preset(preset), []
    for device, tokens in product(DEVICES, TOKENS[:1] if quick else TOKENS):
        cluster = load_cluster(device)
        work = Workload(num_tokens_per_device=tokens, phase="decode", routing=routing, seed=seed)
        for (name, form), resident, recall in product(FORMS.items(), RESIDENT, RECALL):
            if resident == 1 and recall:
                continue
            parts = dict(compression=Compression(**form), dense_part=model.dense_part)
            offload = Offload(resident_fraction=resident, prefetch_recall=recall)
            case = Candidate(layer=model.layer, offload=offload, **parts)
            found = simulate(case, cluster, work, must_fit=False)
            loss = compression_delta(model.layer, parts["compression"])
            told = dict(form=f"{name}, {recall:.0%} ahead", fits=found.memory_over_bytes <= 0)
            told |= dict(loss_delta=loss.nats, loss_delta_low=loss.low, loss_delta_high=loss.high)
            rows.append(found.row() | told | dict(loss_unknown=loss.unknown))
        say(f"{device}: {tokens} tokens")
    best: dict[tuple, dict] = {}
    for row in sorted((r for r in rows if r["fits"]), key=lambda r: r["layer_time_us"]):
        best.setdefault((row["cluster"], row["num_tokens_per_device"]), row)
    write_csv(out / "offload.csv", rows, COLUMNS.split())
    write_csv(out / "best.csv", list(best.values()), COLUMNS.split())
    write_html(out / "offload.html", offload_lines(rows, f"A layer of {preset}, {routing}"))
    print_table(f"{preset}: the fastest that fits", list(best.values()), SHOWN.split())
    say(f"wrote {out}/offload.csv, best.csv and offload.html")
    what = dict(name="{form} on {cluster}", value="layer_time_us", reads="{:,.0f} us a layer")
    few = [row for row in rows if row["fits"] and row["num_tokens_per_device"] == TOKENS[0]]
    print_ranked(few, **what, maximize=False, next_step="Measure the host link's bandwidth.")


if __name__ == "__main__":
    run_script(main)
