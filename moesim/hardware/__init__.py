"""Hardware consists of devices, the clusters and fabrics that join them, exchanges, prices and
power.
"""

from moesim.hardware.cluster import Cluster, check_devices
from moesim.hardware.cluster_file import ClusterFile
from moesim.hardware.loading import load_cluster, ranks_of_host, single_device
from moesim.hardware.profile import HostFabric, Profile, load_profile

__all__ = [
    "Cluster",
    "ClusterFile",
    "HostFabric",
    "Profile",
    "check_devices",
    "load_cluster",
    "load_profile",
    "ranks_of_host",
    "single_device",
]
