"""Where a thousand to a million experts break: memory, the gate, dispatch, or the experts' own kernels?

Starts from a published model (by default Qwen3-30B-A3B), keeps what a token uses as constant as 1 to 32 experts of it
allow, and splits the width of all experts of a layer into 1,024 to 1,048,576 experts, down to one neuron each: at the
model's own size, 100 and 1,000 times it. Every point is simulated with a flat, a two-level and a product-key gate on 8,
64 and 1,024 H100s, rails between nodes of 8, and, with product keys, as if all 1,024 were one NVLink domain. Then every
remedy is tried by itself where most breaks.

A resource breaks at the first number of experts at which memory is too small, the gate takes more than a quarter of
the layer, dispatch and combine more than half, or the experts' phase runs below a quarter of its roofline. Experts of
a few neurons are priced as the tiles of a grouped GEMM, padded: kernels made for them would do better. No law covers
such numbers of experts: losses are extrapolated, and the step of Shazeer et al. 2017 stands beside the estimate's.

Writes points.csv, breaks.csv, remedies.csv and million_experts.html.
"""

import math
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated, Any

import typer

from moesim import (
    Candidate,
    Cluster,
    Gate,
    MoELayer,
    Parallelism,
    Precision,
    Workload,
    load_cluster,
    load_preset,
)
from moesim.cli import run_command
from moesim.elasticity import loss_step
from moesim.errors import MoesimError
from moesim.quality import estimate_loss
from moesim.report import write_csv
from moesim.report.plots import write_html
from moesim.report.study_plots import lines_by_experts
from moesim.report.terminal import print_table, say
from moesim.schedule import Schedule
from moesim.simulation.memory import memory_of
from moesim.simulation.prepare import prepare
from moesim.simulation.run import exchange_of, simulate_prepared
from moesim.units import GIB, US
from moesim.version import VERSION

OUT = Path(__file__).parent / "out" / "million_experts"
EXPERTS = (1024, 16384, 65536, 262144, 1048576)
SCALES = (1, 100, 1000)
MOST_CHOSEN, TRAIN_TOKENS = 32, 36e12
#: name -> nodes, devices of a node
CLUSTERS = {"8 H100": (1, 8), "64 H100, rail": (8, 8), "1,024 H100, rail": (128, 8),
            "1,024 H100, one domain": (1, 1024)}
GATES = ("flat", "two_level", "product_key")
#: what counts as broken
GATE_SHARE, EXCHANGE_SHARE, EFFICIENCY = 0.25, 0.5, 0.25
#: remedy -> gate, number format, exchange
REMEDIES = {"none": ("flat", "bf16", "nccl"), "two-level gate": ("two_level", "bf16", "nccl"),
            "two-level gate, routers where groups live": ("two_level+local", "bf16", "nccl"),
            "product keys": ("product_key", "bf16", "nccl"), "fp8": ("flat", "fp8", "nccl"),
            "int4 weights": ("flat", "int4", "nccl"), "two hops (DeepEP)": ("flat", "bf16", "deepep_normal"),
            "staged exchange": ("flat", "bf16", "hierarchical"),
            "product keys, fp8, two hops": ("product_key", "fp8", "deepep_normal")}
#: Shazeer et al. 2017 (arXiv 1701.06538), 100B words: experts -> perplexity
SHAZEER = {4096: 30.9, 65536: 28.9, 131072: 29.2}
METRICS = {"memory_gib": "memory of a device, GiB", "gate_share": "gate, share of the layer",
           "exchange_share": "dispatch and combine, share", "experts_efficiency": "experts, share of their roofline"}
BREAKS = {"cluster": "cluster", "scale": "x size", "memory": "memory", "gate_flat": "flat gate",
          "gate_two_level": "two-level", "gate_product_key": "product keys", "exchange": "dispatch",
          "experts": "expert kernels"}
FIXED = {"cluster": "cluster", "scale": "x size", "remedy": "remedy", "layer_time_us": "layer us",
         "gate_share": "gate", "exchange_share": "exchange", "experts_efficiency": "efficiency",
         "memory_gib": "GiB", "devices_needed": "devices needed", "breaks": "breaks"}
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@cache
def cluster_of(name: str) -> Cluster:
    """8 and 64 H100s as they are; more of them are what-ifs."""
    nodes, devices = CLUSTERS[name]
    base = load_cluster("hgx-h100-8" if nodes == 1 else "h100-rail-8x8")
    return base if base.num_devices == nodes * devices else base.with_(num_nodes=nodes, devices_per_node=devices)


