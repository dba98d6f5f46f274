"""``moesim train``: a training step of a whole model on a cluster."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from moesim.cli.options import Lenient, model_of, takes

if TYPE_CHECKING:
    from moesim.design.training.model import TrainedModel
    from moesim.hardware import Cluster
    from moesim.hardware.economics import Economics
    from moesim.report.answer import Answer
    from moesim.simulation.training.result import TrainResult

_INDENT = 14
#: phases that are told, those that take longest
_SHOWN = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainOptions:
    """The options of moesim train."""

    model: Annotated[
        str, typer.Option(help="Published model, or a file or folder with a config.json.")
    ]
    cluster: Annotated[str, typer.Option(help="Cluster, device profile, or path of a TOML file.")]
    global_batch: Annotated[int, typer.Option(help="Sequences of a step.")]
    sequence: Annotated[int, typer.Option(help="Tokens of a sequence.")] = 4096
    layout: Annotated[
        str, typer.Option(help="Such as 'tp2 pp8 ep32 vp4', with cp and etp; dp is the rest.")
    ] = ""
    gpus: Annotated[
        int | None, typer.Option(help="Number of devices, in whole nodes; default: the cluster's.")
    ] = None
    micro_batch: Annotated[int, typer.Option(help="Sequences that a rank computes at once.")] = 1
    pipeline: Annotated[
        str, typer.Option(help="1f1b, interleaved (with vp), zero_bubble or dualpipe.")
    ] = "1f1b"
    overlap_exchange: Annotated[
        bool, typer.Option(help="Tokens of one micro-batch travel while another computes.")
    ] = False
    overlap_reduce: Annotated[
        bool, typer.Option(help="Gradients and parameters travel under the passes.")
    ] = True
    zero: Annotated[int, typer.Option(help="Stage of ZeRO, 0 to 3.")] = 1
    shard_group: Annotated[
        int | None, typer.Option(help="Ranks that states are divided over (HSDP); default: all.")
    ] = None
    optimizer: Annotated[str, typer.Option(help="adamw or muon.")] = "adamw"
    state_format: Annotated[str, typer.Option(help="Format of moments.")] = "float32"
    gradient_format: Annotated[str, typer.Option(help="Format of summed gradients.")] = "float32"
    recompute: Annotated[str, typer.Option(help="none, selective or full.")] = "none"
    kept_format: Annotated[
        str, typer.Option(help="Format of kept activations: bfloat16 or float8_e4m3.")
    ] = "bfloat16"
    offload: Annotated[float, typer.Option(help="Fraction of activations kept by the host.")] = 0.0
    formats: Annotated[str, typer.Option(help="bf16, fp8, fp8_block or mxfp8.")] = "bf16"
    capacity_factor: Annotated[
        float | None, typer.Option(help="Rows of an expert over the mean; default: none dropped.")
    ] = None
    exchange: Annotated[
        str | None, typer.Option(help="Exchange of tokens; default: the cluster's.")
    ] = None
    every_choice: Annotated[
        bool, typer.Option(help="A copy of a token for each choice, not for each device.")
    ] = False
    placement: Annotated[str, typer.Option(help="Such as contiguous, eplb.")] = "contiguous"
    kernels: Annotated[str, typer.Option(help="Library of the experts; auto: fastest.")] = "auto"
    uneven_stages: Annotated[bool, typer.Option(help="Stages may differ by a layer.")] = False
    framework: Annotated[
        str, typer.Option(help="Whose efficiency is applied: megatron, none, or a file.")
    ] = "megatron"
    routing: Annotated[str, typer.Option(help="Load of the experts.")] = "uniform"
    tokens: Annotated[
        float | None, typer.Option(help="Tokens of the whole training, for days and USD.")
    ] = None
    economics: Annotated[str, typer.Option(help="Cost model.")] = "default"
    seed: Annotated[int, typer.Option(help="Seed of the routing.")] = 0
    lenient: Lenient = False
    out: Annotated[Path | None, typer.Option(help="Write the step as CSV.")] = None


@takes(TrainOptions)
def train(given: TrainOptions) -> None:
    """Train a whole model: time of a step, tokens/s, MFU, bubble, memory, days and USD."""
    from moesim.design.step import ExpertLoad
    from moesim.hardware import load_cluster
    from moesim.hardware.economics import load_economics
    from moesim.hardware.sizing import sized
    from moesim.report.answer import print_answer
    from moesim.report.document import record
    from moesim.report.tables import check_writable, write_csv
    from moesim.report.terminal import say, tell
    from moesim.simulation.training.simulate import simulate_training

    if given.out is not None:
        check_writable(given.out, make_folder=True)
    cluster = sized(load_cluster(given.cluster), given.gpus)
    economics = load_economics(given.economics)
    result = simulate_training(
        _design(given, cluster),
        cluster,
        load=ExpertLoad(routing=given.routing, seed=given.seed),
        framework_name=given.framework,
    )
    for line in _lines(result, given.tokens, economics):
        tell(line, indent=_INDENT)
    if given.out is not None:
        write_csv(given.out, [result.row(tokens=given.tokens, economics=economics)])
        say(f"wrote {given.out}")
    record({"step": result.row(tokens=given.tokens, economics=economics)})
    print_answer(_answer(result))


def _design(given: TrainOptions, cluster: "Cluster") -> "TrainedModel":
    from moesim.design.training.formats import train_formats
    from moesim.design.training.layout import TrainLayout
    from moesim.design.training.model import TrainedModel
    from moesim.design.training.plan import plan_of

    model, formats = model_of(given.model, given.lenient), train_formats(given.formats)
    return TrainedModel(
        name=model.name,
        spec=model.spec,
        layout=TrainLayout.parse(given.layout, cluster.num_devices),
        plan=plan_of(given),
        precision=formats.experts,
        dispatch_format=formats.dispatch,
        dense_format=formats.dense,
        capacity_factor=given.capacity_factor,
        placement=given.placement,
        exchange=given.exchange,
        every_choice=given.every_choice,
        kernels=given.kernels,
        uneven_stages=given.uneven_stages,
    )


def _lines(result: "TrainResult", tokens: float | None, economics: "Economics") -> list[str]:
    """Return what a step says, line by line."""
    from moesim.units import GIB, TERA

    memory, phases = result.memory, sorted(result.phase_time_s.items(), key=lambda one: -one[1])
    told = ", ".join(
        f"{name} {100 * seconds / result.time_s:.1f} %" for name, seconds in phases[:_SHOWN]
    )
    lines = [
        ("design", result.trained.label),
        (
            "step",
            f"{result.time_s:.3f} s ({result.low_s:.3f} to {result.high_s:.3f}), "
            f"{result.trained.num_micro_batches} micro-batches on "
            f"{result.trained.layout.num_devices} devices, framework {result.framework}",
        ),
        (
            "throughput",
            f"{result.tokens_per_s:,.0f} tokens/s, {result.tokens_per_s_per_device:,.0f} per "
            f"device, {result.flops_per_s_per_device / TERA:.0f} TFLOP/s per device",
        ),
        (
            "utilization",
            f"MFU {100 * result.mfu:.1f} % of the bf16 peak ({100 * result.format_mfu:.1f} % of "
            f"the format's), HFU {100 * result.hfu:.1f} %",
        ),
        (
            "waiting",
            f"bubble {100 * result.bubble_fraction:.1f} %, exposed communication "
            f"{100 * result.exposed_s / result.time_s:.1f} %",
        ),
        ("phases", told),
        (
            "memory",
            f"{memory.total_bytes / GIB:.1f} of "
            f"{result.cluster.profile.usable_bytes / GIB:.1f} GiB: weights "
            f"{memory.weights_bytes / GIB:.1f}, gradients {memory.gradients_bytes / GIB:.1f}, "
            f"optimizer {memory.optimizer_bytes / GIB:.1f}, activations "
            f"{memory.activations_bytes / GIB:.1f}, buffers {memory.buffers_bytes / GIB:.1f}",
        ),
    ]
    if tokens is not None:
        lines.append(("training", _cost(result, tokens, economics)))
    lines.append(("grade", f"{result.grade}: {_worst(result)}"))
    return [f"{name:<{_INDENT}}{text}" for name, text in lines]


def _answer(result: "TrainResult") -> "Answer":
    """Return what to make of a step."""
    from moesim.report.answer import Answer

    trained = result.trained
    most = max(result.phase_time_s, key=lambda name: result.phase_time_s[name])
    waits = result.bubble_fraction + result.exposed_s / result.time_s
    step = (
        "Fill the pipeline: more micro-batches, or --pipeline dualpipe"
        if result.bubble_fraction > 0.5 * waits
        else "Overlap or shorten the exchanges: another --layout or --overlap-exchange"
    )
    if waits < 0.1:
        step = f"Little waits, so only faster {most} would help: try another format or --kernels"
    return Answer(
        build=f"{trained.name} as {trained.layout} ({trained.plan}) takes {result.time_s:.3f} s a "
        f"step, {result.tokens_per_s_per_device:,.0f} tokens/s per device, MFU {result.mfu:.1%}; "
        f"most of it is {most}.",
        confidence=f"A step takes {result.low_s:.3f} to {result.high_s:.3f} s (P10 to P90), grade "
        f"{result.grade} of A to D ({_worst(result)}). It is simulated, and no step of yours was "
        "measured.",
        next_step=f"{step}; `moesim study run` with a training space compares layouts, and a timed "
        "step of yours would show whether the framework's factor holds.",
    )


def _cost(result: "TrainResult", tokens: float, economics: "Economics") -> str:
    days = f"{result.days(tokens):,.1f} days to {tokens:.3g} tokens without failures"
    if economics.unknown_price(result.cluster) is not None:
        return days
    return f"{days}, {result.usd(tokens, economics):,.0f} USD"


def _worst(result: "TrainResult") -> str:
    """Return the phase that decides the grade, and what it rests on."""
    known = [
        (result.grades[name].letter, seconds, name)
        for name, seconds in result.phase_time_s.items()
        if name in result.grades and seconds >= 0.1 * result.time_s
    ]
    if not known:
        return "no phase that is graded takes a tenth of the step"
    name = max(known)[2]
    return f"{name}: {result.grades[name].rests_on}"
