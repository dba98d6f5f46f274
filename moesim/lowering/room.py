"""Say what a program will take of this machine's memory, and refuse it before any of it is built.

The bytes are those of the matrices of pairs and of the entries of demands, as they were measured on
layers of 256 to 2,048 devices and on exchanges; they held within a factor of 2.
"""

from moesim.hardware import Cluster
from moesim.hardware.exchanges import Exchange
from moesim.limits import check_request
from moesim.program.program import ENTRY_BYTES
from moesim.routing.sampler import CHOICE_BYTES

#: bytes that factored traffic takes for each device, on ports and on a torus, measured at 16,384
#: devices and at a million
_FACTORED = 512.0, 4096.0
#: bytes of a layer for each pair of devices: matrices of the traffic of a batch, and of its legs
_TRAFFIC, _LEGS = 32.0, 24.0
#: entries of a layer for each pair of devices and batch: on ports, across domains in two hops, on a
#: torus; and for each pair that is an op
_DIRECT, _TWO_HOPS, _LINKS, _AS_OPS = 1.5, 0.4, 3.0, 8.0


def check_room(cluster: Cluster, granularity: str, *, factored: bool = False) -> None:
    """Refuse an exchange that would not fit in memory.

    Args:
        cluster: The cluster of D devices.
        granularity: ``device`` or ``pair``.
        factored: Whether the traffic stays in factors, with no entry for each pair.

    Raises:
        CapacityError: The program would not fit; the message says what it needs and what there is.
    """
    num_devices = cluster.num_devices
    torus = cluster.is_torus
    # the matrix of floats, and the entries of a row: more on a torus, whose routes pass many links
    per_pair = 8.0 + ENTRY_BYTES * (6.0 if torus else 3.0) * (2.0 if granularity == "pair" else 1.0)
    need, advice = per_pair * num_devices**2, "use engine bound, device granularity"
    if factored:
        need, advice = _FACTORED[torus] * num_devices, "fewer devices"
    what = f"{num_devices} devices at {granularity} granularity"
    check_request(what, memory_bytes=need, advice=advice)


def check_layer_room(
    cluster: Cluster, exchange: Exchange, granularity: str, num_batches: int, num_choices: int
) -> None:
    """Refuse a layer whose traffic is drawn and would not fit in memory.

    Args:
        cluster: The cluster of D devices.
        exchange: How copies move.
        granularity: ``device`` or ``pair``.
        num_batches: Number of micro-batches.
        num_choices: Number of choices of all tokens: no more pairs have anything to send.

    Raises:
        CapacityError: The layer would not fit; the message says what it needs and what there is.
    """
    pairs = cluster.num_devices**2
    entries = (
        _LINKS
        if cluster.is_torus
        else _TWO_HOPS
        if cluster.num_nodes > 1 and exchange.hops_across
        else _DIRECT
    )
    if granularity == "pair":
        entries *= _AS_OPS
    need = pairs * (_TRAFFIC * num_batches + _LEGS)
    need += (
        min(pairs, num_choices) * num_batches * entries * ENTRY_BYTES + num_choices * CHOICE_BYTES
    )
    check_request(
        f"a layer on {cluster.num_devices} devices at {granularity} granularity",
        memory_bytes=need,
        advice="no pairs are needed where every source routes alike, experts have no capacity, "
        "replicas take turns, and switches join the devices at device granularity",
    )
