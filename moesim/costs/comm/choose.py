"""Make the communication kernel of an exchange on a cluster."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from moesim.costs.calibration import load_calibration, weakest
from moesim.costs.comm.kernels import NAMES, comm_kernel
from moesim.costs.comm.wire import Wire
from moesim.costs.comm.work import CommKernel, Direction, Ports, Price, Work
from moesim.errors import ConfigError, UnknownNameError
from moesim.hardware import Cluster
from moesim.hardware.exchanges import Exchange
from moesim.units import US


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Pair:
    """A pair of kernels, one for each direction."""

    there: CommKernel
    back: CommKernel
    copies: Literal["per_rank", "per_choice"] = "per_rank"

    @property
    def ports(self) -> Ports:
        return self.there.ports

    @property
    def level(self) -> str:
        return weakest([self.there.level, self.back.level])

    def copy_bytes(
        self, direction: Direction, hidden_size: int, top_k: int, element_bytes: float
    ) -> float:
        return self._of(direction).copy_bytes(direction, hidden_size, top_k, element_bytes)

    def price(self, direction: Direction, work: Work) -> Price:
        return self._of(direction).price(direction, work)

    def interval(self, direction: Direction) -> tuple[float, float]:
        return self._of(direction).interval(direction)

    def _of(self, direction: Direction) -> CommKernel:
        return self.there if direction == "dispatch" else self.back


def ports_of(cluster: Cluster) -> Ports:
    """Return a device's side of a cluster's fabric; on a mixed cluster the first device's."""
    return Ports(
        near_bytes_per_s=cluster.link_bytes_per_s,
        far_bytes_per_s=cluster.nic_bytes_per_s,
        num_ranks=cluster.num_devices,
        ranks_per_domain=cluster.devices_per_domain,
        num_sms=cluster.profile.num_sms,
        memory_bytes_per_s=cluster.profile.hbm_bandwidth_bytes_per_s,
        bridge_bytes_per_s=cluster.bridge[0],
        ranks_per_bridge=cluster.bridge[1],
    )


def _ideal(cluster: Cluster, num_sms: int | None) -> CommKernel:
    return Wire(ports=ports_of(cluster))


def _host(cluster: Cluster, num_sms: int | None) -> CommKernel:
    fabric = cluster.profile.host_fabric
    if fabric is None:
        raise ConfigError(
            f"exchange host: {cluster.profile.name} has no measured all-to-all; `moesim measure` "
            "writes a profile that has"
        )
    return Wire(
        ports=ports_of(cluster), start_s=fabric.start_s, level="calibrated", spread=fabric.interval
    )


def _ici(cluster: Cluster, num_sms: int | None) -> CommKernel:
    assumed = load_calibration("ici-assumed", cluster.profile)
    return Wire(
        ports=ports_of(cluster),
        efficiency=assumed["link_efficiency"],
        start_s=assumed["start_us"] * US,
    )


def _all_gather(cluster: Cluster, num_sms: int | None) -> CommKernel:
    if cluster.is_torus:
        raise ConfigError(
            f"exchange all_gather: {cluster.name} is a torus, which gathers ring by ring; that is "
            "not modelled: use ici"
        )
    ports = ports_of(cluster)
    return _Pair(
        there=comm_kernel("nccl_all_gather", ports, cluster.profile),
        back=comm_kernel("nccl_reduce_scatter", ports, cluster.profile),
    )


def _calibrated(name: str) -> Callable[[Cluster, int | None], CommKernel]:
    return lambda cluster, num_sms: comm_kernel(
        name, ports_of(cluster), cluster.profile, num_sms=num_sms
    )


#: kernel that an exchange names -> function that makes it on a cluster
KERNELS: dict[str, Callable[[Cluster, int | None], CommKernel]] = {
    "ideal": _ideal,
    "host": _host,
    "ici": _ici,
    "all_gather": _all_gather,
    **{name: _calibrated(name) for name in NAMES},
}


def exchange_kernel(cluster: Cluster, exchange: Exchange, num_sms: int | None = None) -> CommKernel:
    """Return the priced kernel of an exchange on a cluster.

    Args:
        cluster: The hardware it runs on.
        exchange: The exchange, see `Cluster.exchange`.
        num_sms: SMs of DeepEP's normal mode; None for its default.

    Raises:
        ConfigError: A calibration file is missing or malformed, a host has no measured all-to-all,
            the exchange is an all-gather on a torus, or the kernel does not exist.
    """
    make = exchange.kernel
    if isinstance(make, str):
        if make not in KERNELS:
            raise UnknownNameError(f"kernel of exchange {exchange.name}", make, KERNELS)
        make = KERNELS[make]
    return make(cluster, num_sms)


def exchange_digest(cluster: Cluster, exchange: Exchange) -> str:
    """Return the hash of the calibration file that an exchange's prices rest on; empty for none."""
    return (
        load_calibration(exchange.calibration, cluster.profile).digest
        if exchange.calibration
        else ""
    )
