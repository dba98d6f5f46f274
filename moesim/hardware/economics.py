"""Model the power and the price of a cluster, simply enough to edit.

The power of a device is its rated power times the sum of an idle share and, for compute, memory and
scale-up links each, a share times the mean utilization. The shares sum to 1, so that a fully busy
device draws its rated power. NICs are added; every device of a mixed cluster counts at the mean
utilization. The same shares, and those of the price, give the power and price of a device with
other numbers: twice the memory bandwidth makes the memory's share of power and price twice as
large.

Rated power comes from the device profile; everything else comes from
``hw_profiles/economics/default.toml`` or a file of the user. Every number there is an assumption
with its source; results name the file in the column ``cost_model``.

Shape legend: times and utilizations may be arrays over many candidates on one cluster.
"""

import hashlib
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from pydantic import Field, model_validator

from moesim.errors import ConfigError
from moesim.files import toml
from moesim.files.texts import read_text
from moesim.files.toml import Quantity, Sourced, Strict
from moesim.hardware.cluster import Cluster
from moesim.hardware.profile import Profile
from moesim.hardware.what_if import DEVICE_KEYS

#: columns that `priced` adds; empty for a device whose power or price is not stated
PRICED = (
    "layer_joules_per_token",
    "layer_usd_per_million_tokens",
    "watts_per_device",
    "wall_watts_per_device",
    "usd_per_hour",
    "cost_model",
)
#: number of a device -> (part of power and price that it changes, share of that part in proportion
#: to it)
_PART_OF = {
    "num_sms": ("compute", 1.0),
    "bf16_tflops": ("compute", 1.0),
    "l2_mib": ("compute", 0.1),
    "hbm_gb_per_s": ("memory_bandwidth", 1.0),
    "hbm_gib": ("memory_capacity", 1.0),
    # How kernels are launched changes neither.
    "host_launch_us": ("compute", 0.0),
    # The parts are those of the device; its link to the host is counted with none.
    "host_link_gb_per_s": ("links", 0.0),
}
assert set(_PART_OF) == set(DEVICE_KEYS)


class PowerShares(Strict):
    """Shares of the power or price of a device: fixed, compute, memory bandwidth, memory capacity
    and scale-up links. They sum to 1.
    """

    fixed: float = Field(ge=0, le=1)
    compute: float = Field(ge=0, le=1)
    memory_bandwidth: float = Field(ge=0, le=1)
    memory_capacity: float = Field(ge=0, le=1)
    links: float = Field(ge=0, le=1)

    @model_validator(mode="after")
    def _whole(self) -> "PowerShares":
        total = (
            self.fixed + self.compute + self.memory_bandwidth + self.memory_capacity + self.links
        )
        if abs(total - 1.0) > 1e-9:
            raise ValueError(f"@links@shares that sum to 1@{total:g}")
        return self


class _Power(Strict):
    shares: PowerShares
    nic_watt: Quantity
    host_factor: Quantity
    pue: Quantity
    #: rated power of devices whose profile does not state it
    device_watt: dict[str, Quantity] = {}


class _Price(Strict):
    shares: PowerShares
    nic_usd_per_hour: Quantity
    #: price of one device for an hour, including its share of host, network and power
    usd_per_device_hour: dict[str, Quantity]


