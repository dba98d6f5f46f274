"""Write the beginning of a device or cluster file: every key with its unit and meaning, and the
numbers of a known one as plain numbers, to be edited.

A plain number counts as assumed. A number with a source is a table:
``{value = 3350.0, kind = "datasheet", source = "sheet"}`` with ``[sources.sheet]``.
"""

from collections.abc import Iterator, Mapping

from moesim.files import toml
from moesim.files.texts import parse_toml, read_text
from moesim.files.toml import Quantity
from moesim.hardware.cluster_file import ClusterFile
from moesim.hardware.loading import hardware_path, is_device
from moesim.hardware.profile_file import ProfileFile

_HEAD = """# {what} like {like}. Edit the numbers: a plain number counts as assumed.
# One with a source: {{value = 1.0, kind = "datasheet", source = "sheet"}}, and below
# [sources.sheet] with a title; kinds: datasheet, measured, derived, assumed.
"""
#: key of a device file -> its meaning with unit
DEVICE_KEYS: Mapping[str, str] = {
    "title": "what it is",
    "execution": "waves: a GPU. systolic: a TPU. serial: a CPU",
    "compute_capability": "of an NVIDIA GPU, such as 9.0; leave out for others",
    "calibration": "how far kernels stay below the peaks; a name of hw_profiles/calibration",
    "num_sms": "streaming multiprocessors (compute units, matrix units)",
    "clock_ghz": "GHz under a matrix load",
    "shared_memory_per_sm_kib": "KiB that the blocks of one SM share (waves)",
    "mxu_size": "rows and columns of a matrix unit (systolic)",
    "peak_tflops": "dense TFLOP/s by format, without sparsity",
    "capacity_gib": "GiB",
    "reserved_gib": "GiB that driver, framework and buffers take",
    "bandwidth_gb_per_s": "GB/s by the data sheet",
    "gather": "useful share of the bandwidth for random rows of so many bytes",
    "streaming": "share of the bandwidth for a working set of so many MiB; above 1 in the cache",
    "l2": "MiB of the last-level cache (systolic: vector memory)",
    "kernel_us": "us between two small kernels in a graph",
    "plain_kernel_us": "us in which the host launches one kernel",
    "power_watt": "W, rated",
    "host_link_gb_per_s": "GB/s of one direction of the link to the host",
    "price_usd_per_hour": "USD of an hour",
}
#: key of a cluster file -> its meaning with unit
CLUSTER_KEYS: Mapping[str, str] = {
    "title": "what it is",
    "profile": "device: a name, or a path from this file's folder such as my.toml",
    "num_nodes": "nodes",
    "devices_per_node": "devices that the scale-up fabric joins",
    "exchange": "how tokens travel if a design names nothing: nccl, deepep_normal, ...",
    "kind": "switch, mesh, pcie or torus",
    "link_gb_per_s": "GB/s of one direction: of a device's port (switch, pcie), of each link",
    "hop_us": "us of a hop",
    "devices_per_switch": "devices behind a PCIe switch (pcie)",
    "uplink_gb_per_s": "GB/s of the link of a PCIe switch (pcie)",
    "axes": "size of every axis (torus)",
    "wrap_multiple_of": "an axis closes to a ring if it is a multiple of this (torus)",
    "twisted": "k x k x 2k whose short axes close with a shift (torus)",
    "routing": "dimension_ordered, multi_path or single_path (torus)",
    "scale_out": "the network between nodes",
    "scale_out.kind": "rail: device i of every node on leaf i. fat_tree: nodes share leaves",
    "nic_gb_per_s": "GB/s of one direction of a device's NIC",
    "oversubscription": "rate of a leaf's NICs over that of its uplinks",
    "nodes_per_leaf": "nodes that share a leaf (fat_tree)",
    "groups": "nodes of one device each, instead of profile: profile, num_nodes, link_gb_per_s, "
    "nic_gb_per_s",
}


def template_like(name: str) -> str:
    """Return the text of a file like a known device or cluster.

    Args:
        name: Name or path of the device or cluster.

    Raises:
        ConfigError: There is none of that name, or its file is malformed.
    """
    path = hardware_path(name)
    tables = parse_toml(read_text(path), path.name)
    if is_device(tables):
        lines = _device(toml.validate(tables, ProfileFile, path.name))
    else:
        lines = _cluster(toml.validate(tables, ClusterFile, path.name))
    what = "A device" if is_device(tables) else "A cluster"
    return _HEAD.format(what=what, like=path.stem) + "\n".join(lines) + "\n"


