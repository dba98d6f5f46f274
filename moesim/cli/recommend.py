"""``moesim recommend``: choose parallelism, placement, replicas and format for a model."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from moesim.cli.options import takes

#: columns of the table of alternatives
_SHOWN = {
    "group": "group",
    "ep": "ep",
    "tp": "tp",
    "placement": "placement",
    "num_replicas": "replicas",
    "precision": "format",
    "exchange": "exchange",
    "num_micro_batches": "parts",
    "layer_time_us": "layer us",
    "moe_layers_tokens_per_s_per_device": "tokens/s/device",
    "peak_memory_gib": "GiB",
    "calibration": "calibration",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class RecommendOptions:
    """The options of moesim recommend."""

    model: Annotated[str, typer.Option(help="Preset, or path of a Hugging Face config.json.")]
    cluster: Annotated[str, typer.Option(help="Cluster, device profile, or path of a TOML file.")]
    gpus: Annotated[
        int | None,
        typer.Option(help="Devices: part of a node, or whole nodes; default: the cluster's."),
    ] = None
    phase: Annotated[str, typer.Option(help="prefill or decode.")] = "prefill"
    tokens: Annotated[
        int | None,
        typer.Option(
            help="Tokens per device in a forward pass; default: 4096 for prefill, 128 for "
            "decode, or with --latency-ms the largest power of two that keeps it."
        ),
    ] = None
    kv_tokens: Annotated[
        int | None, typer.Option(help="Tokens in each device's KV cache; default: the batch's.")
    ] = None
    routing: Annotated[
        str, typer.Option(help="Load of the experts, such as power_law:1.2, olmoe-c4, trace:FILE.")
    ] = "power_law:1.2"
    latency_ms: Annotated[
        float | None,
        typer.Option(
            help=(
                "Upper bound for all MoE layers of one forward pass (attention and the rest are "
                "not simulated)."
            )
        ),
    ] = None
    precision: Annotated[str, typer.Option(help="auto, or formats such as bf16,fp8,int4.")] = "auto"
    objective: Annotated[
        str, typer.Option(help="throughput, cost or energy, of the MoE layers.")
    ] = "throughput"
    economics: Annotated[str, typer.Option(help="Cost and power model: a name or a file.")] = (
        "default"
    )
    show: Annotated[int, typer.Option(help="Alternatives to print.", min=0)] = 8
    seed: Annotated[int, typer.Option(help="Seed of the routing.")] = 0
    out: Annotated[
        Path | None, typer.Option(help="Write the recommended design and its alternatives as CSV.")
    ] = None


@takes(RecommendOptions)
def recommend(given: RecommendOptions) -> None:
    """Recommend parallelism, placement, replicas and format for a model on a cluster."""
    from moesim.advice.recommend import recommend as run
    from moesim.advice.text import lines_of
    from moesim.report.tables import check_writable, write_csv
    from moesim.report.terminal import print_table, say

    if given.out is not None:
        check_writable(given.out, make_folder=True)
    found = run(
        given.model,
        given.cluster,
        gpus=given.gpus,
        phase=given.phase,  # type: ignore[arg-type]
        tokens=given.tokens,
        kv_tokens=given.kv_tokens,
        routing=given.routing,
        latency_ms=given.latency_ms,
        precision=given.precision,
        objective=given.objective,  # type: ignore[arg-type]
        economics=given.economics,
        seed=given.seed,
    )
    rows = found.rows()
    print(
        f"{found.model.name} on {found.cluster.name}, {found.cluster.num_devices} devices: "
        f"{found.best.candidate.label}"
    )
    for line in lines_of(found):
        print(line)
    if given.show and rows[1:]:
        print_table(
            "Alternatives (group 0: none is better for certain)", rows[1 : given.show + 1], _SHOWN
        )
    if given.out is not None:
        write_csv(given.out, rows)
        say(f"wrote {given.out}")
