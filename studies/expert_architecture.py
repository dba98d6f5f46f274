"""Which experts, under one budget of FLOPs: number, width, gated or not, shared, in a latent space?

Searches depth and experts of a published model with the layout that trains them: loss by the laws
at the tokens that the budget leaves, against days by the simulated step, and for the front what a
device decodes. Losses carry intervals and say what is extrapolated; those of a group are ties.
Writes trials.csv, pareto.csv, importance.csv, winners.csv, architectures.csv and report.html.
"""

from pathlib import Path
from typing import Annotated

import typer

from moesim import load_cluster
from moesim.cli.script import SearchOptions, run_search
from moesim.design.served import ServedModel
from moesim.design.step import Layout
from moesim.errors import MoesimError
from moesim.hardware.sizing import sized
from moesim.model.hf_config import Model
from moesim.page.write import write_report
from moesim.report.tables import write_csv
from moesim.report.terminal import print_table, say
from moesim.search import TrainingSpace, TrainingWorkload
from moesim.search.session.answer import show_answer
from moesim.search.session.findings import show_findings
from moesim.serving.estimate import estimate_model
from moesim.serving.loop import RequestTraffic

OUT = Path(__file__).parent / "out" / "expert_architecture"
EXPERTS = dict(num_layers=[24, 32, 48], num_experts=[32, 64, 128, 256], top_k=[2, 4, 8])
EXPERTS |= dict(expert_width=[512, 768, 1024, 1536], gated=[True, False])
EXPERTS |= dict(num_shared_experts=[0, 1], latent_size=[0, 1024])
PLAN = dict(ep=[8, 16, 32], pp=[1, 2, 4], micro_batch=[1, 2], recompute=["selective", "full"])
RATE = "decode_tokens_per_s_per_device"
SHOWN = {"experts": "experts", "loss": "loss", "train_days": "days", RATE: "decode tok/s/dev"}


def decoded(model: Model) -> float | None:
    """Return the tokens per second of a device that serves a model on a node; None if it cannot."""
    node = load_cluster("hgx-h100-8")
    served = ServedModel(name=model.name, spec=model.spec, layout=Layout.parse("dp8 ep8"))
    try:
        found = estimate_model(served, node, RequestTraffic(concurrency=512, isl=1024, osl=1024))
    except MoesimError as error:
        say(f"not served: {error}")
        return None
    return float(found.row()["output_tokens_per_s_per_device"])


def main(
    options: SearchOptions,
    model: Annotated[str, typer.Option(help="Model whose experts vary.")] = "qwen3-30b-a3b",
    flops: Annotated[float, typer.Option(help="FLOPs of the training.")] = 1e22,
    gpus: Annotated[int, typer.Option(help="H100 that train it.")] = 128,
) -> None:
    """Search the experts, and write the front."""
    out, few = options.out, options.quick
    options = options.reduced(trials=60, screen=0) if few else options
    study = options.search(
        TrainingSpace(model=model, **EXPERTS, **PLAN),
        sized(load_cluster("h100-rail-8x8"), gpus),
        TrainingWorkload(train_flops=flops, seed=options.seed),
        objectives=["loss", "train_days"],
        storage=out,
    )
    show_findings(study, out, limit=2 if few else 8, title=f"{model}, {flops:.3g} FLOPs")
    front, rows = study.pareto_trials(), []
    for trial, group in zip(front, study.groups(front), strict=True):
        own = {"group": group, "experts": study.space.architecture(trial.params).label}
        own[RATE] = decoded(study.space.trained_as(trial.params))
        rows.append(trial.evaluation.row | own)
    write_csv(out / "architectures.csv", rows)
    write_report(out, study)
    print_table("Front of loss and days", rows, SHOWN)
    show_answer(study)


if __name__ == "__main__":
    run_search(main, out=OUT, trials=2000, screen=0)
