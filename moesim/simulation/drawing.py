"""Decide whether the traffic of a design is drawn token by token, or expected from a sample."""

from moesim.design.candidate import Candidate, Workload
from moesim.hardware import Cluster
from moesim.hardware.fabric import PORTS, fabric_of
from moesim.limits import check_request
from moesim.lowering.expected import MOST_DRAWN, SAMPLE
from moesim.lowering.rank_one import can_factor
from moesim.lowering.room import check_layer_room
from moesim.placement import PlacementSpec
from moesim.routing import RoutingSpec
from moesim.routing.sampler import MAX_SAMPLED_TOKENS

#: rows of the mean expert in a sample, from which its load is known well enough to be scaled
_LEAST_ROWS = 64
#: microseconds in which the traffic of a micro-batch is expected, or drawn, and those in which an
#: event engine runs the pieces of a device; bytes of these pieces: as measured
_EXPECTED_US, _DRAWN_US, _PIECES_US, _PIECE_BYTES = 15e3, 1e3, 200.0, 5e3


def is_expected(candidate: Candidate, cluster: Cluster, work: Workload) -> bool:
    """Return whether traffic is expected from a sample of the tokens, since that says as much and
    the rest would only take time and memory (`moesim.lowering.expected`).

    That is so beyond `MOST_DRAWN` devices or `MAX_SAMPLED_TOKENS` tokens, if all sources route
    alike, no token depends on its place or turn (capacity, nearest replicas, traces), and the
    fabric and the exchange allow products.
    """
    devices, layer, schedule = cluster.num_devices, candidate.layer, candidate.schedule
    if devices <= MOST_DRAWN and devices * work.num_tokens_per_device <= MAX_SAMPLED_TOKENS:
        return False
    spec = RoutingSpec.parse(work.routing)
    alike = spec.kind != "trace" and spec.num_domains == 1
    free = layer.capacity_factor is None and not PlacementSpec.parse(candidate.placement).nearest
    known = layer.num_experts * _LEAST_ROWS <= SAMPLE * layer.top_k
    if not (alike and free and known):
        return False
    if devices == 1:
        return True
    fabric = fabric_of(cluster)
    return (
        schedule.granularity == "device"
        and not callable(cluster.exchange(schedule).pattern)
        and fabric.tables.near_kind == PORTS
        and can_factor(fabric)
    )


def check_batches(candidate: Candidate, cluster: Cluster, *, expected: bool) -> None:
    """Refuse more micro-batches than this machine counts and simulates in time."""
    parts, devices = candidate.schedule.num_micro_batches, cluster.num_devices
    check_request(
        f"schedule.num_micro_batches: {parts:,} on {devices:,} devices",
        memory_bytes=_PIECE_BYTES * parts * devices,
        work_us=parts * ((_EXPECTED_US if expected else _DRAWN_US) + _PIECES_US * devices),
        advice="fewer micro-batches",
    )


def check_room(candidate: Candidate, cluster: Cluster, work: Workload) -> None:
    """Refuse drawn traffic that would not fit in this machine's memory."""
    if cluster.num_devices == 1:
        return
    schedule = candidate.schedule
    check_layer_room(
        cluster,
        cluster.exchange(schedule),
        schedule.granularity,
        schedule.num_micro_batches,
        cluster.num_devices * work.num_tokens_per_device * candidate.layer.top_k,
    )
