"""Make a cluster of another size."""

from moesim.errors import ConfigError
from moesim.hardware.cluster import Cluster


def sized(cluster: Cluster, gpus: int | None) -> Cluster:
    """Return a cluster of the same kind with another number of devices.

    Args:
        cluster: The cluster to change.
        gpus: Number of devices, which is part of one node or whole nodes; None leaves the cluster
            unchanged.

    Raises:
        ConfigError: The number is not a whole number of nodes, or needs several nodes of a cluster
            without a network.
    """
    if gpus is None or gpus == cluster.num_devices:
        return cluster
    per_node = cluster.devices_per_domain
    if gpus < 1:
        raise ConfigError(f"gpus: expected a number >= 1, got {gpus}")
    if cluster.is_torus:
        raise ConfigError(
            f"gpus: expected a cluster of other axes, such as torus-4x4x8, since {cluster.name} "
            f"is a torus of {cluster.num_devices}, got {gpus}"
        )
    if len(cluster.groups) > 1:
        raise ConfigError(
            f"gpus: expected the {cluster.num_devices} devices of {cluster.name}, which mixes "
            f"devices, got {gpus}"
        )
    if gpus > per_node and gpus % per_node:
        raise ConfigError(
            f"gpus: expected a multiple of the {per_node} devices of a node of {cluster.name}, or "
            f"fewer, got {gpus}"
        )
    if gpus > per_node and not cluster.has_scale_out:
        raise ConfigError(
            f"gpus: expected at most {per_node}, since {cluster.name} is one node without a "
            f"network (name a cluster of several, such as h100-rail-8x8), got {gpus}"
        )
    if cluster.scale_up_kind is None:
        raise ConfigError(
            f"gpus: expected 1, since {cluster.name} is a device without links, got {gpus}"
        )
    return cluster.with_(num_nodes=max(gpus // per_node, 1), devices_per_node=min(gpus, per_node))
