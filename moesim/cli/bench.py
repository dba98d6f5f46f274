"""``moesim bench``: simulate an exchange of any size, and time the simulation."""

import resource
from dataclasses import dataclass
from typing import Annotated

import typer

from moesim.cli.options import takes
from moesim.errors import MoesimError
from moesim.units import US

bench_app = typer.Typer(no_args_is_help=True, help="Time the engines on an exchange of any size.")


@dataclass(frozen=True, slots=True, kw_only=True)
class AlltoallOptions:
    """The options of moesim bench alltoall."""

    cluster: Annotated[
        str, typer.Option(help="Cluster file or name, or star-1024, rail-128x8, torus-8x8x16.")
    ]
    bytes_per_pair: Annotated[float, typer.Option(help="Mean bytes between two devices.", min=0.0)]
    engine: Annotated[str, typer.Option(help="bound, flow, event or event_compiled.")] = "flow"
    routing: Annotated[
        str, typer.Option(help="How bytes spread over receivers, as in simulate.")
    ] = "uniform"
    granularity: Annotated[
        str | None,
        typer.Option(help="device or pair; default: device for bound and flow, pair for events."),
    ] = None
    chunks: Annotated[int, typer.Option(help="Chunks per pair (event engines).", min=1)] = 1
    order: Annotated[str, typer.Option(help="rotated or naive send order (pair).")] = "rotated"
    window: Annotated[
        int, typer.Option(help="Messages a sender has under way (pair); 0: all.", min=0)
    ] = 0
    tolerance: Annotated[
        float | None,
        typer.Option(
            help="Flow: share of the bound a re-solve may wait; default: by size.", min=0.0
        ),
    ] = None
    seed: Annotated[int, typer.Option(help="Seed of the routing.")] = 0


@bench_app.command("alltoall")
@takes(AlltoallOptions)
def bench_alltoall(given: AlltoallOptions) -> None:
    """Simulate one all-to-all between all devices of a cluster, at the data sheet's rates and
    without overheads.
    """
    from moesim.hardware import load_cluster
    from moesim.report.document import record
    from moesim.report.terminal import tell
    from moesim.simulation.alltoall import AllToAll, time_exchange

    machine = load_cluster(given.cluster)
    if machine.num_devices < 2:
        raise MoesimError(f"--cluster: expected at least two devices, got {machine.name} with one")
    if given.granularity not in (None, "device", "pair"):
        raise MoesimError(f"--granularity: expected device or pair, got {given.granularity!r}")
    if given.order not in ("rotated", "naive"):
        raise MoesimError(f"--order: expected rotated or naive, got {given.order!r}")
    found = time_exchange(
        machine,
        AllToAll(
            bytes_per_pair=given.bytes_per_pair,
            engine=given.engine,
            routing=given.routing,
            granularity=given.granularity,
            chunks=given.chunks,
            order=given.order,
            window=given.window,
            tolerance=given.tolerance,
            seed=given.seed,
        ),
    )
    values = {
        "cluster": machine.name,
        "num_devices": machine.num_devices,
        "engine": given.engine,
        "granularity": found.granularity,
        "routing": given.routing,
        "bytes_per_pair": given.bytes_per_pair,
        "time_us": found.makespan_s / US,
        "events": found.events,
        "wall_s": found.wall_s,
        "build_s": found.build_s,
        "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }
    if record(values):
        return
    for name, value in values.items():
        tell(f"{name:18} {value}")
