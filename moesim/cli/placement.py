"""``moesim placement``: plan, export and read placements, and price a move between them."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from moesim.cli.options import Lenient, model_of, takes
from moesim.errors import ConfigError
from moesim.limits import MOST_LAYERS

if TYPE_CHECKING:
    from moesim.design.candidate import Candidate

placement_app = typer.Typer(
    no_args_is_help=True, help="Plan where experts go, for serving engines and over time."
)

Preset = Annotated[
    str, typer.Option(help="Model whose layers are placed: a preset, a config.json or its folder.")
]
ClusterName = Annotated[str, typer.Option(help="Cluster, or path of a TOML file.")]
Strategy = Annotated[
    str,
    typer.Option(help="Strategy, such as eplb, eplb_hierarchical, affinity or local_search:200."),
]
Replicas = Annotated[int, typer.Option(help="Expert slots beyond one per expert.", min=0)]
Tokens = Annotated[int, typer.Option(help="Tokens per device.")]
Seed = Annotated[int, typer.Option(help="Seed of the routing.")]


def _candidate(
    preset: str, lenient: bool, placement: str, replicas: int, ranks: int
) -> "Candidate":
    from moesim.design.candidate import Candidate, Parallelism
    from moesim.model import Precision

    # experts move as bf16 whatever the file has, as those of a preset do
    model = model_of(preset, lenient).with_precision(Precision())
    return Candidate(
        layer=model.layer,
        parallelism=Parallelism(ep=ranks),
        placement=placement,
        num_replicas=replicas,
        dense_part=model.dense_part,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportOptions:
    """The options of moesim placement export."""

    out: Annotated[Path, typer.Argument(help="File to write.")]
    preset: Preset = "deepseek-v3"
    cluster: ClusterName = "h100-rail-8x8"
    placement: Strategy = "eplb"
    replicas: Replicas = 0
    routing: Annotated[
        str, typer.Option(help="Loads to plan on, as --routing of simulate; a layer each by seed.")
    ] = "zipf:0.8"
    trace: Annotated[
        Path | None, typer.Option(help="Recorded trace: its loads, layer by layer.")
    ] = None
    layout: Annotated[str, typer.Option("--format", help="sglang, vllm or vllm_ascend.")] = "sglang"
    dense_layers: Annotated[
        int | None,
        typer.Option(
            help="sglang: layers before the first MoE layer; default: the preset's.",
            min=0,
            max=MOST_LAYERS,
        ),
    ] = None
    tokens: Tokens = 256
    seed: Seed = 0
    lenient: Lenient = False


@placement_app.command("export")
@takes(ExportOptions)
def export_map(given: ExportOptions) -> None:
    """Plan all MoE layers of a model and write the physical-to-logical map that SGLang or vLLM
    loads.
    """
    from moesim.design.candidate import Workload
    from moesim.hardware import load_cluster
    from moesim.placement.files import check_map, write_map
    from moesim.report.terminal import say, tell
    from moesim.simulation.prepare import prepare

    machine = load_cluster(given.cluster)
    candidate = _candidate(
        given.preset, given.lenient, given.placement, given.replicas, machine.num_devices
    )
    dense = candidate.dense_part
    assert dense is not None
    texts = (
        [given.routing] * dense.num_moe_layers
        if given.trace is None
        else [
            f"trace:{given.trace}#{layer}" for layer in _layers(given.trace, dense.num_moe_layers)
        ]
    )
    rows_before = (
        dense.num_layers - dense.num_moe_layers
        if given.dense_layers is None
        else given.dense_layers
    )
    check_map(rows_before + len(texts), candidate.layer.num_experts + candidate.num_replicas)
    # experts without replicas need not divide over the ranks
    divides = candidate.layer.num_experts % machine.num_devices == 0
    layers, before, after = [], [], []
    for number, text in enumerate(texts):
        work = Workload(
            num_tokens_per_device=given.tokens,
            routing=text,
            seed=given.seed if given.trace else given.seed + number,
        )
        planned = prepare(candidate, machine, work)
        layers.append(planned.placement)
        if divides:
            in_order = replace(candidate, placement="contiguous", num_replicas=0)
            before.append(prepare(in_order, machine, work).traffic.load_imbalance)
        after.append(planned.traffic.load_imbalance)
    write_map(given.out, layers, given.layout, num_dense_layers=rows_before)
    first = layers[0]
    tell(
        f"{len(layers)} MoE layers, {first.num_experts} experts in {first.num_slots} slots on "
        f"{first.num_ranks} ranks"
    )
    in_order_text = (
        f"{sum(before) / len(before):.3f} in expert order"
        if before
        else f"none in expert order, which does not divide over {first.num_ranks} ranks"
    )
    tell(
        f"imbalance      {sum(after) / len(after):.3f} (busiest rank over the mean, mean of "
        f"layers), {in_order_text}"
    )
    say(f"wrote {given.out} for {given.layout}")


def _layers(trace: Path, needed: int) -> list[int]:
    from moesim.routing import open_trace

    there = open_trace(str(trace)).layers()
    if len(there) < needed:
        raise ConfigError(f"{trace}: expected the model's {needed} MoE layers, got {len(there)}")
    return there[-needed:]


@placement_app.command("show")
def show_map(
    file: Annotated[Path, typer.Argument(help="Map in any of the formats.")],
    cluster: ClusterName = "h100-rail-8x8",
    preset: Preset = "deepseek-v3",
    layer: Annotated[
        int, typer.Option(help="Row of the map to simulate; negative counts from the last.")
    ] = -1,
    routing: Annotated[
        str,
        typer.Option(
            help="Loads to score on, as --routing of simulate; a layer each by seed, as in export."
        ),
    ] = "zipf:0.8",
    tokens: Tokens = 256,
    engine: Annotated[str, typer.Option(help="bound, flow, event or event_compiled.")] = "flow",
    seed: Seed = 0,
    lenient: Lenient = False,
) -> None:
    """Read a serving engine's map, and compare one of its layers with plain expert order."""
    from moesim.design.candidate import Workload
    from moesim.hardware import load_cluster
    from moesim.placement.files import read_map
    from moesim.report.terminal import print_table
    from moesim.simulation.run import simulate
    from moesim.units import US

    machine = load_cluster(cluster)
    candidate = _candidate(preset, lenient, "contiguous", 0, machine.num_devices)
    maps = read_map(file, machine.num_devices, candidate.layer.num_experts)
    divides = candidate.layer.num_experts % machine.num_devices == 0
    if not -len(maps) <= layer < len(maps):
        raise ConfigError(f"--layer: expected a row of the {len(maps)} of {file}, got {layer}")
    work = Workload(
        num_tokens_per_device=tokens,
        routing=routing,
        seed=_layer_seed(candidate, len(maps), layer, routing, seed),
    )
    rows = []
    # without replicas the experts need not divide over the ranks
    plain = (("expert order", None),) if divides else ()
    for name, given in (*plain, (str(file), maps[layer])):
        found = simulate(candidate, machine, work, engine=engine, must_fit=False, placement=given)
        slots = candidate.layer.num_experts if given is None else given.num_slots
        rows.append(
            {
                "placement": name,
                "slots": slots,
                "imbalance": f"{found.load_imbalance:.3f}",
                "layer_us": f"{found.layer_time_s / US:,.0f}",
            }
        )
    print_table(
        f"{preset} on {machine.name}, {routing}, layer {layer} of {len(maps)}", rows, list(rows[0])
    )