def _line(key: str, value: object, meaning: str) -> str:
    """Return one key with its meaning; a comment where there is no value."""
    if isinstance(value, Quantity):
        value = value.value
    if value is None:
        return f"# {key} =   # {meaning}"
    if isinstance(value, bool):
        text = str(value).lower()
    elif isinstance(value, str):
        text = '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
    else:
        text = str(value)
    return f"{key} = {text}   # {meaning}"


def _some(model: object, keys: tuple[str, ...], meaning: Mapping[str, str]) -> Iterator[str]:
    for key in keys:
        yield _line(key, getattr(model, key), meaning[key])


def _device(file: ProfileFile) -> Iterator[str]:
    means = DEVICE_KEYS
    yield _line("title", f"like {file.title}", means["title"])
    yield from _some(file, ("execution", "compute_capability", "calibration"), means)
    yield from _some(file, ("power_watt", "host_link_gb_per_s", "price_usd_per_hour"), means)
    yield "\n[compute]"
    keys = ("num_sms", "clock_ghz", "shared_memory_per_sm_kib", "mxu_size")
    yield from _some(file.compute, keys, means)
    yield f"\n[compute.peak_tflops]   # {means['peak_tflops']}"
    for fmt, peak in file.compute.peak_tflops.items():
        yield f"{fmt} = {peak.value}"
    yield "\n[hbm]"
    yield from _some(file.hbm, ("capacity_gib", "reserved_gib", "bandwidth_gb_per_s"), means)
    yield f"\n# {means['gather']}"
    for point in file.hbm.gather:
        yield f"[[hbm.gather]]\naccess_bytes = {point.access_bytes}"
        yield f"efficiency = {point.efficiency.value}"
    yield f"\n# {means['streaming']}"
    for stream in file.hbm.streaming:
        yield f"[[hbm.streaming]]\nworking_set_mib = {stream.working_set_mib}"
        yield f"efficiency = {stream.efficiency.value}"
    yield f"\n[l2]\n{_line('capacity_mib', file.l2.capacity_mib, means['l2'])}"
    yield "\n[launch]"
    yield from _some(file.launch, ("kernel_us", "plain_kernel_us"), means)
    yield "\n# `moesim measure` writes the tables of a measured machine: measurement, serial,"
    yield "# residuals, host_fabric, peer_copies, compute.gemm and hbm.gather_cached."


def _cluster(file: ClusterFile) -> Iterator[str]:
    means = CLUSTER_KEYS
    yield _line("title", f"like {file.title}", means["title"])
    yield _line("profile", file.profile, means["profile"])
    yield from _some(file, ("num_nodes", "devices_per_node", "exchange"), means)
    if file.scale_up is not None:
        up = file.scale_up
        yield "\n[scale_up]"
        keys = ("kind", "link_gb_per_s", "hop_us", "devices_per_switch", "uplink_gb_per_s")
        yield from _some(up, keys, means)
        if up.kind == "torus":
            yield from _some(up, ("axes", "wrap_multiple_of", "twisted", "routing"), means)
        else:
            for key in ("axes", "wrap_multiple_of", "twisted", "routing"):
                yield _line(key, None, means[key])
    out = file.scale_out
    head = "[scale_out]" if out is not None else "# [scale_out]"
    yield f"\n{head}   # {means['scale_out']}"
    yield _line("kind", out and out.kind, means["scale_out.kind"])
    for key in ("nic_gb_per_s", "oversubscription", "nodes_per_leaf"):
        yield _line(key, out and getattr(out, key), means[key])
    if not file.groups:
        yield f"\n# [[groups]]   # {means['groups']}"
    for group in file.groups:
        yield f"\n[[groups]]   # {means['groups']}"
        for key in ("profile", "num_nodes", "link_gb_per_s", "nic_gb_per_s"):
            if getattr(group, key) is not None:
                yield _line(key, getattr(group, key), CLUSTER_KEYS.get(key, key))
