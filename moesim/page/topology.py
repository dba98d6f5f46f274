"""Lay devices and links of a cluster out on a plane, with what each carries."""

import math
from collections.abc import Sequence

import numpy as np

from moesim.hardware import Cluster
from moesim.hardware.fabric import fabric_of
from moesim.page.charts import MapChart

Link = tuple[float, float, float, float, float]
#: devices that are drawn at most
MOST_DEVICES = 512
#: where links end that are drawn as stubs: to the right and down, by axis from the last one
_STUBS = ((0.4, 0.0), (0.0, 0.4), (0.28, -0.28))
#: classes of load that links are drawn by
_CLASSES = 5
_NOTE = (
    "A circle is a device, colored by the rows its experts compute over the mean of all devices; a "
    "pointer on it shows which experts it holds. A line is a link, colored by the share of the "
    "layer's time in which it moves bytes; of the two directions the busier one counts."
)
_TORUS_NOTE = (
    " A short line is a link around a ring or, where it is slanted, to the next plane of the torus."
)


def topology_chart(
    cluster: Cluster, busy: dict[str, np.ndarray], ratio_D: np.ndarray, experts_D: Sequence[str]
) -> MapChart | None:
    """Return the devices of a cluster with their links by load.

    Args:
        cluster: The hardware.
        busy: Kind of resource -> share of the time in which each one is busy.
        ratio_D: ndarray of shape (D,): rows of each device over the mean.
        experts_D: The experts of each device, in words.

    Returns:
        The chart; None for one device, for too many to draw, and for several tori.
    """
    count = cluster.num_devices
    if not 1 < count <= MOST_DEVICES or (cluster.is_torus and cluster.num_nodes > 1):
        return None
    place_D, nodes, links = _torus(cluster, busy) if cluster.is_torus else _switched(cluster, busy)
    devices = {
        f"device {device}": (*place_D[device], float(ratio_D[device])) for device in range(count)
    }
    return MapChart(
        key="topology",
        title=f"Devices and links of {cluster.name}, by load",
        note=_NOTE + (_TORUS_NOTE if cluster.is_torus else ""),
        nodes=devices | nodes,
        links=links,
        about=dict(zip(devices, experts_D, strict=True)),
        edges=_edges([link[4] for link in links]),
        label="rows over the mean",
        load_label="busy share of the layer's time (%)",
    )


def _edges(loads: list[float]) -> tuple[float, ...]:
    """Return the upper ends of at most `_CLASSES` classes of load of equal width, rounded up."""
    least, most = min(loads), max(loads)
    if most - least <= 0.02 * most:
        return (math.ceil(10 * most) / 10,)
    return tuple(math.ceil(10 * most * (i + 1) / _CLASSES) / 10 for i in range(_CLASSES))


def _switched(
    cluster: Cluster, busy: dict[str, np.ndarray]
) -> tuple[list[tuple[float, float]], dict[str, tuple[float, float, float | None]], list[Link]]:
    """Lay nodes out in rows, each with its devices below its switch, or around a mesh."""
    per_node, count = cluster.devices_per_domain, cluster.num_devices
    nodes = cluster.num_nodes
    # beyond four nodes there are two rows, with the network between them
    across = nodes if nodes <= 4 else -(-nodes // 2)
    wide = min(per_node, 16)
    far = _worse(busy, "nic_out", "nic_in", count)
    near = _worse(busy, "egress", "ingress", count)
    place_D: list[tuple[float, float]] = []
    others: dict[str, tuple[float, float, float | None]] = {}
    links: list[Link] = []
    mesh = cluster.scale_up_kind == "mesh"
    spine = ((across * (wide + 2) - 3) / 2, 2.2)
    for node in range(nodes):
        left = (node % across) * (wide + 2)
        # the upper row has its devices above its switches
        upper = nodes > 4 and node < across
        top, way = (3.8, 1.0) if upper else (0.0, -1.0)
        centre = (left + (wide - 1) / 2, top - 0.6 * way)
        own = range(node * per_node, (node + 1) * per_node)
        for place in range(per_node):
            if mesh:
                angle = 2 * math.pi * place / per_node
                radius = (wide - 1) / 2
                place_D.append(
                    (centre[0] + radius * math.cos(angle), top + way + math.sin(angle) * 1.4)
                )
            else:
                place_D.append((left + place % wide, top + way * (1.0 + place // wide)))
        if mesh:
            link = busy.get("link", np.zeros(0))
            for i in own:
                for j in own:
                    if i < j:
                        a, b = i * per_node + j % per_node, j * per_node + i % per_node
                        load = max(link[a], link[b]) if len(link) else 0.0
                        links.append((*place_D[i], *place_D[j], 100 * float(load)))
        elif per_node > 1:
            others[f"switch of node {node}"] = (*centre, None)
            links += [(*place_D[d], *centre, 100 * float(near[d])) for d in own]
        if nodes > 1:
            # a node's NICs as one line, as busy as its busiest
            share = 100 * float(far[own.start : own.stop].max())
            links.append((*centre, *spine, share))
    if nodes > 1:
        others["network between nodes"] = (*spine, None)
    return place_D, others, links


def _torus(
    cluster: Cluster, busy: dict[str, np.ndarray]
) -> tuple[list[tuple[float, float]], dict[str, tuple[float, float, float | None]], list[Link]]:
    """Lay the planes of a torus out side by side; wraps are stubs at the edges."""
    tables = fabric_of(cluster).tables
    coord_LA, next_LX = tables.coord_LA, tables.next_LX
    axes = coord_LA.shape[1]
    size = coord_LA.max(axis=0) + 1
    link = busy.get("link", np.zeros(0))
    place_D: list[tuple[float, float]] = []
    planes = int(size[0]) if axes == 3 else 1
    across = math.ceil(math.sqrt(planes))
    for coords in coord_LA:
        if axes == 1:
            place_D.append((float(coords[0]), 0.0))
            continue
        plane = int(coords[0]) if axes == 3 else 0
        down, right = (int(c) for c in coords[-2:])
        place_D.append(
            (
                right + (plane % across) * (float(size[-1]) + 1.5),
                -down - (plane // across) * (float(size[-2]) + 1.5),
            )
        )
    links: list[Link] = []
    for node, (x, y) in enumerate(place_D):
        for way in range(0, 2 * axes, 2):
            other = int(next_LX[node, way])
            if other < 0:
                continue
            back = other * 2 * axes + way + 1
            loads = link[[node * 2 * axes + way, back]] if len(link) else np.zeros(2)
            there = place_D[other]
            if abs(there[0] - x) + abs(there[1] - y) > 1.01:
                # a stub: around the ring to the right or down, slanted to the next plane
                across_by, down_by = _STUBS[axes - 1 - way // 2]
                there = (x + across_by, y - down_by)
            links.append((x, y, *there, 100 * float(loads.max())))
    return place_D, {}, links


def _worse(busy: dict[str, np.ndarray], one: str, other: str, count: int) -> np.ndarray:
    none = np.zeros(count)
    return np.maximum(busy.get(one, none), busy.get(other, none))
