"""``moesim serve``: what a whole model does on a cluster."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

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
from moesim.errors import ConfigError, MoesimError

if TYPE_CHECKING:
    from moesim.design.served import ServedModel
    from moesim.design.step import ExpertLoad
    from moesim.hardware import Cluster
    from moesim.hardware.economics import Economics
    from moesim.serving.loop import RequestTraffic
    from moesim.serving.loop.watching import StepWatch
    from moesim.serving.whole import WholeResult
    from moesim.simulation.steps.times import StepTable


#: clients of a closed loop by default
_CLIENTS = 64
#: columns of the table of layouts
_SHOWN = {
    "layout": "layout",
    "concurrency": "clients",
    "output_tokens_per_s_per_device": "tok/s/dev",
    "output_tokens_per_s_per_user": "tok/s/user",
    "ttft_p50_ms": "TTFT ms",
    "tpot_p50_ms": "TPOT ms",
    "usd_per_million_tokens": "USD/M",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeOptions:
    """The options of moesim serve."""

    model: Annotated[
        str, typer.Option(help="Published model, or a file or folder with a config.json.")
    ]
    cluster: Annotated[str, typer.Option(help="Cluster, device profile, or path of a TOML file.")]
    layout: Annotated[
        str | None,
        typer.Option(
            help="Such as 'tp8', 'tp8 ep8', 'dp64 ep64', 'tp4 pp2'; default: the best of those "
            "that engines launch."
        ),
    ] = None
    prefill_layout: Annotated[
        str | None,
        typer.Option(help="Other devices compute the prompts, in this layout; --layout decodes."),
    ] = None
    prefill_copies: Annotated[int, typer.Option(help="Copies that compute prompts.")] = 1
    isl: Annotated[
        str, typer.Option(help="Tokens of a prompt: N, uniform:A-B or lognormal:M,S,N.")
    ] = "1024"
    osl: Annotated[str, typer.Option(help="Tokens of an answer, in the same forms.")] = "1024"
    concurrency: Annotated[
        int | None, typer.Option(help="Clients of a closed loop; default: 64, or sought by --slo.")
    ] = None
    rate: Annotated[float | None, typer.Option(help="Requests per second (Poisson).")] = None
    requests: Annotated[
        Path | None, typer.Option(help="CSV of requests: isl, osl, and arrival_s.")
    ] = None
    num_requests: Annotated[int | None, typer.Option(help="Number of requests.")] = None
    slo: Annotated[
        str | None,
        typer.Option(help="Find the most clients within limits, such as 'ttft<=2s,tpot<=50ms'."),
    ] = None
    engine: Annotated[str, typer.Option(help="Serving engine: sglang, vllm or trtllm.")] = "sglang"
    precision: Annotated[str, typer.Option(help="Format of the experts; auto: published.")] = "auto"
    dense_format: Annotated[
        str,
        typer.Option(
            help="Format of other GEMMs: auto, bfloat16, fp8_block, fp8, nvfp4, int4_wo and others."
        ),
    ] = "auto"
    kv: Annotated[str, typer.Option(help="Format of the KV cache: bfloat16 or fp8.")] = "bfloat16"
    exchange: Annotated[
        str | None, typer.Option(help="Exchange of tokens; default: the engine's.")
    ] = None
    micro_batches: Annotated[
        int, typer.Option(help="2: one half computes while the other's tokens travel.")
    ] = 1
    schedule: Annotated[
        str,
        typer.Option(
            help="Order of a step: serial, shared_under_dispatch, two_batch or chunked, the latter "
            "two with --micro-batches of at least 2. Default: by --micro-batches."
        ),
    ] = ""
    placement: Annotated[str, typer.Option(help="Such as contiguous, eplb.")] = "contiguous"
    replicas: Annotated[int, typer.Option(help="Expert replicas.")] = 0
    kernels: Annotated[str, typer.Option(help="Library of the experts; auto: fastest.")] = "auto"
    pruned_fraction: PrunedFraction = 0.0
    cold_fraction: ColdFraction = 0.0
    cold_format: ColdFormat = None
    cold_rank_fraction: ColdRankFraction = None
    resident_fraction: ResidentFraction = 1.0
    prefetch_recall: PrefetchRecall = "0"
    routing: Annotated[str, typer.Option(help="Load of the experts.")] = "power_law:1.2"
    layer_correlation: Annotated[
        float,
        typer.Option(help="Correlation of layers' loads; 1: the same experts are hot in all."),
    ] = 0.0
    chunk: Annotated[int | None, typer.Option(help="Most prompt tokens of a step.")] = None
    max_seqs: Annotated[int | None, typer.Option(help="Most sequences of a rank.")] = None
    kv_blocks: Annotated[
        int | None, typer.Option(help="KV blocks of a rank; default: those that fit.")
    ] = None
    prefill_interval: Annotated[int, typer.Option(help="Decode steps between prompts.")] = 0
    mtp: Annotated[
        str | None, typer.Option(help="Acceptance of each drafted token, such as .77,.38.")
    ] = None
    economics: Annotated[str, typer.Option(help="Cost and power model.")] = "default"
    seed: Annotated[int, typer.Option(help="Seed of routing and requests.")] = 0
    show: Annotated[int, typer.Option(help="Number of layouts to print.")] = 6
    lenient: Lenient = False
    out: Annotated[Path | None, typer.Option(help="Write the runs as CSV.")] = None
    out_requests: Annotated[
        Path | None, typer.Option(help="Write the best run's requests as CSV.")
    ] = None
    trace: TraceOut = None


@takes(ServeOptions)
def serve(given: ServeOptions) -> None:
    """Serve a whole model: TTFT, TPOT, throughput, memory, energy and cost."""
    from moesim.engines.ahead import compile_ahead
    from moesim.hardware import load_cluster
    from moesim.hardware.economics import load_economics
    from moesim.report.answer import print_answer
    from moesim.report.document import record
    from moesim.report.tables import check_writable, write_csv
    from moesim.report.terminal import print_table, say, tell
    from moesim.serving.answer import serve_answer
    from moesim.serving.text import INDENT, lines_of

    for path in (given.out, given.out_requests):
        if path is not None:
            check_writable(path, make_folder=True)
    check_trace(given.trace)
    cluster, economics = load_cluster(given.cluster), load_economics(given.economics)
    designs = _designs(given, cluster)
    if len(designs) > 1 or cluster.num_devices > 8:
        compile_ahead()
    results, refused = [], []
    for design in designs:
        try:
            results.append(_run(given, cluster, design))
        except MoesimError as error:
            refused.append(error)
    if not results:
        raise refused[0]
    results.sort(key=_throughput(economics), reverse=True)
    for line in lines_of(results[0], economics):
        tell(line, indent=INDENT)
    if len(results) > 1:
        rows = [result.row(economics) for result in results]
        print_table("Layouts", rows, _SHOWN, limit=given.show)
    if given.out is not None:
        write_csv(given.out, [result.row(economics) for result in results])
        say(f"wrote {given.out}")
    if given.out_requests is not None:
        write_csv(given.out_requests, [request.row() for request in results[0].loop.requests])
        say(f"wrote {given.out_requests}")
    if given.trace is not None:
        _trace(given, cluster, results[0], given.trace)
    record({"best": results[0].row(economics)})
    print_answer(serve_answer(results, len(refused), economics))


def _trace(given: ServeOptions, cluster: "Cluster", best: "WholeResult", path: Path) -> None:
    """Write a timeline of the best run, whose requests are served once more."""
    from moesim.serving.loop import ServingResult
    from moesim.serving.loop.watching import FirstSteps
    from moesim.timeline.serving import SHOWN_STEPS, serving_sheet

    assert isinstance(best.loop, ServingResult), "requests were followed"
    seen = FirstSteps(after_s=best.loop.window.open_s, most=SHOWN_STEPS)
    _runner(given, cluster, best.served, best.pools[-1].table)(best.traffic, seen)
    write_trace_of(path, serving_sheet(best, _load(given), seen.steps))


def _throughput(economics: "Economics") -> Callable[["WholeResult"], float]:
    return lambda result: float(str(result.row(economics)["output_tokens_per_s_per_device"]))


def _designs(given: ServeOptions, cluster: "Cluster") -> list["ServedModel"]:
    """Return the design in the layouts to try."""
    from moesim.design.offload import Offload
    from moesim.design.schedule import Schedule, step_order
    from moesim.design.served import ServedModel
    from moesim.design.step import Layout
    from moesim.model import Precision
    from moesim.model.compression import Compression
    from moesim.report.terminal import say
    from moesim.serving.formats import dense_format_of, precision_on
    from moesim.serving.layouts import layouts_of, placed

    model = model_of(given.model, given.lenient)
    served = ServedModel(
        name=model.name,
        spec=model.spec,
        precision=Precision.named(precision_on(model, cluster.profile, given.precision)),
        dense_format=dense_format_of(model) if given.dense_format == "auto" else given.dense_format,
        kv_format=given.kv,
        placement=given.placement,
        num_replicas=given.replicas,
        kernels=given.kernels,
        engine=given.engine,
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
    order, least = step_order(given.schedule)
    schedule = Schedule(exchange=given.exchange, num_micro_batches=max(given.micro_batches, least))
    if given.layout is None:
        return [
            replace(one, schedule=schedule, order=order) if one.layout.exchanges_tokens else one
            for one in layouts_of(served, cluster)
        ]
    layout = Layout.parse(given.layout)
    design = placed(replace(served, layout=layout, schedule=schedule, order=order))
    if design.cut_block:
        say(f"note: {design.cut_block}")
    return [design]


def _run(given: ServeOptions, cluster: "Cluster", design: "ServedModel") -> "WholeResult":
    from moesim.serving.limits import most_clients, parse_limits
    from moesim.serving.loop import RequestTraffic
    from moesim.simulation.steps.times import StepTable

    if given.slo is not None and not (given.rate is given.requests is given.concurrency is None):
        raise ConfigError("slo: expected neither --concurrency, --rate nor --requests with it")
    open_traffic = given.rate is not None or given.requests is not None
    clients = given.concurrency
    if clients is None and not open_traffic:
        clients = _CLIENTS
    traffic = RequestTraffic(
        concurrency=clients,
        rate_per_s=given.rate,
        file=given.requests,
        num_requests=given.num_requests,
        isl=given.isl,
        osl=given.osl,
        seed=given.seed,
    )
    run = _runner(given, cluster, design, StepTable(design, cluster, load=_load(given)))
    if given.slo is None:
        return run(traffic, None)
    found = most_clients(lambda one: run(one, None), traffic, parse_limits(given.slo))
    if found is None:
        few = RequestTraffic(concurrency=1, isl=given.isl, osl=given.osl, num_requests=4)
        row = run(few, None).loop.row()
        raise ConfigError(
            f"slo: expected limits that a single client keeps as {design.layout}, whose TTFT is "
            f"{row['ttft_p90_ms']:.0f} ms and TPOT {row['tpot_p90_ms']:.2f} ms, got {given.slo}"
        )
    return found


def _load(given: ServeOptions) -> "ExpertLoad":
    from moesim.design.step import ExpertLoad

    return ExpertLoad(routing=given.routing, seed=given.seed, correlation=given.layer_correlation)


def _runner(
    given: ServeOptions, cluster: "Cluster", design: "ServedModel", table: "StepTable"
) -> Callable[["RequestTraffic", "StepWatch | None"], "WholeResult"]:
    """Return what serves requests with a design, whose steps have times already."""
    from moesim.design.step import Layout
    from moesim.serving.layouts import placed
    from moesim.serving.pools import ServingKnobs
    from moesim.serving.whole import serve_model, serve_split

    knobs = ServingKnobs(
        chunk=given.chunk,
        max_seqs=given.max_seqs,
        kv_blocks=given.kv_blocks,
        prefill_interval=given.prefill_interval,
        acceptance=_acceptance(given.mtp),
    )
    load = _load(given)

    def run(traffic: "RequestTraffic", watch: "StepWatch | None") -> "WholeResult":
        if given.prefill_layout is not None:
            prompts = placed(replace(design, layout=Layout.parse(given.prefill_layout)))
            return serve_split(
                prompts,
                design,
                cluster,
                traffic,
                prefill_copies=given.prefill_copies,
                knobs=knobs,
                load=load,
                watch=watch,
            )
        return serve_model(
            design, cluster, traffic, knobs=knobs, load=load, table=table, watch=watch
        )

    return run


def _acceptance(text: str | None) -> tuple[float, ...]:
    """Return the probabilities in a text such as ``.77,.38``."""
    try:
        return tuple(float(part) for part in text.split(",")) if text else ()
    except ValueError:
        raise ConfigError(f"mtp: expected probabilities such as .77,.38, got {text!r}") from None
