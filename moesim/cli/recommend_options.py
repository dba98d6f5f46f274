"""The options of ``moesim recommend``."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from moesim.cli.options import Lenient


@dataclass(frozen=True, slots=True, kw_only=True)
class RecommendOptions:
    """The options of moesim recommend."""

    model: Annotated[str, typer.Option(help="Preset, or a file or folder with a config.json.")]
    cluster: Annotated[
        str | None, typer.Option(help="Cluster, device profile, or path of a TOML file.")
    ] = None
    gpus: Annotated[
        int | None,
        typer.Option(help="Devices: part of a node, or whole nodes; default: the cluster's."),
    ] = None
    isl: Annotated[
        str | None,
        typer.Option(
            help="Whole model: tokens of a prompt: N, uniform:A-B or lognormal:M,S,N; "
            "default: 1024."
        ),
    ] = None
    osl: Annotated[
        str | None, typer.Option(help="Whole model: tokens of an answer; default: 1024.")
    ] = None
    slo: Annotated[
        str | None,
        typer.Option(
            help="Whole model: limits, such as 'ttft<=2s,tpot<=50ms'; default: 5 s and 50 ms on "
            "average."
        ),
    ] = None
    concurrency: Annotated[
        int | None,
        typer.Option(help="Whole model: clients; default: as many as keep the limits.", min=1),
    ] = None
    latency_ms: Annotated[
        float | None, typer.Option(help="Whole model: upper bound of the mean TPOT.")
    ] = None
    engine: Annotated[
        str | None,
        typer.Option(help="Whole model: serving engines to choose from; default: all."),
    ] = None
    phase: Annotated[
        str | None, typer.Option(help="MoE layers: prefill or decode; default: prefill.")
    ] = None
    tokens: Annotated[
        int | None,
        typer.Option(
            help="Tokens per device in a forward pass; default: 4096 for prefill, 128 for "
            "decode, or with --layers-latency-ms the largest power of two that keeps it."
        ),
    ] = None
    kv_tokens: Annotated[
        int | None,
        typer.Option(
            help="Tokens in each device's KV cache; default: the batch's, or 4096 a sequence."
        ),
    ] = None
    routing: Annotated[
        str, typer.Option(help="Load of the experts, such as power_law:1.2, olmoe-c4, trace:FILE.")
    ] = "power_law:1.2"
    layers_latency_ms: Annotated[
        float | None,
        typer.Option(
            help="Upper bound for all MoE layers of one forward pass, without attention and the "
            "rest."
        ),
    ] = None
    precision: Annotated[str, typer.Option(help="auto, or formats such as bf16,fp8,int4.")] = "auto"
    kernels: Annotated[
        str,
        typer.Option(
            help="auto, auto:ENGINE (sglang, vllm, trtllm), or a library such as trtllm-cutlass."
        ),
    ] = "auto"
    objective: Annotated[str, typer.Option(help="throughput, cost or energy.")] = "throughput"
    economics: Annotated[str, typer.Option(help="Cost and power model: a name or a file.")] = (
        "default"
    )
    show: Annotated[int, typer.Option(help="Alternatives to print.", min=0)] = 8
    seed: Annotated[int, typer.Option(help="Seed of the routing.")] = 0
    compare: Annotated[
        str | None,
        typer.Option(help="Clusters to compare in one table, separated by commas."),
    ] = None
    budget_usd_per_hour: Annotated[
        float | None,
        typer.Option(help="With --compare: every cluster at the size that this pays."),
    ] = None
    export: Annotated[
        str | None,
        typer.Option(
            help="Recommend what this engine launches (sglang, vllm or trtllm), and write its "
            "command, expert map and a README to the folder --out."
        ),
    ] = None
    lenient: Lenient = False
    checkpoint: Annotated[
        str, typer.Option(help="With --export: checkpoint that the command names.")
    ] = "$MODEL"
    out: Annotated[
        Path | None,
        typer.Option(
            help="Write the recommended design and its alternatives as CSV, or with --compare the "
            "table; with --export, the folder."
        ),
    ] = None
