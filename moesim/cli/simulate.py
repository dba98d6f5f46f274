"""``moesim simulate``: price one MoE layer of a published model on a cluster."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import typer

from moesim.cli.options import (
    ColdFormat,
    ColdFraction,
    ColdRankFraction,
    Lenient,
    PrefetchRecall,
    PrunedFraction,
    ResidentFraction,
    TraceOut,
    check_trace,
    model_of,
    recall_of,
    takes,
    write_trace_of,
)
from moesim.units import GIB, MB, US


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulateOptions:
    """The options of moesim simulate."""

    preset: Annotated[
        str, typer.Option(help="Published model, or a file or folder with a config.json.")
    ] = "qwen3-235b-a22b"
    cluster: Annotated[
        str, typer.Option(help="Cluster, device profile, or path of a TOML file.")
    ] = "hgx-h100-8"
    tokens: Annotated[int, typer.Option(help="Tokens per device.")] = 1024
    routing: Annotated[
        str, typer.Option(help="Such as uniform, zipf:0.8, olmoe-c4, w2, trace:FILE.")
    ] = "uniform"
    ep: Annotated[
        int | None, typer.Option(help="Expert-parallel ranks; default: devices / tp.")
    ] = None
    tp: Annotated[int, typer.Option(help="Devices that share each expert.")] = 1
    placement: Annotated[
        str, typer.Option(help="Such as contiguous, balanced, eplb, affinity, local_search:200.")
    ] = "contiguous"
    replicas: Annotated[int, typer.Option(help="Expert replicas (eplb and others).")] = 0
    precision: Annotated[
        str,
        typer.Option(
            help="bf16, fp16, fp8, fp8_tensor, int8, int4, mxfp4, mxfp4_a8, nvfp4, nvfp4_a16."
        ),
    ] = "bf16"
    gate: Annotated[
        str | None,
        typer.Option(
            help="flat, group_limited:8:4, two_level:16:4, product_key, and options such as "
            "flat+bias+share_tokens:4; default: the preset's."
        ),
    ] = None
    num_experts: Annotated[int | None, typer.Option(help="Instead of the preset's.")] = None
    expert_intermediate_size: Annotated[
        str | None,
        typer.Option(
            help=(
                "Instead of the preset's: a width, or 64x256+64x1024 for experts that differ; 0 "
                "prunes."
            )
        ),
    ] = None
    top_k: Annotated[int | None, typer.Option(help="Instead of the preset's.")] = None
    capacity_factor: Annotated[
        float | None, typer.Option(help="Places of an expert over its mean load.")
    ] = None
    overflow: Annotated[str, typer.Option(help="Choices of full experts: drop or reroute.")] = (
        "drop"
    )
    padded: Annotated[
        bool, typer.Option("--padded", help="Fill empty places with rows of zeros.")
    ] = False
    exchange: Annotated[
        str | None,
        typer.Option(
            "--exchange",
            "--dispatch",
            help="nccl, deepep_normal, deepep_ll, nvl72, hierarchical, all_gather, ici, host, "
            "ideal; default: the cluster's.",
        ),
    ] = None
    kernels: Annotated[
        str,
        typer.Option(
            help="Whose kernels: auto, auto:sglang, auto:vllm, auto:trtllm, or a library such as "
            "trtllm-cutlass."
        ),
    ] = "auto"
    pruned_fraction: PrunedFraction = 0.0
    cold_fraction: ColdFraction = 0.0
    cold_format: ColdFormat = None
    cold_rank_fraction: ColdRankFraction = None
    resident_fraction: ResidentFraction = 1.0
    prefetch_recall: PrefetchRecall = "0"
    micro_batches: Annotated[
        int, typer.Option(help="Parts of the batch; 2 overlaps travel with compute.")
    ] = 1
    granularity: Annotated[str, typer.Option(help="device, or pair (to 256 devices).")] = "device"
    engine: Annotated[str, typer.Option(help="bound, flow, event or event_compiled.")] = "flow"
    seed: Annotated[int, typer.Option(help="Seed of the routing.")] = 0
    layer_only: Annotated[
        bool, typer.Option("--layer-only", help="Do not check that the whole model fits.")
    ] = False
    lenient: Lenient = False
    out: Annotated[Path | None, typer.Option(help="Write the result as CSV.")] = None
    trace: TraceOut = None


@takes(SimulateOptions)
def simulate(given: SimulateOptions) -> None:
    """Simulate one MoE layer of a published model on a cluster."""
    from moesim.design.candidate import Candidate, Parallelism, Workload
    from moesim.design.offload import Offload
    from moesim.design.schedule import Schedule
    from moesim.hardware import load_cluster
    from moesim.model import Gate, Precision
    from moesim.model.compression import Compression
    from moesim.model.widths import read_width
    from moesim.report.document import record
    from moesim.report.tables import write_csv
    from moesim.report.terminal import print_table, say, tell
    from moesim.simulation.memory import check_least_memory
    from moesim.simulation.prepare import prepare
    from moesim.simulation.run import exchange_of, simulate_prepared

    if given.trace is not None:
        from moesim.timeline.layer import check_engine

        check_engine(given.engine)
    check_trace(given.trace)
    model = model_of(given.preset, given.lenient).with_precision(Precision.named(given.precision))
    changes = {
        "num_experts": given.num_experts,
        "top_k": given.top_k,
        "capacity_factor": given.capacity_factor,
        "gate": Gate.parse(given.gate) if given.gate else None,
        "expert_intermediate_size": None
        if given.expert_intermediate_size is None
        else read_width(given.expert_intermediate_size),
    }
    layer = replace(
        model.layer,
        **{k: v for k, v in changes.items() if v is not None},  # type: ignore[arg-type]
        overflow=given.overflow,  # type: ignore[arg-type]
        padded=given.padded,
    )
    machine = load_cluster(given.cluster)
    spread = Parallelism(
        ep=given.ep if given.ep is not None else max(machine.num_devices // max(given.tp, 1), 1),
        tp=given.tp,
    )
    candidate = Candidate(
        layer=layer,
        parallelism=spread,
        placement=given.placement,
        num_replicas=given.replicas,
        kernels=given.kernels,
        dense_part=None if given.layer_only else model.dense_part,
        schedule=Schedule(
            exchange=given.exchange,
            num_micro_batches=given.micro_batches,
            granularity=given.granularity,  # type: ignore[arg-type]
        ),
        compression=Compression(
            pruned_fraction=given.pruned_fraction,
            cold_fraction=given.cold_fraction,
            cold_format=given.cold_format,
            cold_rank_fraction=given.cold_rank_fraction,
        ),
        offload=Offload(
            resident_fraction=given.resident_fraction,
            prefetch_recall=recall_of(given.prefetch_recall),
        ),
    )
    workload = Workload(num_tokens_per_device=given.tokens, routing=given.routing, seed=given.seed)
    check_least_memory(candidate, machine, workload)
    prepared = prepare(candidate, machine, workload)
    result = simulate_prepared(prepared, engine=given.engine)
    if candidate.cut_block:
        say(f"note: {candidate.cut_block}")
    rows = [
        {
            "phase": name,
            "time_us": seconds / US,
            "share": f"{100 * seconds / result.layer_time_s:.0f} %",
            "grade": result.grade_of(name).letter,
            "rests_on": result.grade_of(name).rests_on,
        }
        for name, seconds in result.phase_time_s.items()
        if seconds > 0
    ]
    print_table(
        f"{given.preset} on {machine.name}: {candidate.label}",
        rows,
        {
            "phase": "phase",
            "time_us": "us",
            "share": "share",
            "grade": "grade",
            "rests_on": "rests on",
        },
    )
    tell(
        f"layer          {result.layer_time_s / US:,.0f} us ({result.layer_time_low_s / US:,.0f} "
        f"to {result.layer_time_high_s / US:,.0f}), engine {given.engine}",
        indent=15,
    )
    tell(f"throughput     {result.tokens_per_s_per_device:,.0f} layer tokens/s per device")
    for row in exchange_of(prepared):
        tell(
            f"{row['direction']:14} {row['exchange']}: {row['copies_per_token']:.2f} copies a "
            f"token, {row['near_mb']:,.1f} MB near and {row['far_mb']:,.1f} MB far through the "
            f"busiest port, {row['num_sms']} SMs; limited by {row['limited_by']}",
            indent=15,
        )
    if result.kernels:
        tell(f"kernels        {result.kernels}" + (f", tile {result.tile}" if result.tile else ""))
    tell(f"imbalance      {result.load_imbalance:.2f} (busiest device's rows over the mean)")
    effects = result.effects
    tell(
        f"gate           {effects.devices_per_token:.2f} devices and "
        f"{effects.domains_per_token:.2f} domains a token; "
        f"{100 * result.dropped_token_fraction:.1f} % of choices dropped, "
        f"{100 * effects.rerouted_token_fraction:.1f} % re-routed; "
        f"{100 * effects.padded_row_fraction:.1f} % of rows padded",
        indent=15,
    )
    if result.storage.cold_kernels:
        tell(f"cold experts   {result.storage.cold_kernels}")
    if result.storage.copied_bytes:
        tell(
            f"host memory    {100 * result.storage.hit_fraction:.0f} % of active experts there in "
            f"time, {100 * result.storage.recall:.0f} % of missing ones guessed, "
            f"{result.storage.copied_bytes / MB:,.1f} MB a layer over the busiest link",
            indent=15,
        )
    if result.peak_memory_bytes is not None:
        usable = machine.profile.usable_bytes / GIB
        tell(f"memory         {result.peak_memory_bytes / GIB:.1f} of {usable:.1f} usable GiB")
    phase, grade = result.graded
    tell(
        f"evidence       {result.evidence}, {result.calibration}; grade {grade.letter} by {phase}; "
        f"bottleneck {result.bottleneck}",
        indent=15,
    )
    if result.granularity.endswith("_expected"):
        tell("               traffic expected from a sample: not every token was drawn")
    record({"result": result.row(), "phases": rows})
    if given.out is not None:
        write_csv(given.out, [result.row()])
    if given.trace is not None:
        from moesim.timeline.layer import layer_sheet

        write_trace_of(given.trace, layer_sheet(prepared, result))
