"""Send bytes between devices behind different PCIe switches through the host's memory.

Devices of one PCIe switch write into each other's memory. Between switches, where no NVLink joins
devices, NCCL copies through the memory of the host: the sender's kernel writes there, the
receiver's reads. The link of a switch to the host carries the writes up and the reads down. In an
all-to-all all devices of a switch share it, each with its share of peers elsewhere, and the copies
of some peers are read while those of others are written. A ring has one stream between two
switches, which is written and then read.

Nothing here is fitted: the rates are those of the spec sheet, with NVLink's port efficiency. Which
path a server takes depends on its virtual machine, access control of PCIe, sockets and root ports,
which no spec sheet names. Hence a price here rests on no measurement (level ``none``), and its
interval reaches from no host at all to all devices behind one link. Scored, never fitted, against
rows of 64 KiB and more on servers that the rows do not name: 2 L40S 15 % too long, 4 and 8 L40S
about 80 % too short in the largest exchanges; RTX PRO 6000 within 35 % there.

Sources of the paths: NCCL's documentation of NCCL_P2P_LEVEL and NCCL_SHM_DISABLE; Hu et al. 2025,
arXiv 2507.04786.
"""

import numpy as np

from moesim.costs.comm.work import Array, Ports

#: times that the bytes of a ring cross the host one after the other: written, then read
_IN_TURN = 2.0


def host_seconds(port_seconds: Array, ports: Ports, *, ring: bool) -> Array:
    """Return the seconds that bytes to other switches take through the host, 0 without any.

    Args:
        port_seconds: Seconds of the device's own port for all its bytes.
        ports: The device's side of the fabric.
        ring: Whether devices send to the next one only.
    """
    return port_seconds * _slower(ports, _crossing(ports, ring=ring))


def host_interval(ports: Ports, *, ring: bool) -> tuple[Array, Array]:
    """Return the factors of an exchange's time if it needs no host, and if all its devices are
    behind one link to the host: <= 1 and >= 1, both 1 without a bridge; ndarrays with one
    entry per number of ranks.
    """
    if not ports.bridge_bytes_per_s:
        return np.ones(1), np.ones(1)
    assumed = np.maximum(np.atleast_1d(_slower(ports, _crossing(ports, ring=ring))), 1.0)
    return 1.0 / assumed, np.maximum(_slower(ports, _IN_TURN * ports.num_ranks) / assumed, 1.0)


def _crossing(ports: Ports, *, ring: bool) -> Array:
    """Return how many devices' bytes a link to the host carries one after the other."""
    ranks, own = np.asarray(ports.num_ranks, dtype=np.float64), ports.ranks_per_bridge
    spans = ranks > own
    elsewhere = own * (ranks - own) / np.maximum(ranks - 1.0, 1.0)
    return np.where(spans, _IN_TURN if ring else elsewhere, 0.0)


def _slower(ports: Ports, devices: Array | float) -> Array:
    """Return the seconds of the link to the host over those of a port."""
    if not ports.bridge_bytes_per_s:
        return np.zeros(1)
    return np.asarray(devices) * ports.near_bytes_per_s / ports.bridge_bytes_per_s
