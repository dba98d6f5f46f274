"""Compute the demands of transfers on the resources of a fabric, pair by pair in compiled code.

No array grows with pairs x resources: a row is summed in one dense scratch array of R numbers and
then written out.

Shape legend: S senders = D receivers = devices, R resources, N ops.
"""

from typing import NamedTuple

import numpy as np
from numba import njit

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


@njit(cache=True)
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


@njit(cache=True)
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


@njit(cache=True)
def _flush(acc, touched, count, mark, resource, amount, filled):
    """Write the scratch array as a row in ascending order of resources, clear it, and return
    (arrays, entries so far).
    """
    if filled + count > len(resource):
        size = max(2 * len(resource), filled + count)
        more_resource, more_amount = np.empty(size, np.int64), np.empty(size)
        more_resource[:filled], more_amount[:filled] = resource[:filled], amount[:filled]
        resource, amount = more_resource, more_amount
    if 8 * count > len(acc):
        for r in range(len(acc)):
            if mark[r]:
                resource[filled], amount[filled] = r, acc[r]
                filled += 1
                mark[r] = False
                acc[r] = 0.0
    else:
        touched[:count].sort()
        for k in range(count):
            r = touched[k]
            resource[filled], amount[filled] = r, acc[r]
            filled += 1
            mark[r] = False
            acc[r] = 0.0
    return resource, amount, filled


@njit(cache=True)
def _device_rows(tables, bytes_SD, by_receiver, factors, land_D, num_resources):
    n = len(bytes_SD)
    acc, touched = np.zeros(num_resources), np.empty(num_resources, np.int64)
    mark = np.zeros(num_resources, np.bool_)
    ptr = np.zeros(n + 1, np.int64)
    resource, amount, filled = np.empty(16 * n + n * n, np.int64), np.empty(16 * n + n * n), 0
    total, flows, longest = np.zeros(n), np.zeros(n, np.int64), np.zeros(n, np.int64)
    for own in range(n):
        count = 0
        for peer in range(n):
            s, d = (peer, own) if by_receiver else (own, peer)
            size = bytes_SD[s, d]
            if peer == own or size == 0.0:
                continue
            count, hops = _add(tables, s, d, size, factors, acc, touched, count, mark)
            r = land_D[d]
            if r >= 0:
                if not mark[r]:
                    mark[r] = True
                    touched[count] = r
                    count += 1
                acc[r] += size
            total[own] += size
            flows[own] += 1
            longest[own] = max(longest[own], hops)
        resource, amount, filled = _flush(acc, touched, count, mark, resource, amount, filled)
        ptr[own + 1] = filled
    return ptr, resource[:filled], amount[:filled], total, flows, longest


@njit(cache=True)
def _pair_rows(tables, bytes_SD, senders, receivers, factors, land_D, num_resources):
    n = len(senders)
    acc, touched = np.zeros(num_resources), np.empty(num_resources, np.int64)
    mark = np.zeros(num_resources, np.bool_)
    ptr = np.zeros(n + 1, np.int64)
    resource, amount, filled = np.empty(3 * n, np.int64), np.empty(3 * n), 0
    total, flows, longest = np.zeros(n), np.ones(n, np.int64), np.zeros(n, np.int64)
    for i in range(n):
        s, d = senders[i], receivers[i]
        total[i] = bytes_SD[s, d]
        count, longest[i] = _add(tables, s, d, total[i], factors, acc, touched, 0, mark)
        r = land_D[d]
        if r >= 0:
            mark[r] = True
            touched[count] = r
            count += 1
            acc[r] += total[i]
        if filled + count > len(resource):
            size = max(2 * len(resource), filled + count)
            more_resource, more_amount = np.empty(size, np.int64), np.empty(size)
            more_resource[:filled], more_amount[:filled] = resource[:filled], amount[:filled]
            resource, amount = more_resource, more_amount
        # sort the few touched resources in place, since a scan of all resources would cost more
        for k in range(1, count):
            r, x = touched[k], k
            while x > 0 and touched[x - 1] > r:
                touched[x] = touched[x - 1]
                x -= 1
            touched[x] = r
        for k in range(count):
            r = touched[k]
            resource[filled], amount[filled] = r, acc[r]
            filled += 1
            mark[r] = False
            acc[r] = 0.0
        ptr[i + 1] = filled
    return ptr, resource[:filled], amount[:filled], total, flows, longest


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
    top = max(int(land_D.max()) + 1, fabric.num_resources)
    sizes, land = (
        np.ascontiguousarray(bytes_SD, dtype=np.float64),
        np.asarray(land_D, dtype=np.int64),
    )
    rows_of = port_rows if fabric.tables.near_kind == PORTS else _device_rows
    return Rows(*rows_of(fabric.tables, sizes, by == "receiver", factors, land, top))


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
    top = max(int(land_D.max()) + 1, fabric.num_resources)
    rows_of = port_pairs if fabric.tables.near_kind == PORTS else _pair_rows
    return Rows(
        *rows_of(
            fabric.tables,
            np.ascontiguousarray(bytes_SD, dtype=np.float64),
            np.asarray(senders, dtype=np.int64),
            np.asarray(receivers, dtype=np.int64),
            factors,
            np.asarray(land_D, dtype=np.int64),
            top,
        )
    )


def link_bytes(fabric: Fabric, bytes_SD: Array) -> Array:
    """Return the bytes on every resource of the fabric: ndarray of shape (R,)."""
    count = fabric.num_devices
    rows = device_rows(
        fabric, bytes_SD, by="sender", factors=Factors.ones(count), land_D=np.full(count, -1)
    )
    return np.bincount(rows.resource, rows.amount, len(fabric.capacity_R))
