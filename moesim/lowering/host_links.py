"""Add the links between devices and their host to a program, and copies of weights on them.

Copies of one device follow one another. Where devices share a PCIe switch, they also share its link
to the host. The memory of the host is assumed to be faster than the links, and the links to carry
nothing else: traffic of NICs on the same PCIe lanes is not counted.

Shape legend: D devices.
"""

from dataclasses import dataclass

import numpy as np

from moesim.errors import ConfigError
from moesim.hardware import Cluster
from moesim.lowering.devices import Devices
from moesim.program.builder import Demands

Array = np.ndarray
#: share of a link's data-sheet rate that large copies from pinned memory reach: 55.6 of 64 GB/s on
#: an H100 (the sample output in the README of NVIDIA/nvbandwidth)
EFFICIENCY = 0.87


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class HostLinks:
    """The resources ``host`` of D devices in a program, and ``host_switch`` where they are shared.

    Attributes:
        devices: The devices in the program.
        links_DM: ndarray of shape (D, M): the resources that a copy to each device demands, its
            memory last.
        start_s_D: Seconds before a copy moves bytes: one launch by the host.
    """

    devices: Devices
    links_DM: Array
    start_s_D: Array

    @classmethod
    def of(cls, cluster: Cluster, devices: Devices) -> "HostLinks":
        """Add the links of a cluster to the program of its devices.

        Raises:
            ConfigError: The profile of a device does not state the rate of its link.
        """
        rates, starts = [], []
        for profile, count in cluster.groups:
            if profile.host_link_bytes_per_s is None:
                raise ConfigError(
                    f"offload: {profile.name}: expected a device whose profile states "
                    "host_link_gb_per_s, got none"
                )
            rates += [profile.host_link_bytes_per_s] * count
            starts += [profile.host_launch_s or profile.kernel_launch_s] * count
        columns = [devices.builder.resources("host", rates)]
        uplink, sharing = cluster.bridge
        if uplink:
            switches = -(-cluster.num_devices // sharing)
            shared = devices.builder.resources("host_switch", [uplink] * switches)
            columns.append(shared[np.arange(cluster.num_devices) // sharing])
        columns.append(devices.hbm_D)
        return cls(devices=devices, links_DM=np.stack(columns, axis=1), start_s_D=np.array(starts))

    def copy(self, name: str, bytes_D: Array, after: Array, tag: str) -> Array:
        """Add a copy from the host to every device; a device without bytes only waits.

        Args:
            name: Name of the phase and its ops.
            bytes_D: ndarray of shape (D,): bytes to each device.
            after: ndarray of shape (D, M): numbers of the ops that each copy waits for.
            tag: Suffix of the ops' names.

        Returns:
            ndarray of shape (D,): numbers of the ops.
        """
        amounts_DM = np.repeat(bytes_D[:, None] / EFFICIENCY, self.links_DM.shape[1], axis=1)
        amounts_DM[:, -1] = bytes_D
        return self.devices.builder.ops(
            name + tag,
            len(bytes_D),
            demands=Demands(self.links_DM, amounts_DM),
            latency_s=np.where(bytes_D > 0, self.start_s_D, 0.0),
            after=after,
            phase=name,
        )
