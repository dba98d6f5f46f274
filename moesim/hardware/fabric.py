"""Describe a fabric as resources, and the resources between each pair of devices as tables that
`moesim.hardware.routes` walks.

Inside a domain a byte passes the ports of the sender and the receiver (switch), plus two uplinks
between PCIe switches; the link of the pair (mesh); or the links of a route through a torus. Between
domains it passes the NICs of the sender and the receiver, and between oversubscribed leaf switches
also an uplink and a downlink.

Shape legend: D devices, R resources, L nodes of a torus.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from moesim.errors import ConfigError
from moesim.hardware.cluster import Cluster
from moesim.hardware.torus import grid, wraps
from moesim.units import GB

Array = np.ndarray
PORTS, MESH, TORUS = 0, 1, 2
_NO_GRID = np.zeros((1, 1), dtype=np.int64)


class Tables(NamedTuple):
    """The tables from which compiled code finds a route; all are int64, and -1 means that a
    resource does not exist.
    """

    near_kind: int
    single_path: int
    domain_D: Array
    local_D: Array
    near_out_D: Array
    near_in_D: Array
    switch_D: Array
    switch_up: Array
    switch_down: Array
    far_out_D: Array
    far_in_D: Array
    leaf_D: Array
    leaf_up: Array
    leaf_down: Array
    coord_LA: Array
    next_LX: Array
    key_A: Array
    shift_A: Array
    steps_VCA: Array
    ways_V: Array
    orders_OA: Array


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Fabric:
    """Resources of a cluster's fabric, numbered from 0.

    Attributes:
        runs: (name, bytes per second of each resource) of each kind of resource, in the order of
            resource indices.
        tables: The tables of routes.
        num_devices: Number of devices D.
    """

    runs: tuple[tuple[str, Array], ...]
    tables: Tables
    num_devices: int

    @property
    def num_resources(self) -> int:
        """The number of resources R."""
        return sum(len(rates) for _, rates in self.runs)

    @property
    def capacity_R(self) -> Array:
        """The bytes per second of each resource."""
        return np.concatenate([np.zeros(0), *(rates for _, rates in self.runs)])

    def names(self) -> Iterator[str]:
        """Return the name of each resource."""
        return (f"{name}[{i}]" for name, rates in self.runs for i in range(len(rates)))


class _Numbers:
    """A collector of runs of resources that gives each resource its index."""

    def __init__(self) -> None:
        self.runs: list[tuple[str, Array]] = []
        self.count = 0

    def add(self, name: str, rates: Array) -> Array:
        self.runs.append((name, rates))
        self.count += len(rates)
        return np.arange(self.count - len(rates), self.count)


@lru_cache(maxsize=16)
def fabric_of(cluster: Cluster) -> Fabric:
    """Return the fabric of a cluster.

    Raises:
        ConfigError: No fabric joins two of the devices.
    """
    file, count, per_domain = cluster.file, cluster.num_devices, cluster.devices_per_domain
    device = np.arange(count)
    domain, local = device // per_domain, device % per_domain
    none = np.full(count, -1)
    numbers = _Numbers()
    near_D, far_D = _rates(cluster)
    up = file.scale_up
    kind, switch, switch_up, switch_down = PORTS, np.zeros(count, int), none[:1], none[:1]
    near_out, near_in = none, none
    tables = [_NO_GRID, _NO_GRID, _NO_GRID[0], _NO_GRID[0], _NO_GRID[None], _NO_GRID[0], _NO_GRID]
    if up is not None and up.kind == "mesh":
        kind = MESH
        near_out = numbers.add("link", np.repeat(near_D, per_domain))[::per_domain]
    elif up is not None and up.kind == "torus":
        kind = TORUS
        made = grid(
            up.axes,
            wraps(up.axes, up.wrap_multiple_of),
            twisted=up.twisted,
            multi_path=up.routing == "multi_path",
        )
        links = 2 * len(up.axes)
        near_out = numbers.add("link", np.repeat(near_D, links))[::links]
        tables = [
            made.coord_LA,
            made.next_LX,
            made.key_A,
            made.shift_A,
            made.steps_VCA,
            made.ways_V,
            made.orders_OA,
        ]
    elif per_domain > 1:
        near_out, near_in = numbers.add("egress", near_D), numbers.add("ingress", near_D)
        if up is not None and up.devices_per_switch is not None and up.uplink_gb_per_s is not None:
            switch = device // up.devices_per_switch
            rate = np.full(int(switch.max()) + 1, up.uplink_gb_per_s.value * GB)
            switch_up, switch_down = (
                numbers.add("switch_up", rate),
                numbers.add("switch_down", rate),
            )
    far_out, far_in, leaf, leaf_up, leaf_down = none, none, np.zeros(count, int), none[:1], none[:1]
    out = file.scale_out
    if file.num_nodes > 1:
        if out is None:
            raise ConfigError(
                f"{cluster.name}: nothing joins device 0 and device {per_domain}: [scale_out] is "
                "missing"
            )
        far_out, far_in = numbers.add("nic_out", far_D), numbers.add("nic_in", far_D)
        leaf = local if out.kind == "rail" else domain // out.nodes_per_leaf
        if out.oversubscription > 1:
            rate = np.bincount(leaf, far_D) / out.oversubscription
            leaf_up, leaf_down = numbers.add("leaf_up", rate), numbers.add("leaf_down", rate)
    columns = (
        domain,
        local,
        near_out,
        near_in,
        switch,
        switch_up,
        switch_down,
        far_out,
        far_in,
        leaf,
        leaf_up,
        leaf_down,
        *tables,
    )
    single_path = int(up is not None and up.routing == "single_path")
    arrays = (np.ascontiguousarray(column, dtype=np.int64) for column in columns)
    return Fabric(
        runs=tuple(numbers.runs), num_devices=count, tables=Tables(kind, single_path, *arrays)
    )


def relative_rates(cluster: Cluster) -> tuple[Array, Array]:
    """Return the rates of each device's scale-up port and of its NIC over those that the cluster
    states for all, `Cluster.link_bytes_per_s` and `Cluster.nic_bytes_per_s`: two ndarrays of shape
    (D,), all 1 unless groups of a mixed cluster have rates of their own.
    """
    file, ones = cluster.file, np.ones(cluster.num_devices)
    near_D, far_D = _rates(cluster)
    return (
        near_D / (file.scale_up.link_gb_per_s.value * GB) if file.scale_up else ones,
        far_D / (file.scale_out.nic_gb_per_s.value * GB) if file.scale_out else ones,
    )


def _rates(cluster: Cluster) -> tuple[Array, Array]:
    """Return (scale-up rate of a link, NIC rate) of each device in bytes per second; the groups of
    a mixed cluster may differ.
    """
    file = cluster.file
    near = file.scale_up.link_gb_per_s.value if file.scale_up else 0.0
    far = file.scale_out.nic_gb_per_s.value if file.scale_out else 0.0
    if not file.groups:
        return np.full(cluster.num_devices, near * GB), np.full(cluster.num_devices, far * GB)
    sizes = [group.num_nodes * file.devices_per_node for group in file.groups]
    return (
        np.repeat(
            [GB * (g.link_gb_per_s.value if g.link_gb_per_s else near) for g in file.groups], sizes
        ),
        np.repeat(
            [GB * (g.nic_gb_per_s.value if g.nic_gb_per_s else far) for g in file.groups], sizes
        ),
    )
