"""Lower rank-1 traffic, ``u_s v_d`` bytes from s to d, without an entry for every pair of devices.

The load of ports (switches, NICs) is such a product already. On a torus that is walked axis by
axis, a byte on a ring of axis a has the destination's coordinates on the axes before a and the
source's coordinates on the axes after it. The load of a ring's links is therefore a matrix product:
of the sources summed over the axes before, and the destinations summed over the axes after.

Shape legend: S = D devices, A axes; axis a has n positions, the axes before it B and the axes after
it F positions together.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from moesim.errors import ConfigError
from moesim.hardware.fabric import MESH, TORUS, Fabric
from moesim.hardware.routes import Factors, device_rows
from moesim.lowering.products import Product, product_ops
from moesim.program.builder import ProgramBuilder
from moesim.program.program import ENTRY_BYTES

Array = np.ndarray


def can_factor(fabric: Fabric) -> bool:
    """Return whether rank-1 traffic has a closed form: on ports without shared uplinks, or on an
    axis-ordered torus.
    """
    tables = fabric.tables
    if tables.near_kind == TORUS:
        # a torus that is twisted, joined to others or routed in several orders has no such product
        several = int(tables.domain_D[-1]) > 0
        twisted = not np.array_equal(tables.shift_A, tables.coord_LA.max(axis=0)) or _is_twisted(
            fabric
        )
        return not (several or twisted or tables.single_path or len(tables.orders_OA) > 1)
    return tables.near_kind != MESH and tables.leaf_up[0] < 0 and tables.switch_up[0] < 0


def _is_twisted(fabric: Fabric) -> bool:
    """Return whether a step along one axis ever changes the coordinate on another."""
    coord, following = fabric.tables.coord_LA, fabric.tables.next_LX
    for x in range(following.shape[1]):
        there = following[:, x] >= 0
        moved = coord[following[there, x]] != coord[there]
        # direction x steps along axis x // 2; any other coordinate that moved is a twist
        moved[:, x // 2] = False
        if moved.any():
            return True
    return False


def receive_ops(
    builder: ProgramBuilder,
    fabric: Fabric,
    sent_S: Array,
    share_D: Array,
    name: str,
    hop_s: float = 0.0,
) -> Array:
    """Add one op per receiver for traffic of ``sent_S[s] * share_D[d]`` bytes.

    Args:
        builder: The program; the fabric's resources must be its first.
        fabric: A fabric for which `can_factor` holds.
        sent_S: ndarray of shape (S,): factor of each sender.
        share_D: ndarray of shape (D,): factor of each receiver, > 0.
        name: Name of the ops.
        hop_s: Latency of a hop; on a torus an op waits for the hops of its longest route.

    Raises:
        ConfigError: The factors have the wrong shape, or are negative or not finite.
    """
    count = fabric.num_devices
    for what, values in (("sent_S", sent_S), ("share_D", share_D)):
        if np.shape(values) != (count,):
            raise ConfigError(
                f"traffic.{what}: expected {count} numbers, got an array of shape "
                f"{np.shape(values)}"
            )
        if not (np.isfinite(values).all() and (np.asarray(values) >= 0).all()):
            raise ConfigError(f"traffic.{what}: expected finite numbers >= 0")
    if fabric.tables.near_kind != TORUS:
        per_domain = int(np.bincount(fabric.tables.domain_D)[0])
        return product_ops(
            builder,
            fabric,
            Product(sent_S=sent_S, share_D=share_D, reach="all", devices_per_domain=per_domain),
            name,
            by="receiver",
            factors=Factors.ones(count),
            land_D=np.full(count, -1),
            start_s=hop_s,
            phase="dispatch",
        )
    ops = np.arange(builder.num_ops, builder.num_ops + count)
    load = TorusLoad(ops_I=ops, fabric=fabric, sent_S=sent_S, share_D=share_D)
    builder.ops(
        name,
        count,
        latency_s=hop_s * load.hops_I(),
        # a device sends nothing to itself
        bytes_per_flow=share_D * (sent_S.sum() - sent_S) / max(count - 1, 1),
        phase="dispatch",
    )
    builder.factored(load)
    return ops


@dataclass(frozen=True, kw_only=True, eq=False)
class TorusLoad:
    """Demands of receivers on the links of a torus, computed from the two factors of the traffic.

    Attributes:
        ops_I: Numbers of the ops, one per device in order.
        fabric: The torus.
        sent_S: ndarray of shape (S,): factor of each sender.
        share_D: ndarray of shape (D,): factor of each receiver.
    """

    ops_I: Array
    fabric: Fabric
    sent_S: Array
    share_D: Array

    @cached_property
    def resources_J(self) -> Array:
        """Numbers of all links."""
        return np.arange(self.fabric.num_resources)

    @cached_property
    def _axes(self) -> list[int]:
        return (self.fabric.tables.coord_LA.max(axis=0) + 1).tolist()

    @cached_property
    def _loads(self) -> tuple[Array, Array]:
        """Bytes of every link, and bytes of the busiest link of each receiver per unit of its
        factor.
        """
        axes, count = self._axes, self.fabric.num_devices
        links, largest = np.zeros((count, 2 * len(axes))), np.zeros(count)
        for a, n in enumerate(axes):
            # sources are summed over the axes walked before, destinations over those walked after
            before, after = int(np.prod(axes[:a])), int(np.prod(axes[a + 1 :]))
            sources_nF = self.sent_S.reshape(before, n, after).sum(axis=0)
            shares_Bn = self.share_D.reshape(before, n, after).sum(axis=2)
            use = self._use(a, n)  # (direction, position of the link, from, to)
            for way in range(2):
                # bytes per link and position of the destination on this axis
                to_nF = np.einsum("lpq,pf->lqf", use[way], sources_nF)
                links[:, 2 * a + way] = np.einsum("lqf,bq->blf", to_nF, shares_Bn).ravel()
                most_n = to_nF.max(axis=(0, 2))
                largest = np.maximum(
                    largest, np.broadcast_to(most_n[None, :, None], (before, n, after)).ravel()
                )
        return links.ravel(), largest

    def _use(self, axis: int, n: int) -> Array:
        """Return the share of the traffic between two positions of a ring that passes each of its
        links: ndarray of shape (2, n, n, n).
        """
        tables = self.fabric.tables
        use = np.zeros((2, n, n, n))
        shift = tables.shift_A @ tables.key_A
        for start in range(n):
            for end in range(n):
                v = shift + (end - start) * tables.key_A[axis]
                # traffic splits evenly over the shortest routes round the ring
                ways = tables.steps_VCA[v, : tables.ways_V[v], axis]
                for steps in ways:
                    way, place = int(steps < 0), start
                    for _ in range(abs(int(steps))):
                        use[way, place, start, end] += 1.0 / len(ways)
                        place = (place + (1 if steps > 0 else -1)) % n
        return use

    def hops_I(self) -> Array:
        """Return the hops of the longest route to each receiver: ndarray of shape (I,)."""
        tables, hops = self.fabric.tables, np.zeros(self.fabric.num_devices)
        shift = tables.shift_A @ tables.key_A
        for a, n in enumerate(self._axes):
            place = np.arange(n)
            # indexed by (to, from)
            gaps = tables.steps_VCA[shift + (place[:, None] - place) * tables.key_A[a], 0, a]
            hops += np.abs(gaps).max(axis=1)[tables.coord_LA[:, a]]
        return hops

    def demand_J(self) -> Array:
        """Return the bytes of every link: ndarray of shape (J,)."""
        return self._loads[0]

    def largest_s_I(self, capacity_R: Array) -> Array:
        """Return the seconds of the busiest link of each receiver's own traffic: ndarray of shape
        (I,).
        """
        return self.share_D * self._loads[1] / capacity_R[0]

    def expanded_bytes(self) -> float:
        """Return the bytes that the matrix of pairs and a row of links for each receiver would
        take.
        """
        return (8.0 + ENTRY_BYTES * 2 * len(self._axes)) * self.fabric.num_devices**2

    def entries(self) -> tuple[Array, Array, Array]:
        """Return op, link and bytes of every entry."""
        count = self.fabric.num_devices
        rows = device_rows(
            self.fabric,
            np.outer(self.sent_S, self.share_D),
            by="receiver",
            factors=Factors.ones(count),
            land_D=np.full(count, -1),
        )
        return np.repeat(self.ops_I, np.diff(rows.ptr)), rows.resource, rows.amount
