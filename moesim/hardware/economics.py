"""What a cluster draws and costs: a model simple enough to edit.

Power of a device is its rated power times an idle share plus, for compute, memory and scale-up
links, a share each times their mean utilisation; the shares sum to 1, so that a device with
everything busy draws what it is rated at. NICs come on top; every device of a mixed cluster counts
at the mean utilisation. The same shares, and those of its price, say what a device with other
numbers would draw and cost: twice the memory bandwidth makes the memory's share of power and of
price twice as large.

Rated power comes from the device profile; the rest from ``hw_profiles/economics/default.toml`` or a
file of the user's. Every number there is an assumption with its source; results say so by
``cost_model`` beside them.

Shape legend: the times and utilisations may be arrays of many candidates on one cluster.
"""

import hashlib
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from pydantic import Field, model_validator

from moesim.errors import ConfigError
from moesim.files import toml
from moesim.files.toml import Quantity, Sourced, Strict
from moesim.hardware.cluster import Cluster
from moesim.hardware.profile import Profile
from moesim.hardware.what_if import DEVICE_KEYS

#: columns that `priced` adds; empty for a device whose power or price nobody stated
PRICED = (
    "layer_joules_per_token",
    "layer_usd_per_million_tokens",
    "watts_per_device",
    "usd_per_hour",
    "cost_model",
)
#: device number -> (part that pays for it, how much of that part is in proportion to it)
_PART_OF = {
    "num_sms": ("compute", 1.0),
    "bf16_tflops": ("compute", 1.0),
    "l2_mib": ("compute", 0.1),
    "hbm_gb_per_s": ("memory_bandwidth", 1.0),
    "hbm_gib": ("memory_capacity", 1.0),
}
assert set(_PART_OF) == set(DEVICE_KEYS)


class Shares(Strict):
    """Of a device's power or price: what belongs to nothing that varies, to compute, memory
    bandwidth and capacity, and scale-up links. They sum to 1."""

    fixed: float = Field(ge=0, le=1)
    compute: float = Field(ge=0, le=1)
    memory_bandwidth: float = Field(ge=0, le=1)
    memory_capacity: float = Field(ge=0, le=1)
    links: float = Field(ge=0, le=1)

    @model_validator(mode="after")
    def _whole(self) -> "Shares":
        total = (
            self.fixed + self.compute + self.memory_bandwidth + self.memory_capacity + self.links
        )
        if abs(total - 1.0) > 1e-9:
            raise ValueError(f"@links@shares that sum to 1@{total:g}")
        return self


class _Power(Strict):
    shares: Shares
    nic_watt: Quantity
    host_factor: Quantity
    pue: Quantity
    #: rated power of devices whose profile states none
    device_watt: dict[str, Quantity] = {}


class _Price(Strict):
    shares: Shares
    nic_usd_per_hour: Quantity
    #: price of an hour of one device, with its share of host, network and power
    usd_per_device_hour: dict[str, Quantity]


class EconomicsFile(Sourced):
    """A cost and power model as written in ``hw_profiles/economics/NAME.toml``."""

    title: str
    power: _Power
    price: _Price


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Economics:
    """A cost and power model.

    Attributes:
        name: File it came from.
        file: What was written.
        digest: First 12 hex digits of the file's SHA-256.
    """

    name: str
    file: EconomicsFile
    digest: str

    def unknown_price(self, cluster: Cluster) -> str | None:
        """Which price is missing and where to write it; None if all are there."""
        known = self.file.price.usd_per_device_hour
        missing = [profile.name for profile, _ in cluster.groups if profile.name not in known]
        return (
            f"price.usd_per_device_hour: expected a price of {missing[0]}, got none"
            if missing
            else None
        )

    def unknown_power(self, cluster: Cluster) -> str | None:
        """Which rated power is missing and where to write it; None if all are there."""
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
        """Price of an hour of a whole cluster.

        Raises:
            ConfigError: A device without a price in the file.
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
            usd_per_hour: The price of an hour of all of them.

        Raises:
            ConfigError: A device has no price in the file.
        """
        return round(usd_per_hour / self.usd_per_hour(cluster) * cluster.num_nodes)

    def watts(self, cluster: Cluster, utilisation: dict[str, Any]) -> Any:
        """Mean power of a whole cluster while it runs.

        Args:
            cluster: Which.
            utilisation: Mean utilisation of each kind of resource:
                `moesim.simulation.result.Result.mean_utilisation`.

        Raises:
            ConfigError: A device of unknown rated power.
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
        return total * power.host_factor.value * power.pue.value


def _mean(values: list) -> Any:
    return sum(values) / len(values) if values else 0.0


def _growth(cluster: Cluster, key: str) -> float:
    """A link rate of a changed cluster over that of the one it was changed from."""
    return cluster.growth.get(key, 1.0)


def _sizes(cluster: Cluster, profile: Profile) -> dict[str, float]:
    """What a device with other numbers has of each part, relative to the one that exists."""
    grown = {"compute": 1.0, "memory_bandwidth": 1.0, "memory_capacity": 1.0}
    for key, factor in profile.growth.items():
        part, weight = _PART_OF[key]
        grown[part] *= 1.0 + weight * (factor - 1.0)
    return grown | {"links": _growth(cluster, "link_gb_per_s")}


def _scaled(shares: Shares, cluster: Cluster, profile: Profile) -> float:
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
    text = toml.read_text(file)
    return Economics(
        name=file.stem,
        file=toml.parse(text, EconomicsFile, file.name),
        digest=hashlib.sha256(text.encode()).hexdigest()[:12],
    )


def load_economics(name: str = "default") -> Economics:
    """Load a cost and power model by name or path.

    Raises:
        ConfigError: No such file, or a malformed one.
    """
    path = toml.find("economics", name)
    return _load(str(path), path.stat().st_mtime_ns)


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
        layer_time_s: The time of the layer.
        tokens: Tokens of all devices together.
        utilisation: The mean utilisation of each kind of resource.

    Returns:
        The columns of `PRICED`; None where the model has no figure for a device of the cluster.
    """
    columns: dict[str, Any] = dict.fromkeys(PRICED)
    columns["cost_model"] = f"{economics.name}@{economics.digest}"
    if economics.unknown_power(cluster) is None:
        watts = economics.watts(cluster, utilisation)
        columns["layer_joules_per_token"] = watts * layer_time_s / tokens
        columns["watts_per_device"] = watts / cluster.num_devices
    if economics.unknown_price(cluster) is None:
        usd = economics.usd_per_hour(cluster)
        columns["layer_usd_per_million_tokens"] = usd / 3600 * layer_time_s / tokens * 1e6
        columns["usd_per_hour"] = usd
    return columns
