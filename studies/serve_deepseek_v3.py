"""How should DeepSeek-V3 be spread over H100, H800 and GB200, with overlap or copies or without?

Serves prompts of 2,048 and answers of 1,024 tokens, once more with the same clients for every
design, and shows the Pareto front of tokens per second of a device and of a user. Prefill and
decode share the devices. Writes designs.csv and front.csv.
"""

from itertools import product
from pathlib import Path
from typing import Annotated

import typer

from moesim import load_cluster
from moesim.cli.script import Out, Quick, run_script
from moesim.design.schedule import Schedule
from moesim.design.served import ServedModel
from moesim.design.step import Layout
from moesim.errors import MoesimError
from moesim.hardware.economics import load_economics
from moesim.model.hf_config import load_model
from moesim.report.answer import print_answer
from moesim.report.tables import writable_folder, write_csv
from moesim.report.terminal import print_table, say
from moesim.serving.answer import front_answer
from moesim.serving.formats import dense_format_of
from moesim.serving.loop import RequestTraffic
from moesim.serving.whole import front_of, serve_model

OUT = Path(__file__).parent / "out" / "serve_deepseek_v3"
CLUSTERS = "h100-rail-8x8 h800-rail-8x8 gb200-nvl72"
SHOWN = dict(layout="layout", cluster="cluster", concurrency="clients", num_replicas="copies")
SHOWN |= dict(output_tokens_per_s_per_device="tok/s/dev", output_tokens_per_s_per_user="tok/s/user")
SHOWN |= dict(schedule="schedule", ttft_p50_ms="TTFT ms")


def main(
    clusters: Annotated[str, typer.Option(help="Clusters.")] = CLUSTERS,
    isl: Annotated[str, typer.Option(help="Tokens of a prompt.")] = "2048",
    osl: Annotated[str, typer.Option(help="Tokens of an answer.")] = "1024",
    quick: Quick = False,
    out: Out = OUT,
) -> None:
    """Serve every design, and write designs and front."""
    writable_folder(out)
    model, economics, rows = load_model("deepseek-v3"), load_economics("default"), []
    base = dict(name=model.name, spec=model.spec, precision=model.layer.precision)
    base |= dict(dense_format=dense_format_of(model), placement="eplb")
    for name in clusters.split():
        cluster = load_cluster(name)
        degrees = (32,) if quick else (16, 32, 64)
        choices = product(
            degrees, (1,) if quick else (0, 1), (1, 2), (64,) if quick else (16, 64, 256)
        )
        for ep, copies, parts, clients in choices:
            served = ServedModel(
                **base,
                layout=Layout(dp=ep, ep=ep),
                num_replicas=copies * ep,
                schedule=Schedule(num_micro_batches=parts),
            )
            replicas = max(cluster.num_devices // ep, 1)
            concurrency = clients * ep * replicas
            traffic = RequestTraffic(
                concurrency=concurrency, num_requests=3 * concurrency, isl=isl, osl=osl
            )
            try:
                rows.append(serve_model(served, cluster, traffic).row(economics))
            except MoesimError as error:
                say(f"{name} {served.layout}: {error}")
    front = front_of(rows)
    write_csv(out / "designs.csv", rows)
    write_csv(out / "front.csv", front)
    print_table("No design is better for device and user", front, SHOWN)
    say(f"wrote {out}/designs.csv and front.csv")
    print_answer(front_answer(front))


if __name__ == "__main__":
    run_script(main)
