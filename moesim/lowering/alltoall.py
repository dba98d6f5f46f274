"""Lower one exchange alone to a program: for benchmarks, what-ifs about a fabric, and tests against
theory.

Shape legend: S = D devices.
"""

import numpy as np
from numpy.typing import ArrayLike

from moesim.errors import ConfigError
from moesim.hardware import Cluster
from moesim.hardware.fabric import fabric_of
from moesim.hardware.routes import Factors, device_rows, pair_rows
from moesim.lowering.rank_one import can_factor, receive_ops
from moesim.lowering.room import check_room
from moesim.lowering.senders import send_order, windowed
from moesim.program.builder import Demands, ProgramBuilder
from moesim.program.program import Program
from moesim.routing.distributions import RoutingSpec

Array = np.ndarray


def shares(routing: str, num_devices: int, seed: int = 0) -> Array:
    """Return the share of every sender's bytes that goes to each device, relative to an even share:
    ndarray of shape (D,), mean 1.

    Args:
        routing: A distribution of load, see `moesim.Workload`, with devices instead of experts.
        num_devices: Number of devices, D.
        seed: Seed of the distributions that are random.
    """
    rng = np.random.default_rng([seed, num_devices])
    # enough tokens that rounding to whole ones does not show in the shares
    loads = (
        RoutingSpec.parse(routing)
        .loads(num_devices, 1, max(1 << 20, 64 * num_devices), rng)
        .astype(np.float64)
    )
    return loads / loads.mean()


def check_matrix(bytes_SD: ArrayLike, num_devices: int) -> Array:
    """Return a traffic matrix as floats, and refuse a wrong shape or an amount that is negative or
    not finite.

    Raises:
        ConfigError: The matrix is wrong; the message names the shape or the first wrong entry.
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
    """Lower an exchange of bytes from every device to every other, on the bare fabric.

    Args:
        cluster: The cluster of D devices.
        bytes_SD: ndarray of shape (S, D): bytes from each device to each; the diagonal is not sent.
        granularity: ``device`` (one op per receiver) or ``pair``.
        order: Order of a sender's messages at pair granularity: ``rotated`` or ``naive``.
        window: Number of messages a sender has in flight at pair granularity; 0 means all.
        factors: Overheads of the ports; by default none.
        latency_s: Seconds that elapse before each op's bytes.
        release_S: ndarray of shape (S,): when each sender may begin at pair granularity; by
            default 0.

    Raises:
        ConfigError: The matrix has the wrong shape or a wrong entry.
        CapacityError: The program would not fit in memory.
    """
    fabric, count = fabric_of(cluster), cluster.num_devices
    bytes_SD = check_matrix(bytes_SD, count)
    check_room(cluster, granularity)
    builder = ProgramBuilder()
    for name, rates in fabric.runs:
        builder.resources(name, rates)
    # nothing lands in memory: only the fabric is simulated
    nowhere = np.full(count, -1)
    factors = factors or Factors.ones(count)
    # one op for each receiver, with the entries of all its senders
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
    # one op for each message
    senders, receivers = send_order(bytes_SD, order)
    rows = pair_rows(fabric, bytes_SD, senders, receivers, factors=factors, land_D=nowhere)
    after = None
    if window:
        # no op waits for anything but the window, so the rows to extend are empty
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
    """Lower an exchange of ``sent_S[s] * share_D[d]`` bytes from s to d at device granularity,
    factored where the fabric allows it.

    Args:
        cluster: The cluster of D devices.
        sent_S: ndarray of shape (S,): factor of each sender.
        share_D: ndarray of shape (D,): factor of each receiver.

    Raises:
        ConfigError: The factors have the wrong shape, or are negative or not finite.
        CapacityError: The traffic cannot be factored and would not fit in memory.
    """
    fabric = fabric_of(cluster)
    # without a closed form every pair has entries, which may be too many
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
