"""Make a cluster of another size."""

from math import prod

from moesim.errors import ConfigError
from moesim.hardware.cluster import Cluster
from moesim.hardware.loading import linked_devices


def sized(cluster: Cluster, gpus: int | None) -> Cluster:
    """Return a cluster of the same kind with another number of devices.

    Args:
        cluster: The cluster to change.
        gpus: Number of devices, which is part of one node or whole nodes; of a torus a power of
            two times or one of its own number, whose axes are doubled from the shortest or halved
            from the longest, as slices are offered (2x4 of 4x4). None leaves the cluster unchanged.

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
        return _slice(cluster, gpus)
    if len(cluster.groups) > 1:
        raise ConfigError(
            f"gpus: expected the {cluster.num_devices} devices of {cluster.name}, which mixes "
            f"devices, got {gpus}"
        )
    if gpus > per_node and gpus % per_node and cluster.scale_up_kind is not None:
        raise ConfigError(
            f"gpus: expected a multiple of the {per_node} devices of a node of {cluster.name}, or "
            f"fewer, got {gpus}"
        )
    if cluster.scale_up_kind is None and cluster.num_nodes == 1:
        # a device alone
        return linked_devices(cluster.profile, gpus)
    if gpus > per_node and not cluster.has_scale_out:
        raise ConfigError(
            f"gpus: expected at most {per_node}, since {cluster.name} is one node without a "
            f"network (name a cluster of several, such as h100-rail-8x8), got {gpus}"
        )
    return cluster.with_(num_nodes=max(gpus // per_node, 1), devices_per_node=min(gpus, per_node))


def _slice(cluster: Cluster, gpus: int) -> Cluster:
    """Return a smaller or larger torus."""
    scale_up = cluster.file.scale_up
    assert scale_up is not None, "a torus has links"
    axes = list(scale_up.axes or ())
    while prod(axes) > gpus and max(axes) % 2 == 0:
        # the last of the longest, so that 4x4 becomes 4x2 and is written 2x4
        axes[axes.index(max(axes))] //= 2
    while prod(axes) < gpus:
        axes[axes.index(min(axes))] *= 2
    if prod(axes) != gpus or scale_up.twisted:
        kind = "twisted torus" if scale_up.twisted else "torus"
        raise ConfigError(
            f"gpus: expected a power of two times {cluster.num_devices}, or that divided by one, "
            f"since {cluster.name} is a {kind} of {'x'.join(map(str, scale_up.axes or ()))} "
            f"(or cluster.with_(axes=[...]{', twisted=False' * scale_up.twisted}) in Python, "
            f"axes = [...] in a file), got {gpus}"
        )
    return cluster.with_(axes=sorted(axes))