def gate_of(kind: str, num_experts: int) -> Gate:
    """A gate over that many experts: two levels of their square root, eight heads of product keys."""
    name, plus, option = kind.partition("+")
    sizes = {"two_level": f":{math.isqrt(num_experts)}:4", "product_key": ":8:256"}.get(name, "")
    return Gate.parse(f"{name}{sizes}{plus}{option}")


def layer_of(preset: str, scale: int, num_experts: int, gate: str, precision: str) -> MoELayer | None:
    """The preset's layer with its width times a scale split into so many experts; None below one neuron each."""
    layer = load_preset(preset).layer
    width = scale * layer.num_experts * layer.widest // num_experts
    if width < 1:
        return None
    top_k = min(max(round(layer.top_k * layer.widest / width), 1), MOST_CHOSEN)
    return replace(layer, num_experts=num_experts, expert_intermediate_size=width, top_k=top_k,
                   precision=Precision.named(precision), gate=gate_of(gate, num_experts))


def efficiency(layer: MoELayer, cluster: Cluster, tokens: int, experts_s: float) -> tuple[float, float]:
    """Share of its roofline that the experts' phase reaches, and rows of an expert that has any: uniform load."""
    choices, profile = tokens * cluster.num_devices * layer.top_k, cluster.profile
    active = -layer.num_experts * math.expm1(-choices / layer.num_experts)
    flops = 2.0 * layer.params_per_expert * choices / cluster.num_devices
    read = active / cluster.num_devices * layer.bytes_per_expert
    ideal = max(flops / profile.peak(layer.precision.activations), read / profile.hbm_bandwidth_bytes_per_s)
    return ideal / experts_s, choices / active


def point(preset: str, where: str, scale: int, num_experts: int, kind: tuple[str, str, str], tokens: int,
          seed: int) -> dict[str, Any]:
    """One row: simulated, with what breaks; only a reason where there is no such design."""
    gate, precision, dispatch = kind
    row = {"cluster": where, "scale": scale, "gate_kind": gate, "num_experts": num_experts, "evidence": "simulated",
           "calibration": "none", "engine": "flow", "seed": seed, "version": VERSION}
    try:
        layer, cluster = layer_of(preset, scale, num_experts, gate, precision), cluster_of(where)
        if layer is None:
            return row | {"reason": "experts below one neuron"}
        dense = load_preset(preset).dense_part
        candidate = Candidate(layer=layer, parallelism=Parallelism(ep=cluster.num_devices), dense_part=dense,
                              schedule=Schedule(exchange=dispatch))
        work = Workload(num_tokens_per_device=tokens, seed=seed)
        prepared = prepare(candidate, cluster, work)
        result = simulate_prepared(prepared, must_fit=False)
        fullest = memory_of(prepared)
        (there, _back) = exchange_of(prepared)
    except MoesimError as error:
        return row | {"reason": str(error)}
    time, need, usable = result.layer_time_s, fullest.need, fullest.usable_bytes
    share = {name: seconds / time for name, seconds in result.phase_time_s.items()}
    left = usable - (need.total_bytes - need.experts_bytes)
    devices = math.ceil(need.experts_bytes * cluster.num_devices / left) if left > 0 else math.inf
    reached, rows = efficiency(layer, cluster, tokens, result.experts_time_s)
    loss = estimate_loss(replace(layer, gate=gate_of("product_key", num_experts)), dense, train_tokens=TRAIN_TOKENS)
    exchanged = share["dispatch"] + share["combine"]
    broken = {"memory": need.total_bytes > usable, "gate": share["gate"] > GATE_SHARE,
              "exchange": exchanged > EXCHANGE_SHARE, "experts": reached < EFFICIENCY}
    return row | result.row() | loss.row() | {
        "cluster": where, "memory_gib": need.total_bytes / GIB, "experts_gib": need.experts_bytes / GIB,
        "gate_gib": layer.gate_params * 2.0 * dense.num_moe_layers / GIB, "fits": not broken["memory"],
        "devices_needed": devices, "gate_share": share["gate"], "exchange_share": exchanged,
        "experts_efficiency": reached, "rows_per_expert": rows, "experts_alone_us": result.experts_time_s / US,
        **{key: there[key] for key in ("copies_per_token", "near_mb", "far_mb")},
        "total_params": layer.routed_params * dense.num_moe_layers + dense.params,
        "breaks": ", ".join(name for name, over in broken.items() if over) or "nothing",
        **{f"{name}_broken": over for name, over in broken.items()}}


