"""How far one transfer per device stands for one per pair: the layer's time and when experts start, over topologies.

At *device* granularity an exchange is one op per receiver (dispatch) or sender (combine): fast, and blind to who meets
whom at a port. At *pair* granularity every source and destination is an op. This study lowers the same layer both ways
and compares the exact fluid model of the first with the second, chunk by chunk (``event_compiled``; ``--reference
flow`` up to 64 devices). Traffic:

- ``uniform`` and ``skewed`` (power law 1.2): the same spread of experts for every source;
- ``sparse``: four tokens a device, one choice each: few of the pairs meet;
- ``node_limited``: tokens keep to the experts of two domains (of two quarters, where there is one domain);
- ``domain_per_source``: three quarters of a device's choices go to the experts of one domain, its own topic;
- ``staggered``: devices hold between 30 and 100 % of the tokens, so gates end apart.

Writes granularity.csv (a row per case), summary.csv (mean and worst by topology), and granularity.html.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from moesim import Candidate, Gate, MoELayer, Parallelism, load_cluster
from moesim.cli import run_command
from moesim.costs.comm.choose import exchange_kernel
from moesim.engines.bound import run_bound
from moesim.engines.event_compiled import run_event_compiled
from moesim.engines.flow import run_flow
from moesim.errors import ConfigError
from moesim.lowering.layer import lower_layer
from moesim.lowering.traffic import spread_tokens
from moesim.placement import place
from moesim.program import Program, Timeline
from moesim.report import write_csv
from moesim.report.network_plots import granularity_errors
from moesim.report.plots import write_html
from moesim.report.terminal import print_table, say
from moesim.routing import Routing, RoutingSpec, route
from moesim.schedule import Schedule
from moesim.topology import Cluster
from moesim.units import US
from moesim.version import VERSION

OUT = Path(__file__).parent / "out" / "granularity"
CLUSTERS = {
    "star": ("star-8", "star-16", "star-64", "star-256"),
    "rail": ("rail-2x8", "rail-4x8", "rail-8x8", "rail-16x8", "rail-32x8"),
    "torus": ("torus-4x4", "torus-8x8", "torus-4x4x4", "torus-8x16", "torus-4x8x8"),
}
QUICK = {"star": ("star-8",), "rail": ("rail-2x4",), "torus": ("torus-2x4",)}
LAYER = MoELayer(hidden_size=7168, expert_intermediate_size=2048, num_experts=256, top_k=8)
#: chunks a makespan is cut into at pair granularity
FINE = 4096
SUMMARY = {"topology": "topology", "traffic": "traffic", "cases": "cases", "mean_error_percent": "mean %",
           "worst_error_percent": "worst %", "mean_start_error_percent": "start mean %",
           "worst_start_error_percent": "start worst %"}


def even(spec: str, gate: Gate | None = None, top_k: int = 8, share: float = 1.0):
    """The same distribution for every source, ``share`` of the tokens."""
    def make(devices: int, tokens: int, seed: int) -> Routing:
        return route(RoutingSpec.parse(spec), gate or Gate(), num_experts=LAYER.num_experts, top_k=top_k,
                     num_tokens_S=np.full(devices, max(int(tokens * share), 4)), seed=seed)

    return make


def staggered(devices: int, tokens: int, seed: int) -> Routing:
    """Between 30 and 100 % of the tokens on a device."""
    counts = np.random.default_rng([seed, devices]).uniform(0.3, 1.0, devices) * tokens
    return route(RoutingSpec.parse("power_law:1.2"), Gate(), num_experts=LAYER.num_experts, top_k=LAYER.top_k,
                 num_tokens_S=counts.astype(np.int64) + 1, seed=seed)


def domain_per_source(devices: int, tokens: int, seed: int) -> Routing:
    """Each device has a topic, an eighth of all experts, that takes three quarters of its choices."""
    rng = np.random.default_rng([seed, devices, 7])
    experts, top_k, size = LAYER.num_experts, LAYER.top_k, LAYER.num_experts // 8
    weight_SE = np.full((devices, experts), 0.25 / experts)
    for s, topic in enumerate(rng.permutation(np.arange(devices) % 8)):
        weight_SE[s, topic * size : (topic + 1) * size] += 0.75 / size
    # Gumbel top-k: draws without replacement in proportion to weights
    ids = [np.argpartition(np.log(weight) + rng.gumbel(size=(tokens, experts)), -top_k, axis=1)[:, -top_k:]
           for weight in weight_SE]
    return Routing(expert_ids_TK=np.concatenate(ids).astype(np.int32), num_tokens_S=np.full(devices, tokens),
                   num_experts=experts)


TRAFFIC: dict[str, Callable[[int, int, int], Routing]] = {
    "uniform": even("uniform"),
    "skewed": even("power_law:1.2"),
    "sparse": even("power_law:1.2", top_k=1, share=0.0),
    "node_limited": even("power_law:1.2", Gate(kind="group_limited", num_expert_groups=4, num_limited_groups=2)),
    "domain_per_source": domain_per_source,
    "staggered": staggered,
}


def lowered(cluster: Cluster, routing: Routing, schedule: Schedule) -> Program:
    """The layer's program."""
    devices = cluster.num_devices
    candidate = Candidate(layer=LAYER, parallelism=Parallelism(ep=devices), schedule=schedule)
    placement = place("contiguous", routing.num_tokens_E(), devices, 0)
    parts = schedule.num_micro_batches
    batches = [spread_tokens(routing.part(m, parts), placement, candidate.parallelism,
                             devices_per_domain=cluster.devices_per_domain) for m in range(parts)]
    return lower_layer(candidate, cluster, batches, exchange_kernel(cluster, cluster.exchange(schedule)))


