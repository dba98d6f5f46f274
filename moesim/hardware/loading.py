"""Load a cluster from its file or from a short name, or make one of a device or of a host."""

import re
from collections.abc import Mapping
from pathlib import Path

from moesim.errors import ConfigError
from moesim.files import toml
from moesim.files.texts import parse_toml, read_text
from moesim.hardware.cluster import Cluster, build_cluster
from moesim.hardware.cluster_file import ClusterFile
from moesim.hardware.profile import Profile, load_profile
from moesim.units import GB


def load_cluster(name: str) -> Cluster:
    """Load a cluster by name, alias or path, or build one from a short name.

    ``star-1024`` is one switch with 1,024 H100s, ``rail-128x8`` has 128 nodes of 8 H100s, and
    ``torus-8x8x16`` is a TPU v5p slice; these bare topologies use the exchange ``ideal``.
    ``local-2`` is two ranks of the host that `moesim measure` measured, and the name of a device
    profile, or the path of its file, is that device alone. A cluster file names devices by name, or
    by a path that begins at its own folder.

    Raises:
        ConfigError: The cluster does not exist (the text lists near matches), or its file is
            malformed.
    """
    try:
        path = toml.find("clusters", name)
    except toml.UnknownNameError:
        made = _by_shape(name)
        if made is not None:
            return made
        try:
            return single_device(load_profile(name))
        except toml.UnknownNameError:
            known = [*toml.index_names("clusters"), *toml.index_names("devices")]
            raise toml.UnknownNameError("cluster", name, known) from None
    return _of_file(path)


def _of_file(path: Path) -> Cluster:
    text = read_text(path)
    tables = parse_toml(text, path.name)
    if is_device(tables):
        return single_device(load_profile(str(path)))
    file = toml.validate(tables, ClusterFile, path.name)

    def found(name: str) -> str:
        return str((path.parent / name).resolve()) if toml.is_path(name) else name

    groups = [g.model_copy(update={"profile": found(g.profile)}) for g in file.groups]
    profile = None if file.profile is None else found(file.profile)
    return build_cluster(path.stem, file.model_copy(update={"profile": profile, "groups": groups}))


def hardware_path(name: str) -> Path:
    """Return the file of a device or cluster; the name of a file wins over an alias.

    Raises:
        UnknownNameError: There is neither of that name; the text lists near matches.
        ConfigError: The path does not exist.
    """
    if name in toml.names("clusters"):
        return toml.find("clusters", name)
    try:
        return toml.find("devices", name)
    except toml.UnknownNameError:
        pass
    try:
        return toml.find("clusters", name)
    except toml.UnknownNameError:
        known = [*toml.index_names("devices"), *toml.index_names("clusters")]
        raise toml.UnknownNameError("device or cluster", name, known) from None


def is_device(tables: Mapping[str, object]) -> bool:
    """Return whether the tables of a file describe a device, not a cluster."""
    return bool({"compute", "hbm"} & tables.keys()) and "devices_per_node" not in tables


def single_device(profile: Profile) -> Cluster:
    """Return a cluster of one device, without a fabric and without dispatch."""
    file = ClusterFile(
        title=profile.name, profile=profile.name, num_nodes=1, devices_per_node=1, sources={}
    )
    return Cluster(
        name=profile.name, file=file, groups=((profile, 1),), digest=profile.digest, provenance={}
    )


def _by_shape(name: str) -> Cluster | None:
    """Return ``star-N``, ``rail-NODESxDEVICES`` or ``torus-AxBxC`` of the shipped H100 and TPU v5p,
    or ``local-N`` of this host; None for any other name.
    """
    if found := re.fullmatch(r"star-([1-9]\d*)", name):
        base = load_cluster("hgx-h100-8").with_(
            num_nodes=1, devices_per_node=int(found[1]), exchange="ideal"
        )
    elif found := re.fullmatch(r"rail-([1-9]\d*)x([1-9]\d*)", name):
        base = load_cluster("h100-rail-8x8").with_(
            num_nodes=int(found[1]), devices_per_node=int(found[2]), exchange="ideal"
        )
    elif re.fullmatch(r"torus-[1-9]\d*(x[1-9]\d*)*", name):
        axes = [int(n) for n in name.removeprefix("torus-").split("x")]
        base = load_cluster("tpu-v5p-4x4x4").with_(
            axes=axes, num_nodes=1, wrap_multiple_of=1, exchange="ideal"
        )
    elif found := re.fullmatch(r"(.+)-([1-9]\d*)", name):
        return _on_one_host(name, found[1], int(found[2]))
    else:
        return None
    return Cluster(
        name=name,
        file=base.file,
        groups=base.groups,
        digest=base.digest,
        provenance=base.provenance,
    )


def _on_one_host(name: str, profile_name: str, ranks: int) -> Cluster | None:
    """Return ranks of one measured host, joined by the measured all-to-all; None if the profile
    does not exist or has no such measurement.
    """
    try:
        profile = load_profile(profile_name)
    except toml.UnknownNameError:
        return None
    return None if profile.host_fabric is None else ranks_of_host(profile, ranks, name)


def ranks_of_host(profile: Profile, ranks: int, name: str = "") -> Cluster:
    """Return a cluster of ranks of one measured host, joined by the measured all-to-all.

    Args:
        profile: A measured profile with all-to-alls.
        ranks: Number of ranks, at least 1.
        name: Name of the cluster; by default the name of the profile and the number of ranks.

    Raises:
        ConfigError: No all-to-all was measured.
    """
    if profile.host_fabric is None:
        raise ConfigError(
            f"{profile.name}: expected a measured all-to-all, got none; `moesim measure` writes one"
        )
    name = name or f"{profile.name}-{ranks}"
    rate = {
        "value": profile.host_fabric.port_bytes_per_s / GB,
        "kind": "measured",
        "source": "profile",
    }
    values = {
        "title": f"{ranks} ranks of {profile.name} on one host",
        "profile": profile.name,
        "num_nodes": 1,
        "devices_per_node": ranks,
        "exchange": "host",
        "scale_up": {"kind": "switch", "link_gb_per_s": rate},
        "sources": {"profile": {"title": f"[host_fabric] of {profile.name}"}},
    }
    return build_cluster(
        name, toml.validate(values, ClusterFile, name), profiles={profile.name: profile}
    )


def linked_devices(profile: Profile, count: int) -> Cluster:
    """Return several devices of one host that reach each other over their links to it.

    Args:
        profile: The device.
        count: Number of devices, at least 2.

    Raises:
        ConfigError: The profile states no rate of that link; the text says what to do.
    """
    if profile.host_link_bytes_per_s is None:
        raise ConfigError(
            f"gpus: expected 1, since {profile.name} states no host_link_gb_per_s to join several "
            "(add it, or write a cluster file with [scale_up]: moesim profiles new --like "
            f"hgx-h100-8), got {count}"
        )
    rate = profile.host_link_bytes_per_s / GB
    values = {
        "title": f"{count} {profile.name} joined by their links to the host",
        "profile": profile.name,
        "num_nodes": 1,
        "devices_per_node": count,
        "scale_up": {"kind": "switch", "link_gb_per_s": rate},
    }
    name = f"{count} x {profile.name}"
    return build_cluster(
        name, toml.validate(values, ClusterFile, name), profiles={profile.name: profile}
    )
