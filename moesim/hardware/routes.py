"""Compute the demands of transfers on the resources of a fabric, pair by pair in compiled code.

No array grows with pairs x resources: a row is summed in one dense scratch array of R numbers and
then written out.

Shape legend: S senders = D receivers = devices, R resources, N ops.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from moesim.compiled import compiled, with_caller
from moesim.hardware.fabric import MESH, PORTS, TORUS, Fabric
from moesim.hardware.port_rows import port_pairs, port_rows

Array = np.ndarray


class Factors(NamedTuple):
    """Bytes for which a resource is busy, over bytes carried, per device and all >= 0: ndarrays of
    shape (D,).
    """

    near_out: Array
    near_in: Array
    far_out: Array
    far_in: Array
    link: Array

    @classmethod
    def ones(cls, count: int) -> "Factors":
        """Return factors without any overhead."""
        return cls(*(np.ones(count) for _ in cls._fields))

    def plain(self) -> "Factors":
        """Return the factors as arrays of the one kind that is compiled for."""
        return Factors(*np.array(self))


class Rows(NamedTuple):
    """Demands of N ops as a sparse matrix, and the bytes that the ops carry.

    Attributes:
        ptr: ndarray of shape (N + 1,): row pointers.
        resource: Index of the resource of each entry, ascending within a row.
        amount: Bytes of each entry, with factors applied.
        bytes_N: Bytes that each op carries, without factors.
        flows_N: Number of source-destination pairs of each op.
        hops_N: Number of hops of the longest route of each op inside a domain.
    """

    ptr: Array
    resource: Array
    amount: Array
    bytes_N: Array
    flows_N: Array
    hops_N: Array


@compiled(with_caller)
def _scatter(s, d):
    """Return a pseudo-random number that is always the same for a pair. It picks the route of the
    pair in a static route table.

    The function is SplitMix64 (Steele, Lea and Flood 2014).
    """
    x = np.uint64(s) << np.uint64(32) | np.uint64(d)
    x += np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.int64((x ^ (x >> np.uint64(31))) >> np.uint64(1))


@compiled(with_caller)
def _add(tables, s, d, size, factors, acc, touched, count, mark):
    """Add ``size`` bytes from s to d to the scratch array and return (resources touched so far,
    hops).
    """
    near = tables.domain_D[s] == tables.domain_D[d]
    if near and tables.near_kind == TORUS:
        base = tables.near_out_D[s] - tables.local_D[s] * tables.next_LX.shape[1]
        axes = len(tables.key_A)
        v = 0
        for a in range(axes):
            gap = tables.coord_LA[tables.local_D[d], a] - tables.coord_LA[tables.local_D[s], a]
            v += (gap + tables.shift_A[a]) * tables.key_A[a]
        ways, orders = tables.ways_V[v], len(tables.orders_OA)
        first = 0
        if tables.single_path == 1 and ways > 1:
            first = _scatter(s, d) % ways
            ways = 1
        # all routes of the pair carry an equal part
        part = size * factors.link[s] / (ways * orders)
        hops = 0
        for a in range(axes):
            hops += abs(tables.steps_VCA[v, 0, a])
        for w in range(first, first + ways):
            for o in range(orders):
                node = tables.local_D[s]
                for x in range(axes):
                    a = tables.orders_OA[o, x]
                    steps = tables.steps_VCA[v, w, a]
                    way = 2 * a + (1 if steps < 0 else 0)
                    for _ in range(abs(steps)):
                        r = base + node * tables.next_LX.shape[1] + way
                        if not mark[r]:
                            mark[r] = True
                            touched[count] = r
                            count += 1
                        acc[r] += part
                        node = tables.next_LX[node, way]
        return count, hops
    if near and tables.near_kind == MESH:
        r = tables.near_out_D[s] + tables.local_D[d]
        if not mark[r]:
            mark[r] = True
            touched[count] = r
            count += 1
        acc[r] += size * factors.link[s]
        return count, 1
    if near:
        # ports of both devices, and the uplinks between them if they are on different PCIe switches
        ends = (tables.near_out_D[s], tables.near_in_D[d])
        middle = (tables.switch_up[0], tables.switch_up[0])
        other = tables.switch_D[s] != tables.switch_D[d]
        if other:
            middle = (tables.switch_up[tables.switch_D[s]], tables.switch_down[tables.switch_D[d]])
        sizes = (size * factors.near_out[s], size * factors.near_in[d])
    else:
        # NICs of both devices, and the uplinks between them if oversubscribed leaves differ
        ends = (tables.far_out_D[s], tables.far_in_D[d])
        other = tables.leaf_up[0] >= 0 and tables.leaf_D[s] != tables.leaf_D[d]
        middle = (tables.leaf_up[0], tables.leaf_up[0])
        if other:
            middle = (tables.leaf_up[tables.leaf_D[s]], tables.leaf_down[tables.leaf_D[d]])
        sizes = (size * factors.far_out[s], size * factors.far_in[d])
    for x in range(2):
        r = ends[x]
        if not mark[r]:
            mark[r] = True
            touched[count] = r
            count += 1
        acc[r] += sizes[x]
        if other:
            r = middle[x]
            if not mark[r]:
                mark[r] = True
                touched[count] = r
                count += 1
            acc[r] += size * factors.link[s]
    # hops between domains count as 0, since the calibration of the kernels includes their latency
    return count, 0 if not near else 2 if other else 1


@compiled(plain_s=lambda _, bytes_SD, *__: 5e-6 * bytes_SD.size)
def _device_rows(tables, bytes_SD, by_receiver, factors, land_D, out, first, filled):
    n = len(bytes_SD)
    num_resources = len(out.acc)
    for own in range(first, n):
        if filled + num_resources > len(out.resource):
            return own, filled
        count = 0
        for peer in range(n):
            s, d = (peer, own) if by_receiver else (own, peer)
            size = bytes_SD[s, d]
            if peer == own or size == 0.0:
                continue
            count, hops = _add(tables, s, d, size, factors, out.acc, out.touched, count, out.mark)
            r = land_D[d]
            if r >= 0:
                if not out.mark[r]:
                    out.mark[r] = True
                    out.touched[count] = r
                    count += 1
                out.acc[r] += size
            out.bytes_N[own] += size
            out.flows_N[own] += 1
            out.hops_N[own] = max(out.hops_N[own], hops)
        for r in range(num_resources):
            if out.mark[r]:
                out.resource[filled], out.amount[filled] = r, out.acc[r]
                filled += 1
                out.mark[r] = False
                out.acc[r] = 0.0
        out.ptr[own + 1] = filled
    return n, filled


@compiled(plain_s=lambda _, __, pairs_2N, *___: 4e-6 * pairs_2N.size)
def _pair_rows(tables, bytes_SD, pairs_2N, factors, land_D, out, first, filled):
    n = pairs_2N.shape[1]
    for i in range(first, n):
        if filled + len(out.acc) > len(out.resource):
            return i, filled
        s, d = pairs_2N[0, i], pairs_2N[1, i]
        size = bytes_SD[s, d]
        count, hops = _add(tables, s, d, size, factors, out.acc, out.touched, 0, out.mark)
        out.bytes_N[i], out.flows_N[i], out.hops_N[i] = size, 1, hops
        r = land_D[d]
        if r >= 0:
            out.mark[r] = True
            out.touched[count] = r
            count += 1
            out.acc[r] += size
        # sort the few touched resources in place, since a scan of all resources would cost more
        for k in range(1, count):
            r, x = out.touched[k], k
            while x > 0 and out.touched[x - 1] > r:
                out.touched[x] = out.touched[x - 1]
                x -= 1
            out.touched[x] = r
        for k in range(count):
            r = out.touched[k]
            out.resource[filled], out.amount[filled] = r, out.acc[r]
            filled += 1
            out.mark[r] = False
            out.acc[r] = 0.0
        out.ptr[i + 1] = filled
    return n, filled


class _Out(NamedTuple):
    """What the compiled functions write: rows, and a dense row as scratch.

    All arrays are made here and handed in, since each allocation and slice in compiled code costs
    seconds to compile.
    """

    resource: Array
    amount: Array
    ptr: Array
    bytes_N: Array
    flows_N: Array
    hops_N: Array
    acc: Array
    touched: Array
    mark: Array


def _rows(
    rows_of: Callable[..., tuple[int, int]],
    fabric: Fabric,
    given: tuple,
    land_D: Array,
    count: int,
    room: int,
) -> Rows:
    """Return the rows that a compiled function writes. It stops where the next row might not fit,
    and goes on with more room.

    Args:
        rows_of: The compiled function.
        fabric: The resources and routes.
        given: The arguments between tables and ``land_D``.
        land_D: The resource that received bytes are written to.
        count: Number of rows.
        room: Number of entries that are likely to be enough.
    """
    width = max(int(land_D.max()) + 1, fabric.num_resources)
    land_D = _plain(land_D, np.int64)
    out = _Out(
        np.empty(room + width, np.int64),
        np.empty(room + width),
        np.zeros(count + 1, np.int64),
        np.zeros(count),
        np.zeros(count, np.int64),
        np.zeros(count, np.int64),
        np.zeros(width),
        np.empty(width, np.int64),
        np.zeros(width, np.bool_),
    )
    row, filled = rows_of(fabric.tables, *given, land_D, out, 0, 0)
    while row < count:
        more = len(out.resource) + width
        out = out._replace(
            resource=np.concatenate([out.resource[:filled], np.empty(more, np.int64)]),
            amount=np.concatenate([out.amount[:filled], np.empty(more)]),
        )
        row, filled = rows_of(fabric.tables, *given, land_D, out, row, filled)
    return Rows(
        out.ptr, out.resource[:filled], out.amount[:filled], out.bytes_N, out.flows_N, out.hops_N
    )


def device_rows(
    fabric: Fabric, bytes_SD: Array, *, by: str, factors: Factors, land_D: Array
) -> Rows:
    """Return the demands of one op per receiver (``by="receiver"``) or per sender.

    Args:
        fabric: The resources and routes.
        bytes_SD: ndarray of shape (S, D): bytes of each pair; the diagonal is not sent.
        by: Whether an op stands for a ``receiver`` or a ``sender``.
        factors: The overhead factors of each device.
        land_D: ndarray of shape (D,): resource that received bytes are written to, without a
            factor; -1 for none.
    """
    count = len(bytes_SD)
    rows_of = port_rows if fabric.tables.near_kind == PORTS else _device_rows
    given = (_plain(bytes_SD, np.float64), by == "receiver", factors.plain())
    return _rows(rows_of, fabric, given, land_D, count, 16 * count + count * count)


def pair_rows(
    fabric: Fabric,
    bytes_SD: Array,
    senders: Array,
    receivers: Array,
    *,
    factors: Factors,
    land_D: Array,
) -> Rows:
    """Return the demands of one op per pair, in the order of ``senders`` and ``receivers``; the
    other arguments are those of `device_rows`.
    """
    pairs_2N = np.array([senders, receivers], dtype=np.int64)
    rows_of, entries = (port_pairs, 5) if fabric.tables.near_kind == PORTS else (_pair_rows, 3)
    given = (_plain(bytes_SD, np.float64), pairs_2N, factors.plain())
    return _rows(rows_of, fabric, given, land_D, len(senders), entries * len(senders))


def _plain(values: Array, kind: type) -> Array:
    """Return values as the one kind of array that is compiled for: contiguous and writable."""
    return np.require(values, kind, ["C", "W"])


def link_bytes(fabric: Fabric, bytes_SD: Array) -> Array:
    """Return the bytes on every resource of the fabric: ndarray of shape (R,)."""
    count = fabric.num_devices
    rows = device_rows(
        fabric, bytes_SD, by="sender", factors=Factors.ones(count), land_D=np.full(count, -1)
    )
    return np.bincount(rows.resource, rows.amount, len(fabric.capacity_R))
