"""Transfers between devices: what a byte costs a port beyond its share of the datasheet, and what an exchange waits.

The all-to-all is NCCL's (one kernel, point-to-point sends to every peer). Two regimes, both fitted to NCCL alltoall
(calibration ``nccl-alltoall``): a bandwidth regime, start + effective bytes over the achieved port rate, where short
buffers do not reach the rate (``ramp``); and a protocol regime for small buffers, start + bytes per peer over the
low-latency protocol's rate, up to a ceiling. The time is their p-norm, a smooth maximum.
"""

from dataclasses import dataclass

import numpy as np

from moesim.costs.calibration import Calibration, load_calibration
from moesim.topology import Cluster
from moesim.units import GB, KB, US

Array = np.ndarray
_NORM = 8.0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Transfers:
    """All-to-all prices on one cluster."""

    link_bytes_per_s: float
    num_devices: int
    calibration: Calibration

    def demand_factor(self, remote_bytes: Array | float) -> Array:
        """Bytes a port is busy for, over the bytes it carries.

        Args:
            remote_bytes: Bytes the port carries in this exchange, all peers together.

        Returns:
            ``(1 + ramp / (w + knee)) / efficiency``, >= 1: the ramp is the fill of a pipeline whose depth grows with
            the buffer until it is constant; the efficiency counts protocol headers and falls with few peers.
        """
        c, peers = self.calibration, max(self.num_devices - 1, 1)
        efficiency = c["port_efficiency"] * peers / (peers + c["few_peers"])
        carried = np.asarray(remote_bytes, dtype=np.float64)
        return (1.0 + c["ramp_kb"] * KB / (carried + c["ramp_knee_kb"] * KB)) / efficiency

    def latency_s(self, remote_bytes: Array | float) -> Array:
        """What an exchange takes beyond its port time: the rest of both regimes' p-norm; 1.09 x start for no bytes."""
        c, peers = self.calibration, max(self.num_devices - 1, 1)
        carried = np.asarray(remote_bytes, dtype=np.float64)
        start = c["start_us"] * US
        port = carried * self.demand_factor(carried) / self.link_bytes_per_s
        protocol = np.minimum(start + carried / peers / (c["protocol_gb_per_s"] * GB),
                              max(c["protocol_ceiling_us"] * US, start))
        both = ((start + port) ** _NORM + protocol**_NORM) ** (1.0 / _NORM)
        return both - port

    def exchange_s(self, remote_bytes: Array | float) -> Array:
        """A balanced exchange alone: latency + port time of ``remote_bytes`` per port."""
        port = np.asarray(remote_bytes) * self.demand_factor(remote_bytes) / self.link_bytes_per_s
        return self.latency_s(remote_bytes) + port


def transfers_for(cluster: Cluster) -> Transfers:
    """Transfer prices of a cluster.

    Raises:
        ConfigError: Its calibration file is missing or malformed.
    """
    return Transfers(link_bytes_per_s=cluster.link_bytes_per_s, num_devices=cluster.num_devices,
                     calibration=load_calibration("nccl-alltoall", cluster.profile))
