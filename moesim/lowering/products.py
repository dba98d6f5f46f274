"""Traffic that is a product: a factor of the sender times a factor of the receiver, lowered without
an entry for every pair of devices.

Where every source sends in the same proportions, ``sent_S[s] * share_D[d]`` copies go from s to d.
The hops of an exchange keep that form; they differ only in which pairs they join. On ports the load
of a device's own ports is then a sum, and that of all other devices' ports stays factored
(`moesim.program.factored`).

Shape legend: S senders = D receivers = devices.
"""

from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from moesim.hardware.fabric import Fabric
from moesim.hardware.routes import Factors
from moesim.program.builder import Demands, ProgramBuilder
from moesim.program.factored import Factored

Array = np.ndarray
Reach = Literal["all", "domain", "rail"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Product:
    """Amounts ``sent_S[s] * share_D[d]`` between the pairs of devices that a hop joins.

    Attributes:
        sent_S: ndarray of shape (S,): factor of each sender.
        share_D: ndarray of shape (D,): factor of each receiver.
        reach: Which other devices a device sends to: ``all``, those of its ``domain``, or those of
            its ``rail``, which have the same place in other domains.
        devices_per_domain: Consecutive devices of a domain.
    """

    sent_S: Array
    share_D: Array
    reach: Reach
    devices_per_domain: int

    def times(self, size: float) -> "Product":
        """Return the amounts times a number, such as the bytes of a copy."""
        return replace(self, share_D=self.share_D * size)

    def only(self, members_S: Array) -> "Product":
        """Return the amounts of some senders, given as a mask of shape (S,)."""
        return replace(self, sent_S=np.where(members_S, self.sent_S, 0.0))

    @property
    def transposed(self) -> "Product":
        """The same amounts on their way back."""
        return replace(self, sent_S=self.share_D, share_D=self.sent_S)

    @property
    def domain_D(self) -> Array:
        """The domain of each device: ndarray of shape (D,)."""
        return np.arange(len(self.share_D)) // self.devices_per_domain

    @property
    def rail_D(self) -> Array:
        """The place of each device in its domain: ndarray of shape (D,)."""
        return np.arange(len(self.share_D)) % self.devices_per_domain

    def peers(self, values_D: Array) -> tuple[Array, Array]:
        """Return the sum of a value over the devices that each device is joined with, those of its
        domain and those of others: two ndarrays of shape (D,).
        """
        values = np.asarray(values_D, dtype=np.float64)
        near, far = np.zeros(len(values)), np.zeros(len(values))
        within = np.bincount(self.domain_D, values)[self.domain_D]
        if self.reach != "rail":
            near = within - values
        if self.reach == "all":
            far = values.sum() - within
        if self.reach == "rail":
            far = np.bincount(self.rail_D, values)[self.rail_D] - values
        return near, far

    def near_far_D(self) -> tuple[Array, Array, Array, Array]:
        """Return what leaves and enters each device inside its domain, and across domains: four
        ndarrays of shape (D,).
        """
        near_out, far_out = self.peers(self.share_D)
        near_in, far_in = self.peers(self.sent_S)
        sent, share = self.sent_S, self.share_D
        return sent * near_out, share * near_in, sent * far_out, share * far_in

    def dense(self) -> Array:
        """Return the amounts as a matrix: ndarray of shape (S, D)."""
        domain, rail = self.domain_D, self.rail_D
        near = domain[:, None] == domain
        joined = {"all": True, "domain": near, "rail": ~near & (rail[:, None] == rail)}[self.reach]
        return np.where(joined, np.outer(self.sent_S, self.share_D), 0.0)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Side:
    """One end of the pairs: its ports, what they cost beyond the bytes, and where bytes land."""

    near_D: Array
    far_D: Array
    land_D: Array
    near_factor_D: Array
    far_factor_D: Array


def product_ops(
    builder: ProgramBuilder,
    fabric: Fabric,
    product: Product,
    name: str,
    *,
    by: str,
    factors: Factors,
    land_D: Array,
    start_s: float | Array = 0.0,
    hop_s: float = 0.0,
    **of_ops: Any,
) -> Array:
    """Add one op per receiver (``by="receiver"``) or per sender, on ports without shared uplinks.

    Args:
        builder: The program; the fabric's resources must be its first.
        fabric: Resources and routes.
        product: Bytes of each pair.
        name: Name of the ops.
        by: Whether an op stands for a ``receiver`` or a ``sender``.
        factors: The overhead factors of each device.
        land_D: ndarray of shape (D,): resource that received bytes are written to; -1 for none.
        start_s: Latency of the ops, one for all or of shape (D,).
        hop_s: Latency of a hop inside a domain.
        **of_ops: Further arguments of `ProgramBuilder.ops`.

    Returns:
        Numbers of the ops, ndarray of shape (D,).
    """
    tables, count, none = fabric.tables, fabric.num_devices, np.full(fabric.num_devices, -1)
    sends = _Side(
        near_D=tables.near_out_D,
        far_D=tables.far_out_D,
        land_D=none,
        near_factor_D=factors.near_out,
        far_factor_D=factors.far_out,
    )
    takes = _Side(
        near_D=tables.near_in_D,
        far_D=tables.far_in_D,
        land_D=np.asarray(land_D),
        near_factor_D=factors.near_in,
        far_factor_D=factors.far_in,
    )
    own, other, mine, theirs = (
        (takes, sends, product.share_D, product.sent_S)
        if by == "receiver"
        else (sends, takes, product.sent_S, product.share_D)
    )
    near, far = (mine * amount for amount in product.peers(theirs))
    # the own ports of a device are entries
    entries = [
        (resource_D, amount)
        for resource_D, amount in (
            (own.near_D, near * own.near_factor_D),
            (own.far_D, far * own.far_factor_D),
            (own.land_D, near + far),
        )
        if resource_D[0] >= 0
    ]
    entries.sort(key=lambda entry: int(entry[0][0]))
    flows = sum(product.peers(theirs > 0))
    ops = builder.ops(
        name,
        count,
        demands=Demands(
            np.stack([r for r, _ in entries], axis=1), np.stack([a for _, a in entries], axis=1)
        ),
        latency_s=start_s + hop_s * (near > 0),
        bytes_per_flow=(near + far) / np.maximum(flows, 1),
        **of_ops,
    )
    # the other devices' ports are factored
    device, whole, rail = np.arange(count), np.zeros(count, dtype=np.int64), product.rail_D
    domain = product.domain_D
    # on a rail every domain has one device, so the own device is the own domain
    inside, across = (
        (domain, device),
        (rail, device) if product.reach == "rail" else (whole, domain),
    )
    every = {"all": (whole, device), "domain": inside, "rail": across}[product.reach]
    for resource_D, factor_D, joined, any_D in (
        (other.near_D, other.near_factor_D, inside, near),
        (other.far_D, other.far_factor_D, across, far),
        (other.land_D, 1.0, every, near + far),
    ):
        if resource_D[0] >= 0 and any_D.any():
            outer, inner = joined
            builder.factored(
                Factored(
                    ops_I=ops,
                    resources_J=resource_D,
                    row_I=mine,
                    column_J=theirs * factor_D,
                    outer_I=outer,
                    outer_J=outer,
                    inner_I=inner,
                    inner_J=inner,
                )
            )
    return ops