class EconomicsFile(Sourced):
    """The content of ``hw_profiles/economics/NAME.toml``: a cost and power model."""

    title: str
    power: _Power
    price: _Price


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Economics:
    """A cost and power model.

    Attributes:
        name: Name of the file.
        file: The content of the file.
        digest: The first 12 hex digits of the SHA-256 of the file.
    """

    name: str
    file: EconomicsFile
    digest: str

    def unknown_price(self, cluster: Cluster) -> str | None:
        """Say which price is missing and where to write it; None if no price is missing."""
        known = self.file.price.usd_per_device_hour
        missing = [profile.name for profile, _ in cluster.groups if profile.name not in known]
        return (
            f"price.usd_per_device_hour: expected a price of {missing[0]}, got none"
            if missing
            else None
        )

    def unknown_power(self, cluster: Cluster) -> str | None:
        """Say which rated power is missing and where to write it; None if none is missing."""
        missing = [profile.name for profile, _ in cluster.groups if self._rated_w(profile) is None]
        return (
            f"power.device_watt: expected the rated power of {missing[0]}, whose profile states "
            "none, got none"
            if missing
            else None
        )

    def _rated_w(self, profile: Profile) -> float | None:
        stated = self.file.power.device_watt.get(profile.name)
        return profile.power_w or (stated.value if stated else None)

    def _require(self, missing: str | None) -> None:
        if missing is not None:
            raise ConfigError(
                f"economics {self.name}: {missing}; write a file that has it and name it as "
                "economics"
            )

    def usd_per_hour(self, cluster: Cluster) -> float:
        """Return the price of an hour of the whole cluster.

        Raises:
            ConfigError: The file has no price for a device.
        """
        self._require(self.unknown_price(cluster))
        prices, shares = self.file.price, self.file.price.shares
        total = 0.0
        for profile, count in cluster.groups:
            total += (
                count
                * prices.usd_per_device_hour[profile.name].value
                * _scaled(shares, cluster, profile)
            )
        nics = (
            cluster.num_devices * prices.nic_usd_per_hour.value if cluster.nic_bytes_per_s else 0.0
        )
        return total + nics * _growth(cluster, "nic_gb_per_s")

    def nodes_for_price(self, cluster: Cluster, usd_per_hour: float) -> int:
        """Return how many nodes of a cluster come nearest to a price.

        Args:
            cluster: A cluster of equal nodes.
            usd_per_hour: The price of an hour of all nodes.

        Raises:
            ConfigError: The file has no price for a device.
        """
        return round(usd_per_hour / self.usd_per_hour(cluster) * cluster.num_nodes)

    @property
    def wall_factor(self) -> float:
        """The power that a data center draws over that of devices and NICs: hosts, fans and power
        supplies, times the power usage effectiveness of the building.
        """
        return self.file.power.host_factor.value * self.file.power.pue.value

    def assumptions(self, cluster: Cluster) -> str:
        """Return what an hour costs and what power includes, as one phrase; what is unknown is
        left out.
        """
        said = [f"energy at the wall ({self.wall_factor:.2f} x the devices)"]
        if self.unknown_power(cluster) is not None:
            said = []
        if self.unknown_price(cluster) is None:
            said.insert(0, f"USD {self.usd_per_hour(cluster):,.2f} an hour")
        return f"{' and '.join(said)} by economics {self.name}" if said else ""

    def watts(self, cluster: Cluster, utilisation: dict[str, Any]) -> Any:
        """Return the mean power that the whole cluster draws at the wall while it runs, hosts and
        cooling included (`wall_factor`).

        Args:
            cluster: The cluster that runs.
            utilisation: The mean utilization of each kind of resource, see
                `moesim.simulation.result.Result.mean_utilisation`.

        Raises:
            ConfigError: The rated power of a device is unknown.
        """
        self._require(self.unknown_power(cluster))
        power = self.file.power
        compute, memory = utilisation.get("sm", 0.0), utilisation.get("hbm", 0.0)
        links = _mean(
            [utilisation[kind] for kind in ("egress", "ingress", "link") if kind in utilisation]
        )
        nics = _mean([utilisation[kind] for kind in ("nic_out", "nic_in") if kind in utilisation])
        shares = power.shares
        total: Any = 0.0
        for profile, count in cluster.groups:
            rated = self._rated_w(profile) or 0.0
            sizes = _sizes(cluster, profile)
            idle = shares.fixed + shares.memory_capacity * sizes["memory_capacity"]
            busy = (
                shares.compute * sizes["compute"] * compute
                + shares.links * sizes["links"] * links
                + shares.memory_bandwidth * sizes["memory_bandwidth"] * memory
            )
            total = total + count * rated * (idle + busy)
        if cluster.nic_bytes_per_s:
            total = (
                total
                + cluster.num_devices
                * power.nic_watt.value
                * _growth(cluster, "nic_gb_per_s")
                * nics
            )
        return total * self.wall_factor


def _mean(values: list) -> Any:
    return sum(values) / len(values) if values else 0.0


def _growth(cluster: Cluster, key: str) -> float:
    """Return a link rate of a changed cluster over that of the original cluster."""
    return cluster.growth.get(key, 1.0)


def _sizes(cluster: Cluster, profile: Profile) -> dict[str, float]:
    """Return the size of each part of a changed device relative to the existing device."""
    grown = {"compute": 1.0, "memory_bandwidth": 1.0, "memory_capacity": 1.0}
    for key, factor in profile.growth.items():
        part, weight = _PART_OF[key]
        grown[part] *= 1.0 + weight * (factor - 1.0)
    return grown | {"links": _growth(cluster, "link_gb_per_s")}


def _scaled(shares: PowerShares, cluster: Cluster, profile: Profile) -> float:
    sizes = _sizes(cluster, profile)
    return (
        shares.fixed
        + shares.compute * sizes["compute"]
        + shares.memory_bandwidth * sizes["memory_bandwidth"]
        + shares.memory_capacity * sizes["memory_capacity"]
        + shares.links * sizes["links"]
    )


@lru_cache(maxsize=16)
def _load(path: str, modified_ns: int) -> Economics:
    file = toml.Path(path)
    text = read_text(file)
    return Economics(
        name=file.stem,
        file=toml.parse(text, EconomicsFile, file.name),
        digest=hashlib.sha256(text.encode()).hexdigest()[:12],
    )


def load_economics(name: str = "default") -> Economics:
    """Load a cost and power model by name or path.

    Raises:
        ConfigError: The file does not exist or is malformed.
    """
    path = toml.find("economics", name)
    return _load(str(path), toml.modified_ns(path))


def priced(
    economics: Economics,
    cluster: Cluster,
    layer_time_s: Any,
    tokens: int,
    utilisation: dict[str, Any],
) -> dict[str, Any]:
    """Compute the columns of energy and cost of one simulated layer, or of arrays of layers.

    Args:
        economics: The cost and power model.
        cluster: The hardware that the layer ran on.
        layer_time_s: The time of the layer in seconds.
        tokens: The number of tokens on all devices together.
        utilisation: The mean utilization of each kind of resource.

    Returns:
        The columns of `PRICED`; None where the model has no figure for a device of the cluster.
    """
    columns: dict[str, Any] = dict.fromkeys(PRICED)
    columns["cost_model"] = f"{economics.name}@{economics.digest}"
    if economics.unknown_power(cluster) is None:
        watts = economics.watts(cluster, utilisation)
        columns["layer_joules_per_token"] = watts * layer_time_s / tokens
        columns["watts_per_device"] = watts / cluster.num_devices / economics.wall_factor
        columns["wall_watts_per_device"] = watts / cluster.num_devices
    if economics.unknown_price(cluster) is None:
        usd = economics.usd_per_hour(cluster)
        columns["layer_usd_per_million_tokens"] = usd / 3600 * layer_time_s / tokens * 1e6
        columns["usd_per_hour"] = usd
    return columns
