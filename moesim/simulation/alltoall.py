"""Time an exchange on a fabric, and the engine that simulates it."""

import math
import time
from dataclasses import dataclass

import numpy as np

from moesim.engines import ENGINES
from moesim.engines.bound import run_bound
from moesim.engines.event import run_event
from moesim.engines.event_compiled import run_event_compiled
from moesim.engines.flow import run_flow
from moesim.errors import UnknownNameError, require, require_int
from moesim.hardware import Cluster, load_cluster
from moesim.lowering.alltoall import exchange_program, rank_one_program, shares
from moesim.lowering.room import check_room
from moesim.program import Program, Timeline

#: number of runs of which the shortest counts, as long as they take less than this many seconds
#: together
_REPEATS, _ENOUGH_S = 5, 2.0
#: an exabyte from each device to each other
_MOST_BYTES = 1e18


@dataclass(frozen=True, slots=True, kw_only=True)
class Timed:
    """One exchange, simulated and timed.

    Attributes:
        makespan_s: Simulated time of the exchange.
        events: Number of times the clock advanced (flow) or of chunks (event); 0 in closed form.
        wall_s: Wall time of the engine alone, after a warm-up, without building the program.
        build_s: Wall time to build the program.
        granularity: ``device`` or ``pair``.
    """

    makespan_s: float
    events: int
    wall_s: float
    build_s: float
    granularity: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AllToAll:
    """An all-to-all of all devices, and how it is simulated.

    Attributes:
        bytes_per_pair: Mean bytes from one device to another.
        engine: One of `moesim.engines.ENGINES`.
        routing: Distribution of bytes over receivers, equal for every sender.
        granularity: ``device`` or ``pair``; by default pair for event engines and device for the
            others.
        chunks: Chunks per op in event engines.
        order: Order of a sender's messages at pair granularity.
        window: Number of messages a sender has in flight at pair granularity; 0 means all.
        tolerance: Share of the bound by which the flow engine may delay solving its rates again; by
            default it depends on the size.
        seed: Seed of the routing.
    """

    bytes_per_pair: float
    engine: str = "flow"
    routing: str = "uniform"
    granularity: str | None = None
    chunks: int = 1
    order: str = "rotated"
    window: int = 0
    tolerance: float | None = None
    seed: int = 0


def time_exchange(cluster: Cluster, asked: AllToAll) -> Timed:
    """Simulate an all-to-all of all devices on the bare fabric, and time the engine.

    Args:
        cluster: A cluster of at least two devices.
        asked: The exchange, and how it is simulated.

    Raises:
        UnknownNameError: There is no such engine.
        ConfigError: The routing is malformed, or a number is out of range.
        CapacityError: The program would not fit in memory.
    """
    engine = asked.engine
    if engine not in ENGINES:
        raise UnknownNameError("engine", engine, ENGINES)
    require_int("seed", asked.seed, 0)
    require(
        0 <= asked.bytes_per_pair <= _MOST_BYTES,
        "bytes_per_pair",
        f"a number >= 0 and <= {_MOST_BYTES:g}",
        asked.bytes_per_pair,
    )
    chosen = asked.granularity or ("pair" if engine.startswith("event") else "device")

    def build(machine: Cluster) -> Program:
        sent = np.full(machine.num_devices, float(asked.bytes_per_pair))
        share = shares(asked.routing, machine.num_devices, asked.seed)
        if engine == "bound" and chosen == "device":
            return rank_one_program(machine, sent, share)
        return exchange_program(
            machine,
            np.outer(sent, share),
            granularity=chosen,
            order=asked.order,
            window=asked.window,
        )

    def run(program: Program) -> Timeline:
        if engine == "bound":
            return run_bound(program)
        if engine == "flow":
            wait = (
                None if asked.tolerance is None else asked.tolerance * run_bound(program).makespan_s
            )
            return run_flow(program, tolerance_s=wait)
        event = run_event if engine == "event" else run_event_compiled
        return event(program, quantum_s=math.inf, min_chunks=asked.chunks)

    # refuse what would not fit before anything is built
    check_room(cluster, chosen, factored=chosen == "device" and engine == "bound")
    ports = cluster.scale_up_kind in (None, "switch", "pcie")
    run(build(load_cluster("star-4" if ports else "torus-2x2")))  # compiles the engine
    began = time.perf_counter()
    program = build(cluster)
    build_s = time.perf_counter() - began
    walls: list[float] = []
    while True:
        began = time.perf_counter()
        timeline = run(program)
        walls.append(time.perf_counter() - began)
        if len(walls) == _REPEATS or sum(walls) > _ENOUGH_S:
            break
    return Timed(
        makespan_s=timeline.makespan_s,
        events=timeline.events,
        wall_s=min(walls),
        build_s=build_s,
        granularity=chosen,
    )
