"""The communication kernel of an exchange on a cluster."""

from dataclasses import dataclass
from typing import Literal

from moesim.costs.calibration import Calibration, load_calibration
from moesim.costs.comm.kernels import comm_kernel
from moesim.costs.comm.wire import Wire
from moesim.costs.comm.work import CommKernel, Direction, Ports, Price, Work
from moesim.errors import ConfigError
from moesim.schedule import DISPATCHES
from moesim.topology import Cluster
from moesim.units import US

_LEVELS = ("none", "spec_sheet", "few_shot", "calibrated")
#: exchange -> calibration files its prices rest on
_FILES = {"nccl": "nccl", "all_gather": "nccl", "deepep_normal": "deepep-normal", "deepep_ll": "deepep-ll",
          "nvl72": "nvl72", "ici": "ici-assumed"}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Pair:
    """Different kernels for the two directions."""

    there: CommKernel
    back: CommKernel
    copies: Literal["per_rank", "per_choice"] = "per_rank"

    @property
    def ports(self) -> Ports:
        return self.there.ports

    @property
    def level(self) -> str:
        return min(self.there.level, self.back.level, key=_LEVELS.index)

    def copy_bytes(self, direction: Direction, hidden_size: int, top_k: int, element_bytes: float) -> float:
        return self._of(direction).copy_bytes(direction, hidden_size, top_k, element_bytes)

    def price(self, direction: Direction, work: Work) -> Price:
        return self._of(direction).price(direction, work)

    def interval(self, direction: Direction) -> tuple[float, float]:
        return self._of(direction).interval(direction)

    def _of(self, direction: Direction) -> CommKernel:
        return self.there if direction == "dispatch" else self.back


def ports_of(cluster: Cluster) -> Ports:
    """A device's side of a cluster's fabric; of a mixed cluster the first device's."""
    return Ports(near_bytes_per_s=cluster.link_bytes_per_s, far_bytes_per_s=cluster.nic_bytes_per_s,
                 num_ranks=cluster.num_devices, ranks_per_domain=cluster.devices_per_domain,
                 num_sms=cluster.profile.num_sms)


def exchange_kernel(cluster: Cluster, dispatch: str | None = None, num_sms: int | None = None) -> CommKernel:
    """The priced kernel of an exchange.

    Args:
        cluster: Where it runs.
        dispatch: One of `moesim.schedule.DISPATCHES`; None: the cluster's own.
        num_sms: SMs of DeepEP's normal mode, where they are not its default.

    Raises:
        UnknownNameError: The cluster file names a kernel that does not exist.
        ConfigError: A calibration file is missing or malformed, a host without a measured all-to-all, or an
            all-gather on a torus.
    """
    name = dispatch or cluster.file.dispatch
    kernel = DISPATCHES[name][0] if name in DISPATCHES else name
    ports = ports_of(cluster)
    if kernel == "ideal":
        return Wire(ports=ports)
    if kernel == "host":
        fabric = cluster.profile.host_fabric
        if fabric is None:
            raise ConfigError(f"dispatch host: {cluster.profile.name} has no measured all-to-all; `moesim measure` "
                              "writes a profile that has")
        return Wire(ports=ports, start_s=fabric.start_s, level="calibrated", spread=fabric.interval)
    if kernel == "ici":
        assumed = _ici(cluster)
        return Wire(ports=ports, efficiency=assumed["link_efficiency"], start_s=assumed["start_us"] * US)
    if kernel == "all_gather":
        if cluster.file.scale_up is not None and cluster.file.scale_up.kind == "torus":
            raise ConfigError(f"dispatch all_gather: {cluster.name} is a torus, which gathers ring by ring; "
                              "that is not modelled: use ici")
        return _Pair(there=comm_kernel("nccl_all_gather", ports, cluster.profile),
                     back=comm_kernel("nccl_reduce_scatter", ports, cluster.profile))
    return comm_kernel(kernel, ports, cluster.profile, num_sms=num_sms)


def is_at_home(cluster: Cluster, dispatch: str | None = None) -> bool:
    """Whether an exchange's kernel belongs on this fabric: one priced elsewhere than it runs rests on nothing.

    NVL72's writes need one NVLink domain, a torus its own links, and GPU kernels no torus.
    """
    kernel = DISPATCHES[dispatch or cluster.file.dispatch][0]
    torus = cluster.file.scale_up is not None and cluster.file.scale_up.kind == "torus"
    if kernel == "nvl72":
        return not torus and cluster.file.num_nodes == 1
    return kernel in ("ideal", "host") or (kernel == "ici") == torus


def exchange_digest(cluster: Cluster, dispatch: str | None = None) -> str:
    """Hash of the calibration file that an exchange's prices rest on; empty for an ideal one."""
    kernel = DISPATCHES[dispatch or cluster.file.dispatch][0]
    return load_calibration(_FILES[kernel], cluster.profile).digest if kernel in _FILES else ""


def _ici(cluster: Cluster) -> Calibration:
    return load_calibration("ici-assumed", cluster.profile)