def first_broken(rows: list[dict[str, Any]], name: str) -> str:
    """The first number of experts at which something is broken, and from where on it no longer is, if so."""
    hit = [(row["num_experts"], row[f"{name}_broken"]) for row in sorted(rows, key=lambda r: r["num_experts"])]
    where = [experts for experts, broken in hit if broken]
    if not where:
        return "never"
    healed = [experts for experts, broken in hit if not broken and experts > where[0]]
    return f"{where[0]:,}" + (f", not at {healed[-1]:,}" if healed else "")


def breaks(rows: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """For each cluster and size, the first number of experts that breaks each resource."""
    done = [row for row in rows if "breaks" in row]
    for where, scale in dict.fromkeys((row["cluster"], row["scale"]) for row in done):
        part = {kind: [r for r in done if (r["cluster"], r["scale"], r["gate_kind"]) == (where, scale, kind)]
                for kind in GATES}
        keyed = part["product_key"]  # memory, exchange and kernels: where the gate is no burden
        yield {"cluster": where, "scale": scale, "memory": first_broken(keyed, "memory"),
               **{f"gate_{kind}": first_broken(part[kind], "gate") if part[kind] else "" for kind in GATES},
               "exchange": first_broken(keyed, "exchange"), "experts": first_broken(keyed, "experts"),
               "evidence": "simulated", "version": VERSION}


def shazeer(preset: str) -> str:
    """The estimate's steps of loss beside those of Shazeer et al. 2017: two levels, 4 experts chosen."""
    loaded, texts = load_preset(preset), []
    one, *others = (replace(loaded.layer, top_k=4, num_experts=count, gate=Gate.parse(f"two_level:{count >> 8}:1"))
                    for count in SHAZEER)
    for other in others:
        step = loss_step(one, other, loaded.dense_part, 130e9)
        measured = math.log(SHAZEER[other.num_experts] / SHAZEER[one.num_experts])
        texts.append(f"{one.num_experts:,} -> {other.num_experts:,} experts {step.mid:+.4f} [{step.low:+.4f}, "
                     f"{step.high:+.4f}] nats, measured {measured:+.4f}")
    return "loss, extrapolated, against Shazeer et al. 2017 (smaller models): " + "; ".join(texts)


@app.command()
def main(
    preset: Annotated[str, typer.Option(help="Published model to start from.")] = "qwen3-30b-a3b",
    tokens: Annotated[int, typer.Option(help="Tokens of a device.", min=1)] = 256,
    seed: Annotated[int, typer.Option(help="Seed of the routing.")] = 0,
    workers: Annotated[int, typer.Option(help="Processes that simulate.", min=1)] = 2,
    quick: Annotated[bool, typer.Option("--quick", help="Two numbers of experts on 8 and 64 devices: a test.")] = False,
    out: Annotated[Path, typer.Option(help="Output folder.")] = OUT,
) -> None:
    """Simulate every point, find what breaks first, and try every remedy."""
    clusters = list(CLUSTERS)[:2] if quick else list(CLUSTERS)
    experts, scales = ((EXPERTS[0], EXPERTS[-1]), SCALES[1:2]) if quick else (EXPERTS, SCALES)
    tokens = min(tokens, 64) if quick else tokens
    grid = [(preset, where, scale, count, (gate, "bf16", "nccl"), tokens, seed) for where in clusters
            for scale in scales for gate in GATES for count in experts
            # one domain of 1,024 tells what the network does: the gate is the same
            if gate == "product_key" or not where.endswith("one domain")]
    tried = [(preset, where, scales[-1], experts[-1], kind, tokens, seed)
             for where in clusters[1:3] for kind in REMEDIES.values()]
    say(f"simulating {len(grid) + len(tried)} points")
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        found = list(pool.map(point, *zip(*(grid + tried), strict=True)))
    rows, remedies = found[: len(grid)], found[len(grid):]
    names = [*REMEDIES] * len(clusters[1:3])
    remedies = [{"remedy": name} | row for name, row in zip(names, remedies, strict=True)]
    table = list(breaks(rows))
    print_table("First number of experts at which each breaks", table, BREAKS)
    print_table(f"Remedies at {experts[-1]:,} experts, {scales[-1]} times the size", remedies, FIXED)
    print(shazeer(preset))
    write_csv(out / "points.csv", rows)
    write_csv(out / "breaks.csv", table)
    write_csv(out / "remedies.csv", remedies)
    write_html(out / "million_experts.html", lines_by_experts([row for row in rows if "breaks" in row], METRICS))
    say(f"wrote {out}/points.csv, breaks.csv, remedies.csv and million_experts.html")


if __name__ == "__main__":
    run_command(app)