def _layer_seed(candidate: "Candidate", num_rows: int, layer: int, routing: str, seed: int) -> int:
    """Return the seed with which `export_map` plans this row, after the rows of dense layers."""
    dense = candidate.dense_part
    assert dense is not None
    number = layer % num_rows - max(num_rows - dense.num_moe_layers, 0)
    return seed if routing.startswith("trace:") else seed + max(number, 0)


@placement_app.command("rebalance")
def rebalance_once(
    before: Annotated[str, typer.Option(help="Routing that the old placement was planned on.")],
    now: Annotated[str, typer.Option(help="Routing now, such as zipf:0.8+drift:0.05@10.")],
    preset: Preset = "deepseek-v3",
    cluster: ClusterName = "h100-rail-8x8",
    placement: Strategy = "eplb",
    replicas: Replicas = 0,
    tokens: Tokens = 256,
    engine: Annotated[str, typer.Option(help="bound, flow, event or event_compiled.")] = "flow",
    seed: Seed = 0,
    lenient: Lenient = False,
) -> None:
    """Show what a new plan gains, what moving the weights costs, and after how many passes it pays
    off.
    """
    from moesim.design.candidate import Workload
    from moesim.hardware import load_cluster
    from moesim.operations.rebalance import rebalance
    from moesim.report.terminal import print_table
    from moesim.simulation.prepare import prepare

    machine = load_cluster(cluster)
    candidate = _candidate(preset, lenient, placement, replicas, machine.num_devices)
    works = [
        Workload(num_tokens_per_device=tokens, routing=text, seed=seed) for text in (before, now)
    ]
    old = prepare(candidate, machine, works[0]).placement
    row = rebalance(candidate, machine, works[1], old, engine=engine).row()
    print_table(
        f"{preset} on {machine.name}: {placement}+{replicas}, {before} to {now}",
        [{"what": name, "value": f"{value:,.2f}"} for name, value in row.items()],
        ["what", "value"],
    )
