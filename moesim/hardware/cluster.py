"""A cluster holds devices and the fabric that joins them. It comes from a file, from a short name,
or from a change in code.
"""

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from moesim.errors import ConfigError
from moesim.files import toml
from moesim.files.showing import Showable
from moesim.hardware.cluster_file import ClusterFile
from moesim.hardware.exchanges import Exchange, exchange_named
from moesim.hardware.profile import Profile, load_profile
from moesim.hardware.what_if import DEVICE_KEYS, changed_number, changed_profile
from moesim.units import GB, US

_WHAT_IF = "what-if"
#: keys of `Cluster.with_` for numbers of the file that carry a unit
_LINKS = {
    "scale_up_gb_per_s": ("scale_up", "link_gb_per_s"),
    "nvlink_gb_per_s": ("scale_up", "link_gb_per_s"),
    "scale_out_gb_per_s": ("scale_out", "nic_gb_per_s"),
    "nic_gb_per_s": ("scale_out", "nic_gb_per_s"),
    "uplink_gb_per_s": ("scale_up", "uplink_gb_per_s"),
}
_TABLES = {
    "axes": "scale_up",
    "twisted": "scale_up",
    "routing": "scale_up",
    "wrap_multiple_of": "scale_up",
    "devices_per_switch": "scale_up",
    "oversubscription": "scale_out",
    "nodes_per_leaf": "scale_out",
}
#: keys whose change leaves every measured number of the hardware valid
_SAME_HARDWARE = ("num_nodes", "exchange")
_PLAIN = ("num_nodes", "devices_per_node", "profile", "exchange")


