"""Clusters: devices, fabrics, and the resources a byte passes between two devices."""

from moesim.topology.cluster import Cluster, check_devices, load_cluster, ranks_of_host, single_device
from moesim.topology.files import ClusterFile

__all__ = ["Cluster", "ClusterFile", "check_devices", "load_cluster", "ranks_of_host", "single_device"]