def expert_starts(program: Program, timeline: Timeline) -> np.ndarray:
    """When each device's experts start, micro-batch by micro-batch."""
    return timeline.start_s_N[program.phase_N == program.phase_names.index("experts")]


def reference(program: Program, engine: str) -> Timeline:
    """The pair program, exactly."""
    if engine == "flow":
        return run_flow(program, tolerance_s=0.0)
    return run_event_compiled(program, quantum_s=run_bound(program).makespan_s / FINE)


def compare(topology: str, name: str, traffic: str, micro_batches: int, *, tokens: int, seed: int, engine: str,
            dispatch: str | None) -> dict[str, object]:
    """One case, both ways."""
    cluster = load_cluster(name)
    routing = TRAFFIC[traffic](cluster.num_devices, tokens, seed)
    began = time.perf_counter()
    device, pair = (lowered(cluster, routing, Schedule(granularity=granularity, num_micro_batches=micro_batches,
                                                       exchange=dispatch)) for granularity in ("device", "pair"))
    coarse = run_flow(device, tolerance_s=0.0)
    fine = reference(pair, engine)
    late = np.abs(expert_starts(device, coarse) - expert_starts(pair, fine)) / fine.makespan_s
    return {
        "topology": topology, "cluster": name, "num_devices": cluster.num_devices, "traffic": traffic,
        "micro_batches": micro_batches, "seed": seed, "device_us": coarse.makespan_s / US,
        "pair_us": fine.makespan_s / US, "error_percent": 100 * (coarse.makespan_s / fine.makespan_s - 1),
        "start_error_percent": 100 * float(late.mean()), "worst_start_error_percent": 100 * float(late.max()),
        "reference": engine, "wall_s": time.perf_counter() - began, "version": VERSION,
    }


def summary(rows: list[dict]) -> list[dict[str, object]]:
    """Mean and worst absolute error by topology and traffic, and of all traffic of a topology."""
    table: list[dict[str, object]] = []
    for topology in dict.fromkeys(row["topology"] for row in rows):
        of_topology = [row for row in rows if row["topology"] == topology]
        for traffic in [*dict.fromkeys(row["traffic"] for row in of_topology), "all"]:
            part = [row for row in of_topology if traffic in ("all", row["traffic"])]
            errors = np.abs([row["error_percent"] for row in part])
            starts = [row["start_error_percent"] for row in part]
            table.append({"topology": topology, "traffic": traffic, "cases": len(part),
                          "mean_error_percent": float(errors.mean()), "worst_error_percent": float(errors.max()),
                          "mean_start_error_percent": float(np.mean(starts)),
                          "worst_start_error_percent": float(max(starts)), "version": VERSION})
    return table


def check(engine: str, tokens: int, num_seeds: int, out: Path) -> None:
    """Refuse options before any work is done, and create the output folder.

    Raises:
        ConfigError: Which, and why.
    """
    if engine not in ("event_compiled", "flow"):
        raise ConfigError(f"--reference: expected event_compiled or flow, got {engine!r}")
    if tokens < 8 or num_seeds < 1:
        raise ConfigError(f"--tokens, --seeds: expected at least 8 tokens and 1 seed, got {tokens} and {num_seeds}")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{out}: cannot write to this output folder: {error.strerror}") from None


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    tokens: Annotated[int, typer.Option(help="Tokens of a device.")] = 256,
    seeds: Annotated[int, typer.Option(help="Seeds, from 0.")] = 2,
    engine: Annotated[str, typer.Option("--reference", help="event_compiled, or flow (up to 64 devices).")]
    = "event_compiled",
    dispatch: Annotated[str | None, typer.Option(help="Exchange; by default the cluster's (ideal).")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="8 devices of each topology.")] = False,
    out: Annotated[Path, typer.Option(help="Output folder.")] = OUT,
) -> None:
    """Compare device with pair granularity and write where they differ."""
    check(engine, tokens, seeds, out)
    Schedule(exchange=dispatch)
    rows = []
    for topology, names in (QUICK if quick else CLUSTERS).items():
        for name in names:
            if engine == "flow" and load_cluster(name).num_devices > 64:
                say(f"{name}: left out: flow at pair granularity would take minutes; use event_compiled")
                continue
            rows += [compare(topology, name, traffic, parts, tokens=tokens, seed=seed, engine=engine, dispatch=dispatch)
                     for traffic in TRAFFIC for parts in (1, 2) for seed in range(seeds)]
            errors = [abs(row["error_percent"]) for row in rows if row["cluster"] == name]
            say(f"{name}: mean {np.mean(errors):.2f} %, worst {max(errors):.2f} %")
    table = summary(rows)
    write_csv(out / "granularity.csv", rows)
    write_csv(out / "summary.csv", table)
    write_html(out / "granularity.html", granularity_errors(rows))
    print_table("Layer time at device against pair granularity: |error|, and |error| of expert starts over layer time",
                table, SUMMARY)
    say(f"wrote {out}/granularity.csv, summary.csv and granularity.html")


if __name__ == "__main__":
    run_command(app)
