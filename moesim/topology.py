"""Clusters: which devices there are, and the ports a byte passes between two of them.

A cluster file names a device profile and a fabric. Here the fabric becomes resources: one egress and one ingress
port per device (bytes per second, each direction by itself), so that what several transfers share is decided by the
engines and not by a formula. A single device has a fabric of kind ``none``.
"""

import hashlib
from dataclasses import dataclass
from typing import Literal

from pydantic import Field, model_validator

from moesim import configfile
from moesim.configfile import Quantity, Sourced, Strict
from moesim.errors import ConfigError
from moesim.hardware import Profile, load_profile
from moesim.units import GB

FabricKind = Literal["none", "nvswitch"]


class _Fabric(Strict):
    kind: FabricKind
    calibration: str
    link_gb_per_s: Quantity


class ClusterFile(Sourced):
    """A cluster as written in ``hw_profiles/clusters/NAME.toml``."""

    title: str
    aliases: list[str] = []
    profile: str
    num_nodes: int = Field(ge=1)
    devices_per_node: int = Field(ge=1)
    fabric: _Fabric | None = None

    @model_validator(mode="after")
    def _joined(self) -> "ClusterFile":
        if self.num_nodes * self.devices_per_node > 1 and (self.fabric is None or self.fabric.kind == "none"):
            got = "nothing" if self.fabric is None else "kind = 'none'"
            raise ValueError(f"@fabric@a [fabric] table that joins the devices@{got}")
        if self.num_nodes > 1:
            raise ValueError(f"@num_nodes@1: an nvswitch fabric joins the devices of one node@{self.num_nodes}")
        return self


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Cluster:
    """Equal devices joined by a fabric.

    Attributes:
        name: Name it was loaded by.
        profile: The device.
        num_devices: Devices D, numbered node by node.
        fabric: How they are joined; ``none`` for one device.
        fabric_calibration: Name of the calibration file of its transfers.
        link_bytes_per_s: One direction of one device's port.
        digest: Hash over cluster file and device profile: the profile hash in results.
        provenance: Kind and source of every number of the cluster file, by key path.
    """

    name: str
    profile: Profile
    num_devices: int
    fabric: FabricKind
    fabric_calibration: str
    link_bytes_per_s: float
    digest: str
    provenance: dict[str, tuple[str, str]]


def load_cluster(name: str) -> Cluster:
    """Load a cluster by name, alias or path; the name of a device profile gives that device alone.

    Raises:
        ConfigError: No such cluster (with near matches), or a malformed file.
    """
    try:
        path = configfile.find("clusters", name)
    except configfile.UnknownNameError:
        try:
            return single_device(load_profile(name))
        except configfile.UnknownNameError:
            known = [*configfile.index_names("clusters"), *configfile.index_names("devices")]
            raise configfile.UnknownNameError("cluster", name, known) from None
    text = configfile.read_text(path)
    file = configfile.parse(text, ClusterFile, path.name)
    profile = load_profile(file.profile)
    fabric = file.fabric
    return Cluster(
        name=path.stem,
        profile=profile,
        num_devices=file.num_nodes * file.devices_per_node,
        fabric=fabric.kind if fabric else "none",
        fabric_calibration=fabric.calibration if fabric else "",
        link_bytes_per_s=fabric.link_gb_per_s.value * GB if fabric else 0.0,
        digest=hashlib.sha256((text + profile.digest).encode()).hexdigest()[:12],
        provenance={key: (q.kind, q.source) for key, q in configfile.quantities(file)},
    )


def single_device(profile: Profile) -> Cluster:
    """One device by itself: no fabric, no dispatch."""
    return Cluster(name=profile.name, profile=profile, num_devices=1, fabric="none", fabric_calibration="",
                   link_bytes_per_s=0.0, digest=profile.digest, provenance={})


def check_devices(cluster: Cluster, needed: int, what: str) -> None:
    """Refuse a layout that does not use the cluster's devices exactly.

    Raises:
        ConfigError: ``needed`` is not the number of devices.
    """
    if needed != cluster.num_devices:
        raise ConfigError(f"{what}: expected the {cluster.num_devices} devices of {cluster.name}, got {needed}")
