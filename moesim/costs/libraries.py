"""Say whose kernels a cluster's GPUs run: the calibration that prices them."""

from dataclasses import replace

from moesim.costs.calibration import load_calibration
from moesim.hardware import Cluster

#: library of this project's Triton kernels
OWN_KERNELS = "moesim-triton"


def running(cluster: Cluster, library: str = OWN_KERNELS) -> Cluster:
    """Return the cluster with the kernels of another library on its GPUs.

    Args:
        cluster: The cluster; devices that are no GPUs keep their prices.
        library: Name of the library's calibration, such as ``triton-moe`` (sglang's fused MoE, what
            clusters run by default) or ``moesim-triton``.

    Raises:
        UnknownNameError: There is no calibration of this name.
    """
    groups = tuple(
        (replace(profile, calibration=library) if profile.execution == "waves" else profile, count)
        for profile, count in cluster.groups
    )
    for profile, _ in groups:
        if profile.calibration == library:
            load_calibration(library, profile)
    return replace(cluster, groups=groups)
