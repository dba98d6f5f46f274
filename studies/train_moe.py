"""Which pipeline, layout and recomputation trains a published model fastest on a cluster?

Simulates a step in every combination that fits, and ranks them by tokens per second and device,
with days and USD to --tokens. MODEL is a preset, or a file or folder with a config.json.
Writes steps.csv.
"""

from itertools import product
from pathlib import Path
from typing import Annotated

import typer

from moesim import load_cluster
from moesim.cli.script import Out, Quick, run_script
from moesim.design.training.formats import train_formats
from moesim.design.training.layout import TrainLayout
from moesim.design.training.model import TrainedModel
from moesim.design.training.plan import PIPELINES, TrainingPlan
from moesim.errors import MoesimError
from moesim.hardware.economics import load_economics
from moesim.hardware.sizing import sized
from moesim.model.hf_config import load_model
from moesim.report.ranked import print_ranked
from moesim.report.tables import writable_folder, write_csv
from moesim.report.terminal import print_table, say
from moesim.simulation.training.simulate import simulate_training

OUT = Path(__file__).parent / "out" / "train_moe"
SHOWN = dict(layout="layout", pipeline="pipeline", recompute="recompute", days="days", mfu="MFU")
SHOWN |= dict(tokens_per_s_per_device="tok/s/dev", usd="USD", bubble_fraction="bubble")


def main(
    name: Annotated[str, typer.Argument(help="Model.", metavar="MODEL")] = "deepseek-v3",
    cluster: Annotated[str, typer.Option(help="Cluster.")] = "h100-rail-8x8",
    gpus: Annotated[int, typer.Option(help="Devices.")] = 512,
    batch: Annotated[int, typer.Option(help="Sequences of a step.")] = 4096,
    formats: Annotated[str, typer.Option(help="bf16, fp8, fp8_block or mxfp8.")] = "fp8_block",
    tokens: Annotated[float, typer.Option(help="Tokens of the training.")] = 14.8e12,
    quick: Quick = False,
    out: Out = OUT,
) -> None:
    """Simulate a step in every layout and order, and write them."""
    writable_folder(out)
    model, machine = load_model(name), sized(load_cluster(cluster), gpus)
    recipe, rows, refused = train_formats(formats), [], {}
    degrees = ((8, 32), (8,)) if quick else ((4, 8, 16, 32), (8, 16, 32, 64))
    for pp, ep, pipeline, recompute in product(*degrees, PIPELINES, ("none", "selective", "full")):
        words = f"pp{pp} ep{ep}" + " vp2" * (pipeline == "interleaved")
        try:
            trained = TrainedModel(
                name=model.name,
                spec=model.spec,
                layout=TrainLayout.parse(words, gpus),
                plan=TrainingPlan(global_batch=batch, pipeline=pipeline, recompute=recompute),
                precision=recipe.experts,
                dispatch_format=recipe.dispatch,
                dense_format=recipe.dense,
                uneven_stages=True,
            )
            row = simulate_training(trained, machine).row(
                tokens=tokens, economics=load_economics("default")
            )
            rows.append(row | {"pipeline": pipeline, "recompute": recompute})
        except MoesimError as error:
            refused[f"{words} {pipeline} {recompute}"] = str(error)
    if not rows:
        raise MoesimError(f"{name} trains in no way: {min(refused.values(), key=len)}")
    rows.sort(key=lambda row: row["tokens_per_s_per_device"], reverse=True)
    write_csv(out / "steps.csv", rows)
    print_table(f"{name} on {gpus} devices of {cluster}", rows, SHOWN, limit=8)
    say(f"wrote {out}/steps.csv; {len(refused)} of {len(rows) + len(refused)} ways do not fit")
    what = dict(name="{layout} {pipeline}, recompute {recompute}", value="tokens_per_s_per_device")
    what |= dict(reads="{:,.0f} tokens/s per device", maximize=True)
    print_ranked(rows, **what, next_step="Time a step of the best two layouts on the cluster.")


if __name__ == "__main__":
    run_script(main)
