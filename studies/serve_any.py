"""What does a published model do on a cluster, in every layout that engines launch?

Serves closed loops of 1 to 1,024 clients in every layout, and shows the Pareto front of tokens per
second of a device and of a user. MODEL is a preset, or a file or folder with a config.json.

Writes runs.csv and front.csv.
"""

from pathlib import Path
from typing import Annotated

import typer

from moesim import load_cluster
from moesim.cli.script import Out, Quick, run_script
from moesim.design.served import ServedModel
from moesim.errors import MoesimError
from moesim.hardware.economics import load_economics
from moesim.model import Precision
from moesim.model.hf_config import load_model
from moesim.report.answer import print_answer
from moesim.report.tables import writable_folder, write_csv
from moesim.report.terminal import print_table, say
from moesim.serving.answer import front_answer
from moesim.serving.formats import dense_format_of, precision_on
from moesim.serving.layouts import layouts_of
from moesim.serving.loop import RequestTraffic
from moesim.serving.whole import front_of, serve_model
from moesim.simulation.steps.times import StepTable

OUT = Path(__file__).parent / "out" / "serve_any"
SHOWN = dict(layout="layout", concurrency="clients", ttft_p50_ms="TTFT ms", tpot_p50_ms="TPOT ms")
SHOWN |= dict(output_tokens_per_s_per_device="tok/s/dev", output_tokens_per_s_per_user="tok/s/user")
SHOWN |= dict(usd_per_million_tokens="USD/M")


def main(
    name: Annotated[str, typer.Argument(help="Model.", metavar="MODEL")],
    cluster: Annotated[str, typer.Option(help="Cluster.")] = "hgx-h100-8",
    engine: Annotated[str, typer.Option(help="Serving engine.")] = "sglang",
    isl: Annotated[str, typer.Option(help="Tokens of a prompt.")] = "1024",
    osl: Annotated[str, typer.Option(help="Tokens of an answer.")] = "1024",
    quick: Quick = False,
    out: Out = OUT,
) -> None:
    """Serve the model in every layout, and write runs and front."""
    writable_folder(out)
    model, machine = load_model(name), load_cluster(cluster)
    economics, rows = load_economics("default"), []
    served = ServedModel(
        name=model.name,
        spec=model.spec,
        precision=Precision.named(precision_on(model, machine.profile)),
        dense_format=dense_format_of(model),
        engine=engine,
    )
    for design in layouts_of(served, machine):
        table = StepTable(design, machine)
        for clients in (16, 256) if quick else (1, 4, 16, 64, 256, 1024):
            traffic = RequestTraffic(
                concurrency=clients, num_requests=4 * clients + 4, isl=isl, osl=osl
            )
            try:
                rows.append(serve_model(design, machine, traffic, table=table).row(economics))
            except MoesimError as error:
                say(f"{design.layout}: {error}")
                break
    front = front_of(rows)
    write_csv(out / "runs.csv", rows)
    write_csv(out / "front.csv", front)
    print_table("No run is better for device and user", front, SHOWN)
    say(f"wrote {out}/runs.csv and front.csv")
    print_answer(front_answer(front))


if __name__ == "__main__":
    run_script(main)
