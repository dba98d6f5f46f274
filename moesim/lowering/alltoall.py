"""One exchange by itself as a program: for benchmarks, for what-ifs about a fabric, and for tests
against theory.

Shape legend: S = D devices.
"""

import os

import numpy as np
from numpy.typing import ArrayLike

from moesim.errors import CapacityError, ConfigError
from moesim.hardware import Cluster
from moesim.hardware.fabric import fabric_of
from moesim.hardware.routes import Factors, device_rows, pair_rows
from moesim.lowering.exchange import send_order, windowed
from moesim.lowering.rank_one import can_factor, receive_ops
from moesim.program.builder import Demands, ProgramBuilder
from moesim.program.program import ENTRY_BYTES, Program
from moesim.routing.distributions import RoutingSpec
from moesim.units import GIB

Array = np.ndarray
#: share of the machine's memory that a run may plan to use
_ROOM = 0.7
#: bytes for each device of factored traffic, measured at 16,384 devices and at a million: of ports,
#: of a torus
_FACTORED = 512.0, 4096.0


def shares(routing: str, num_devices: int, seed: int = 0) -> Array:
    """Share of every sender's bytes that goes to each device, relative to an even one: ndarray of
    shape (D,), mean 1.

    Args:
        routing: A distribution of load, as in `moesim.Workload`, with devices in the place of
            experts.
        num_devices: D.
        seed: Seed of the distributions that are drawn.
    """
    rng = np.random.default_rng([seed, num_devices])
    loads = (
        RoutingSpec.parse(routing)
        .loads(num_devices, 1, max(1 << 20, 64 * num_devices), rng)
        .astype(np.float64)
    )
    return loads / loads.mean()


def check_matrix(bytes_SD: ArrayLike, num_devices: int) -> Array:
    """A traffic matrix as floats; refuses the wrong shape, and an amount that is negative or not
    finite.

    Raises:
        ConfigError: Which, and the first wrong entry.
    """
    try:
        bytes_SD = np.asarray(bytes_SD, dtype=np.float64)
    except (TypeError, ValueError):
        raise ConfigError(
            f"traffic: expected a matrix of {num_devices} x {num_devices} bytes, got something "
            "else than rows of numbers of one length"
        ) from None
    if bytes_SD.shape != (num_devices, num_devices):
        raise ConfigError(
            f"traffic: expected a matrix of {num_devices} x {num_devices} bytes, got an array of "
            f"shape {np.shape(bytes_SD)}"
        )
    wrong = ~(np.isfinite(bytes_SD) & (bytes_SD >= 0))
    if wrong.any():
        s, d = np.argwhere(wrong)[0]
        raise ConfigError(
            f"traffic: expected bytes >= 0 from {s} to {d}, got {bytes_SD[s, d].item()!r}"
        )
    return bytes_SD


def exchange_program(
    cluster: Cluster,
    bytes_SD: ArrayLike,
    *,
    granularity: str = "device",
    order: str = "rotated",
    window: int = 0,
    factors: Factors | None = None,
    latency_s: float = 0.0,
    release_S: Array | None = None,
) -> Program:
    """Bytes from every device to every other, on the bare fabric.

    Args:
        cluster: D devices.
        bytes_SD: ndarray of shape (S, D); the diagonal stays at home.
        granularity: ``device`` (one op per receiver) or ``pair``.
        order: Of a sender's messages, for pairs: ``rotated`` or ``naive``.
        window: Messages a sender has under way, for pairs; 0: all.
        factors: Overheads of ports; by default none.
        latency_s: Elapses before each op's bytes.
        release_S: ndarray of shape (S,): when each sender may begin, for pairs; by default 0.

    Raises:
        ConfigError: A matrix of the wrong shape or with a wrong entry.
        CapacityError: It would not fit in memory.
    """
    fabric, count = fabric_of(cluster), cluster.num_devices
    bytes_SD = check_matrix(bytes_SD, count)
    check_room(cluster, granularity)
    builder = ProgramBuilder()
    for name, rates in fabric.runs:
        builder.resources(name, rates)
    nowhere = np.full(count, -1)
    factors = factors or Factors.ones(count)
    if granularity == "device":
        rows = device_rows(fabric, bytes_SD, by="receiver", factors=factors, land_D=nowhere)
        builder.ops(
            "receive",
            count,
            demands=Demands(rows.resource, rows.amount, rows.ptr),
            phase="dispatch",
            latency_s=latency_s + cluster.hop_s * rows.hops_N,
            bytes_per_flow=rows.bytes_N / np.maximum(rows.flows_N, 1),
        )
        return builder.build()
    senders, receivers = send_order(bytes_SD, order)
    rows = pair_rows(fabric, bytes_SD, senders, receivers, factors=factors, land_D=nowhere)
    after = None
    if window:
        after = windowed(np.zeros((len(senders), 0), dtype=np.int64), senders, 0, window)
    builder.ops(
        "send",
        len(senders),
        demands=Demands(rows.resource, rows.amount, rows.ptr),
        phase="dispatch",
        latency_s=latency_s + cluster.hop_s * rows.hops_N,
        after=after,
        own_batch=bool(window),
        release_s=0.0 if release_S is None else release_S[senders],
        bytes_per_flow=rows.bytes_N,
    )
    return builder.build()


def rank_one_program(cluster: Cluster, sent_S: Array, share_D: Array) -> Program:
    """``sent_S[s] * share_D[d]`` bytes from s to d, device granularity, factored where the fabric
    allows.

    Raises:
        ConfigError: Factors of the wrong shape, negative or not finite.
        CapacityError: It cannot be factored and would not fit in memory.
    """
    fabric = fabric_of(cluster)
    if not can_factor(fabric):
        check_room(cluster, "device")
        return exchange_program(cluster, np.outer(sent_S, share_D))
    builder = ProgramBuilder()
    for name, rates in fabric.runs:
        builder.resources(name, rates)
    receive_ops(
        builder,
        fabric,
        np.asarray(sent_S, dtype=np.float64),
        np.asarray(share_D, dtype=np.float64),
        "receive",
        cluster.hop_s,
    )
    return builder.build()


def check_room(cluster: Cluster, granularity: str, *, factored: bool = False) -> None:
    """Refuse a program that would not fit, before any of it is built.

    Args:
        cluster: D devices.
        granularity: ``device`` or ``pair``.
        factored: Whether its traffic stays in factors, with nothing for each pair.

    Raises:
        CapacityError: With what it would take and what there is.
    """
    num_devices = cluster.num_devices
    torus = cluster.is_torus
    per_pair = 8.0 + ENTRY_BYTES * (6.0 if torus else 3.0) * (2.0 if granularity == "pair" else 1.0)
    need, there = per_pair * num_devices**2, _ROOM * memory_bytes()
    advice = ": use engine bound, device granularity"
    if factored:
        need, advice = _FACTORED[torus] * num_devices, ""
    if need > there:
        raise CapacityError(
            f"{num_devices} devices at {granularity} granularity would take {need / GIB:.1f} GiB "
            f"of the {there / GIB:.1f} that may be used{advice}"
        )


def memory_bytes() -> float:
    """Memory of this machine."""
    return float(os.sysconf("SC_PAGE_SIZE")) * os.sysconf("SC_PHYS_PAGES")