class Scheduled(Protocol):
    """An object that may name an exchange, such as `moesim.design.schedule.Schedule`, of which a
    cluster needs nothing else.
    """

    @property
    def exchange(self) -> str | None:
        """The name of an exchange; None for that of the cluster."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class Cluster(Showable):
    """Devices that a fabric joins, numbered node by node.

    Attributes:
        name: Name by which the cluster was loaded.
        file: The content of the cluster file.
        groups: (device profile, number of devices) in the order of device indices; one entry unless
            the cluster is mixed.
        digest: Hash over the cluster file and the device profiles, which results call the profile
            hash.
        provenance: Kind and source of every number of the cluster file, by key path.
        device_changes: What-if changes of the numbers of the devices.
        growth: Link -> its rate over the rate it was loaded with, for links that `with_` changed.
    """

    name: str
    file: ClusterFile
    groups: tuple[tuple[Profile, int], ...]
    digest: str
    provenance: dict[str, tuple[str, str]]
    device_changes: tuple[tuple[str, object], ...] = ()
    growth: dict[str, float] = field(default_factory=dict)

    def facts(self) -> dict[str, str]:
        """Return what people look at first, as texts."""
        devices = " and ".join(f"{number} x {profile.name}" for profile, number in self.groups)
        return {
            "name": self.name,
            "devices": devices,
            "nodes": f"{self.num_nodes:,}",
            "what-if": "yes, numbers were changed" if self.is_what_if else "no",
            "hash": self.digest,
        }

    @property
    def is_what_if(self) -> bool:
        """Whether code changed any number of the cluster or of its devices."""
        return bool(self.device_changes) or _WHAT_IF in self.file.sources

    @property
    def profile(self) -> Profile:
        """The device profile; for a mixed cluster, the first one."""
        return self.groups[0][0]

    @property
    def num_devices(self) -> int:
        """The number of devices D."""
        return self.file.num_nodes * self.file.devices_per_node

    @property
    def num_nodes(self) -> int:
        """The number of nodes, each of which is one domain."""
        return self.file.num_nodes

    @property
    def is_torus(self) -> bool:
        """Whether links to neighbors join a domain, instead of ports into switches."""
        return self.file.scale_up is not None and self.file.scale_up.kind == "torus"

    @property
    def scale_up_kind(self) -> str | None:
        """The kind of the scale-up fabric: ``switch``, ``mesh``, ``pcie`` or ``torus``; None if no
        fabric joins the devices.
        """
        return None if self.file.scale_up is None else self.file.scale_up.kind

    @property
    def has_scale_out(self) -> bool:
        """Whether the file describes a network between nodes."""
        return self.file.scale_out is not None

    @property
    def has_thin_uplinks(self) -> bool:
        """Whether the uplinks between leaf switches are slower than the NICs that share them."""
        return (
            self.num_nodes > 1
            and self.file.scale_out is not None
            and self.file.scale_out.oversubscription > 1
        )

    def exchange(self, schedule: "Scheduled | None" = None) -> Exchange:
        """Return the exchange that a schedule names, otherwise that of the cluster."""
        return exchange_named(
            (schedule.exchange if schedule is not None else None) or self.file.exchange
        )

    @property
    def devices_per_domain(self) -> int:
        """The number of devices that the scale-up fabric joins, which are the devices of a node."""
        return self.file.devices_per_node

    @property
    def link_bytes_per_s(self) -> float:
        """The rate of a device into its domain in one direction, through its port or all its links
        together; 0 for a single device.
        """
        up = self.file.scale_up
        if up is None:
            return 0.0
        links = {
            "mesh": self.devices_per_domain - 1,
            "torus": sum(min(n - 1, 2) for n in up.axes),
        }.get(up.kind, 1)
        return up.link_gb_per_s.value * GB * links

    @property
    def bridge(self) -> tuple[float, int]:
        """See `moesim.hardware.cluster_file.ScaleUp.bridge`."""
        up = self.file.scale_up
        return (0.0, 1) if up is None else up.bridge

    @property
    def nic_bytes_per_s(self) -> float:
        """The rate of the NIC of a device in one direction; 0 if there is only one domain."""
        return (
            self.file.scale_out.nic_gb_per_s.value * GB
            if self.file.scale_out and self.file.num_nodes > 1
            else 0.0
        )

    @property
    def hop_s(self) -> float:
        """The latency of one hop inside a domain, as far as the calibration of the communication
        kernels does not include it.
        """
        up = self.file.scale_up
        return up.hop_us.value * US if up is not None and up.hop_us is not None else 0.0

    def usable_bytes_D(self) -> np.ndarray:
        """Return the memory of each device that a model may use: ndarray of shape (D,)."""
        return np.repeat(
            [profile.usable_bytes for profile, _ in self.groups],
            [count for _, count in self.groups],
        )

    def with_(self, **changes: object) -> "Cluster":
        """Return the cluster with changed numbers, which count as assumed, for what-if studies.

        Args:
            **changes: New values by key: ``num_nodes``, ``devices_per_node``, ``profile``,
                ``exchange``; ``scale_up_gb_per_s`` (also ``nvlink_gb_per_s``),
                ``scale_out_gb_per_s`` (also ``nic_gb_per_s``), ``uplink_gb_per_s``; ``axes``,
                ``twisted``, ``routing``, ``wrap_multiple_of``, ``devices_per_switch``,
                ``oversubscription``, ``nodes_per_leaf``; and the keys of devices, see
                `moesim.hardware.what_if.DEVICE_KEYS`. A change of axes also sets devices_per_node.
                Rates and device numbers may be factors written as text, ``2x``.

        Raises:
            ConfigError: A key is unknown, or the numbers contradict each other.
        """
        values = self.file.model_dump()
        device_changes = (
            *(self.device_changes if "profile" not in changes else ()),
            *((key, value) for key, value in changes.items() if key in DEVICE_KEYS),
        )
        growth = dict(self.growth)
        for key, value in changes.items():
            if key in DEVICE_KEYS:
                continue
            if key in _LINKS:
                table, field = _LINKS[key]
                now = (values[table] or {}).get(field)
                if now:
                    rate = changed_number(f"cluster.with_: {key}", now["value"], value)
                    growth[field] = growth.get(field, 1.0) * rate / now["value"]
                    value = rate
                written: object = {"value": value, "kind": "assumed", "source": _WHAT_IF}
            elif key in _TABLES:
                table, field, written = _TABLES[key], key, value
            elif key in _PLAIN:
                values[key] = value
                continue
            else:
                known = ", ".join(sorted([*_LINKS, *_TABLES, *_PLAIN, *DEVICE_KEYS]))
                raise ConfigError(f"cluster.with_: expected one of {known}, got {key!r}")
            if values[table] is None:
                raise ConfigError(
                    f"cluster.with_: {key}: expected a cluster with [{table}], got {self.name}"
                )
            values[table][field] = written
        if "axes" in changes and "devices_per_node" not in changes:
            axes = changes["axes"]
            if not isinstance(axes, list | tuple) or not all(type(axis) is int for axis in axes):
                raise ConfigError(f"cluster.with_: axes: expected a list of integers, got {axes!r}")
            values["devices_per_node"] = math.prod(axes)
        if "num_nodes" in changes and values["groups"] and len(values["groups"]) == 1:
            values["groups"][0]["num_nodes"] = changes["num_nodes"]
        if set(changes) - set(DEVICE_KEYS) - set(_SAME_HARDWARE):
            values["sources"][_WHAT_IF] = {"title": "a what-if study", "locator": ""}
        changed = ", ".join(f"{k}={v}" for k, v in changes.items())
        return build_cluster(
            f"{self.name} with {changed}",
            self._checked(values),
            device_changes,
            growth,
        )

    def _checked(self, values: dict[str, Any]) -> ClusterFile:
        """Validate a changed file; where axes do not fit, the error says how to set them."""
        try:
            return toml.validate(values, ClusterFile, "cluster.with_")
        except ConfigError as error:
            if not self.is_torus or "axes" not in str(error):
                raise
            twisted = self.file.scale_up is not None and self.file.scale_up.twisted
            way = f"cluster.with_(axes=[...]{', twisted=False' * twisted})"
            raise ConfigError(f"{error}; {way} sets axes and devices_per_node") from None


def build_cluster(
    name: str,
    file: ClusterFile,
    device_changes: tuple[tuple[str, object], ...] = (),
    growth: dict[str, float] | None = None,
    profiles: Mapping[str, Profile] | None = None,
) -> Cluster:
    """Build a cluster and look up its devices.

    Args:
        name: Name of the cluster.
        file: The content of its file.
        device_changes: What-if changes of the numbers of the devices.
        growth: Link -> its rate over the rate it was loaded with.
        profiles: Devices that have no file, by name.

    Raises:
        ConfigError: A device or the exchange does not exist, or a device's file is malformed.
    """
    exchange_named(file.exchange)
    named: Sequence[tuple[str, int]] = [(g.profile, g.num_nodes) for g in file.groups]
    if file.profile is not None:
        named = [(file.profile, file.num_nodes)]
    groups = tuple(
        ((profiles or {}).get(profile) or load_profile(profile), nodes * file.devices_per_node)
        for profile, nodes in named
    )
    # apply changes one by one, since a later factor applies to the result of the earlier ones
    for change in device_changes:
        groups = tuple(
            (changed_profile(profile, dict([change])), count) for profile, count in groups
        )
    # where a device's file lies does not matter to what the numbers say
    text = _without_folders(file).model_dump_json(by_alias=True) + "".join(
        profile.digest for profile, _ in groups
    )
    return Cluster(
        name=name,
        file=file,
        groups=groups,
        digest=hashlib.sha256(text.encode()).hexdigest()[:12],
        provenance={key: (q.kind, q.source) for key, q in toml.quantities(file)},
        device_changes=device_changes,
        growth=growth or {},
    )


def _without_folders(file: ClusterFile) -> ClusterFile:
    """Return the file with bare names of devices that it names by path."""

    def bare(name: str) -> str:
        return Path(name).stem if toml.is_path(name) else name

    groups = [g.model_copy(update={"profile": bare(g.profile)}) for g in file.groups]
    profile = None if file.profile is None else bare(file.profile)
    return file.model_copy(update={"profile": profile, "groups": groups})


def check_devices(cluster: Cluster, needed: int, what: str) -> None:
    """Raise an error unless a layout uses the devices of the cluster exactly.

    Raises:
        ConfigError: ``needed`` is not the number of devices.
    """
    if needed != cluster.num_devices:
        raise ConfigError(
            f"{what}: expected the {cluster.num_devices} devices of {cluster.name}, got {needed}"
        )
