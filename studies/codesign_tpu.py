"""A TPU v5p torus or a cluster of H100s, for the same money?

The same models are searched on a v5p slice and on as many nodes of 8 H100 as cost the same per hour
according to the economics file (the residual is printed), with the same tokens and KV cache over
the whole cluster, each machine with its own parallelism, placement and exchange. By default 4x4x12
chips stand against 256 GPUs. `moesim.search.versus` compares the two fronts at equal loss.

The TPU has no measured rows: its kernels and its links (an assumed share of the data
sheet's rate) are calibration ``none`` with an assumed interval of a factor of 1.5. Prices are
assumptions, too, so a verdict here is about assumptions. Beyond 64 devices one transfer per
device is known to be loose on a torus, by up to 7 %.

Writes fronts.csv, verdicts.csv and fronts.html, and each machine's own tables next to them. Run
again to continue.
"""

from pathlib import Path
from typing import Annotated

import typer

from moesim import Workload
from moesim.cli.script import EconomicsName, RoutingText, SearchOptions, run_search
from moesim.hardware.economics import load_economics
from moesim.page.write import write_report
from moesim.report.answer import print_answer
from moesim.report.terminal import say, tell
from moesim.search import Space
from moesim.search.session.findings import show_findings
from moesim.search.versus import equal_price, front_of, price_text, write_versus

OUT = Path(__file__).parent / "out" / "codesign_tpu"
MODEL = dict(dense_part="deepseek-v3", train_tokens=14.8e12, hidden_size=7168, num_shared_experts=1)
SIZES = dict(
    num_experts=[192, 384, 768], top_k=[4, 8, 16], expert_intermediate_size=[1024, 1536, 2048, 3072]
)
PLACEMENTS = dict(placement=["contiguous", "eplb"], num_replicas=[0, 64, 128, 192, 256])
PLANS = dict(parallelism=["tp1", "tp2", "tp4"], precision=["bf16", "fp8"], num_micro_batches=[1, 2])
QUICK = dict(num_experts=[192], top_k=[8], parallelism=["tp1"], num_replicas=[0])
QUICK |= dict(num_micro_batches=[1])
EXCHANGES = dict(tpu=["ici"], gpu=["nccl", "deepep_normal", "deepep_ll"])
#: tokens and cached tokens of one chip of the slice; a GPU's share follows from their number
TOKENS, KV_TOKENS = 1024, 65536
NAMES = dict(tpu="v5p", gpu="H100")
TITLE = "TPU v5p against H100 at equal price per hour: TPU intervals are assumed"


def main(
    options: SearchOptions,
    axes: Annotated[str, typer.Option(help="The slice.")] = "4x4x12",
    routing: RoutingText = "zipf:0.8",
    economics: EconomicsName = "default",
) -> None:
    """Search both machines and compare them at equal loss."""
    out, tokens, models = options.out, TOKENS, MODEL | SIZES | PLACEMENTS | PLANS
    if options.quick:
        axes, tokens, models = "4x4x3", 64, models | QUICK
        options = options.reduced(trials=16, screen=100)
    machines, found = equal_price(axes, load_economics(economics)), {}
    tell(price_text(load_economics(economics), machines, NAMES))
    for name, cluster in machines.items():
        share = machines["tpu"].num_devices / cluster.num_devices
        each = dict(num_tokens_per_device=tokens, kv_tokens_per_device=KV_TOKENS)
        size = {key: round(value * share) for key, value in each.items()}
        work = Workload(**size, routing=routing, seed=options.seed)
        space = Space(**models, exchange=EXCHANGES[name])
        asked = dict(objectives=["loss", "layer_usd_per_million_tokens"], economics=economics)
        study = options.search(space, cluster, work, storage=out / name, **asked)
        show_findings(study, out / name, limit=4, title=cluster.name)
        write_report(out / name, study)
        found[name] = front_of(study, name)
    found_best = write_versus(out, machines, found, NAMES, title=TITLE, seed=options.seed)
    say(f"wrote {out}/fronts.csv, verdicts.csv and fronts.html")
    print_answer(found_best)


if __name__ == "__main__":
    run_search(main, trials=200, screen=20000, out=OUT)
