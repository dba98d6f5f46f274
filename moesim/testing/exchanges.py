"""Check what every exchange must do with the tokens it moves, on every kind of fabric.

An exchange has the name that a `Schedule` uses. On each of the small `FABRICS` it either conserves
the bytes that it moves, whatever route they take, or refuses the fabric in one line.

Shape legend: S senders, D receivers, N ops, R resources.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from moesim.costs.comm.choose import exchange_kernel
from moesim.design.candidate import Candidate, Parallelism
from moesim.design.schedule import Schedule
from moesim.engines.bound import run_bound
from moesim.engines.flow import run_flow
from moesim.errors import ConfigError
from moesim.hardware import Cluster, load_cluster
from moesim.lowering.layer import lower_layer
from moesim.lowering.priced import Priced
from moesim.lowering.traffic import spread_tokens
from moesim.model import MoELayer
from moesim.model.gate import Gate
from moesim.placement import place
from moesim.program import Program
from moesim.routing import RoutingSpec, route
from moesim.testing.engines import expect_dependencies
from moesim.testing.expect import expect, expect_close

#: maximum number of devices at which every pair of source and destination is tried as an op
MOST_PAIR_DEVICES = 16
_MOVING = ("dispatch", "combine")


def _fat_tree() -> Cluster:
    """Make four nodes of four under an oversubscribed fat tree."""
    rails = load_cluster("rail-4x4").with_(oversubscription=2.0, nodes_per_leaf=2)
    assert rails.file.scale_out is not None
    scale_out = rails.file.scale_out.model_copy(update={"kind": "fat_tree"})
    file = rails.file.model_copy(update={"scale_out": scale_out})
    return Cluster(
        name="fat tree", file=file, groups=rails.groups, digest=rails.digest, provenance={}
    )


def _changed(name: str, **numbers: Any) -> Callable[[], Cluster]:
    return lambda: load_cluster(name).with_(**numbers) if numbers else load_cluster(name)


#: kind of fabric -> maker of a small cluster
FABRICS: Mapping[str, Callable[[], Cluster]] = {
    "star": _changed("star-4"),
    "rail": _changed("rail-3x4"),
    "oversubscribed rail": _changed("rail-3x4", oversubscription=3.0),
    "fat tree": _fat_tree,
    "mesh": _changed("mi300x-8", devices_per_node=4),
    "meshes": _changed("mi300x-rail-4x8", num_nodes=2, devices_per_node=4),
    "pcie": _changed("l40s-pcie-8"),
    "ring": _changed("torus-5"),
    "torus": _changed("torus-2x3x2"),
    "grid": _changed("torus-3x4", wrap_multiple_of=0),
    "multi-path torus": _changed("torus-3x4", routing="multi_path"),
    "twisted torus": _changed("tpu-v4-4x4x8-twisted", axes=[2, 2, 4], wrap_multiple_of=1),
    "mixed": _changed("mixed-h100-b200"),
}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ExchangeCase:
    """One layer whose tokens an exchange moves.

    Attributes:
        name: The case in a few words.
        program: The program of the layer.
        priced: What moves in each micro-batch, and what it costs.
    """

    name: str
    program: Program
    priced: tuple[Priced, ...]

    @property
    def moved_bytes(self) -> float:
        """Bytes that leave a device, over all legs and both directions."""
        return sum(
            float(leg.matrix_SD.sum() - np.trace(leg.matrix_SD)) * size
            for exchange in self.priced
            for leg in exchange.movement.legs
            for size in exchange.copy_bytes.values()
        )

    @property
    def landed_bytes(self) -> float:
        """Bytes that dispatch and combine demand of the memories where they land."""
        program, first = self.program, 0
        for name, count in program.resources.kinds():
            if name == "hbm":
                break
            first += count
        phases = [program.phase_names.index(name) for name in _MOVING]
        moving_N = np.isin(program.phase_N, phases)
        entries = moving_N[program.op_of_entry()] & (program.demand_resource >= first)
        return float(program.demand_amount[entries].sum())


def lowered_exchange(
    cluster: Cluster,
    schedule: Schedule,
    *,
    seed: int = 0,
    tokens: int = 40,
    gate: Gate | None = None,
    spec: str = "power_law:1.1",
) -> ExchangeCase:
    """Lower a small layer with four experts per device.

    Args:
        cluster: The fabric; every device is one expert-parallel rank.
        schedule: The exchange, its granularity and micro-batches.
        seed: Seed of the routing.
        tokens: Number of tokens per device.
        gate: The gate; flat by default.
        spec: Text of the distribution of load.

    Raises:
        ConfigError: The exchange does not run on this fabric.
    """
    devices, parts = cluster.num_devices, schedule.num_micro_batches
    layer = MoELayer(
        hidden_size=512, expert_intermediate_size=256, num_experts=4 * devices, top_k=4
    )
    candidate = Candidate(layer=layer, parallelism=Parallelism(ep=devices), schedule=schedule)
    routing = route(
        RoutingSpec.parse(spec),
        gate or Gate(),
        num_experts=layer.num_experts,
        top_k=layer.top_k,
        num_tokens_S=np.full(devices, tokens),
        seed=seed,
    )
    placement = place("contiguous", routing.num_tokens_E(), devices, 0)
    batches = [
        spread_tokens(
            routing.part(part, parts),
            placement,
            candidate.parallelism,
            devices_per_domain=cluster.devices_per_domain,
        )
        for part in range(parts)
    ]
    exchange = cluster.exchange(schedule)
    kernel = exchange_kernel(cluster, exchange)
    priced = tuple(
        Priced.of(layer, traffic, kernel, cluster, num_experts=layer.num_experts, exchange=exchange)
        for traffic in batches
    )
    where = f"{exchange.name} on {cluster.name}"
    return ExchangeCase(
        name=f"{where}, {schedule.granularity} granularity, {parts} parts",
        program=lower_layer(candidate, cluster, batches, kernel),
        priced=priced,
    )


def lowerings(name: str, cluster: Cluster) -> Iterator[ExchangeCase]:
    """Yield the layer at both granularities, in one and in two micro-batches.

    Args:
        name: Name of the exchange.
        cluster: The fabric.

    Raises:
        ConfigError: The exchange does not run on this fabric.
    """
    for granularity in ("device", "pair"):
        if granularity == "pair" and cluster.num_devices > MOST_PAIR_DEVICES:
            continue
        for parts in (1, 2):
            schedule = Schedule(
                exchange=name,
                granularity=granularity,
                num_micro_batches=parts,
            )
            yield lowered_exchange(cluster, schedule)


def bytes_are_conserved(found: ExchangeCase) -> None:
    """Check that the bytes that land in memories are the bytes of the movement.

    Args:
        found: The lowered layer.

    Raises:
        AssertionError: Bytes are lost or made up on their route.
    """
    rule = f"{found.name}: the bytes that land"
    expect_close(found.landed_bytes, found.moved_bytes, rule)
    for exchange in found.priced:
        for leg in exchange.movement.legs:
            expect((leg.matrix_SD >= 0).all(), f"{found.name}: copies >= 0")


def engines_serve_it(found: ExchangeCase) -> None:
    """Check that the fluid engine serves every byte, in the order of the dependencies.

    Args:
        found: The lowered layer.

    Raises:
        AssertionError: Demand is left over, an op runs too early, or the bound is no bound.
    """
    program = found.program
    timeline, bound = run_flow(program, tolerance_s=0.0), run_bound(program)
    rule = f"{found.name}: the busy time of each resource"
    expect_close(timeline.busy_s_R, program.busy_s_R(), rule, rel=1e-9, abs_=1e-18)
    expect_dependencies(program, timeline, found.name)
    below = bound.makespan_s <= timeline.makespan_s * (1 + 1e-9)
    times = (bound.makespan_s, timeline.makespan_s)
    expect(below, f"{found.name}: a bound below the makespan", times)


#: the checks of every lowering
CHECKS: tuple[Callable[[ExchangeCase], None], ...] = (bytes_are_conserved, engines_serve_it)


def is_deterministic(name: str, cluster: Cluster) -> None:
    """Check that the same layer gives the same program to the last bit.

    Args:
        name: Name of the exchange.
        cluster: The fabric.

    Raises:
        AssertionError: Two programs differ.
        ConfigError: The exchange does not run on this fabric.
    """
    one, other = (lowered_exchange(cluster, Schedule(exchange=name)).program for _ in range(2))
    for field in ("demand_resource", "demand_amount", "latency_s_N", "dep_index", "dep_ptr"):
        same = np.array_equal(getattr(one, field), getattr(other, field))
        expect(same, f"{name} on {cluster.name}: two equal programs", field)


def refusal(name: str, cluster: Cluster) -> str | None:
    """Return why an exchange does not run on a fabric, and None if it does.

    Args:
        name: Name of the exchange.
        cluster: The fabric.

    Raises:
        AssertionError: The refusal has several lines, or does not name the exchange.
        UnknownNameError: There is no such exchange.
    """
    schedule = Schedule(exchange=name)  # raises for an unknown name, which is not a refusal
    try:
        lowered_exchange(cluster, schedule)
    except ConfigError as error:
        text = str(error)
        good = "\n" not in text and name in text
        expect(good, f"{name} on {cluster.name}: a refusal of one line that names it", text)
        return text
    return None


def check_exchange(name: str, fabrics: Mapping[str, Callable[[], Cluster]] = FABRICS) -> None:
    """Run all checks of exchanges on an exchange.

    Args:
        name: Name of the exchange.
        fabrics: Kind of fabric -> maker of a cluster.

    Raises:
        AssertionError: The exchange breaks a rule, or runs on no fabric at all.
        UnknownNameError: There is no such exchange.
    """
    runs = 0
    for make in fabrics.values():
        cluster = make()
        if refusal(name, cluster) is not None:
            continue
        runs += 1
        is_deterministic(name, cluster)
        for found in lowerings(name, cluster):
            for check in CHECKS:
                check(found)
    expect(runs, f"{name} to run on at least one of {', '.join(fabrics)}")
