"""A device profile says what a chip can do; each number has a kind and a source.

`moesim.hardware.profile_file.ProfileFile` is the file as people write it (units in the keys);
`Profile` is what the rest of moesim reads, in SI units. A shipped profile never holds fitted
efficiencies: those are in calibration files, which also say what they were fitted on. A profile
measured on this machine holds its own fit and the error of that fit.
"""

import hashlib
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np

from moesim.files import toml
from moesim.files.showing import Showable
from moesim.files.texts import read_text
from moesim.hardware.profile_file import Execution, HostFabricFile, ProfileFile
from moesim.units import GB, GIB, KIB, MIB, TERA, US


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class HostFabric:
    """Measured all-to-alls between the ranks of one host, with time = start_s + (ranks - 1) x bytes
    / port rate.

    Attributes:
        backend: The backend that was measured: ``gloo`` (processes on a CPU) or ``nccl`` (GPUs).
        start_s: Fixed time of an all-to-all, independent of its bytes.
        port_bytes_per_s: Rate at which one rank sends (and at the same time receives).
        ranks: Number of ranks of each measured point.
        bytes_per_pair: Bytes from each rank to each other rank, for each point.
        time_s: Measured time of each point.
        interval: P10 and P90 of measured over fitted time on points left out of the fit; a factor
            of 1.5 if the file states none.
    """

    backend: str
    start_s: float
    port_bytes_per_s: float
    ranks: tuple[int, ...]
    bytes_per_pair: tuple[float, ...]
    time_s: tuple[float, ...]
    interval: tuple[float, float]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class Profile(Showable):
    """One device, in SI units.

    Attributes:
        name: Name of the profile, which is that of its file.
        execution: How the device runs a grouped product: ``waves`` (tiles on SMs, a GPU),
            ``serial`` (one group after another, a CPU) or ``systolic`` (padded tiles on matrix
            units, a TPU).
        compute_capability: Compute capability of an NVIDIA device, or None.
        calibration: Name of the calibration file of the kernels.
        peak_flops_per_s: Dense peak by format.
        num_sms: Number of streaming multiprocessors (1 for ``serial``; matrix units for
            ``systolic``).
        clock_hz: Sustained clock under a matrix load.
        shared_memory_per_sm_bytes: Memory that the CTAs on one SM share; 0 for ``systolic``.
        mxu_size: Rows and columns of a matrix unit of a ``systolic`` device, otherwise 0.
        hbm_capacity_bytes: Memory of the device.
        hbm_reserved_bytes: Memory that driver, framework and communication buffers take.
        hbm_bandwidth_bytes_per_s: Streaming bandwidth of the memory.
        gather_access_bytes: Access sizes of the gather curve, in ascending order.
        gather_efficiency: Useful share of the bandwidth at each of these sizes.
        streaming_bytes: Working sets of the streaming curve, in ascending order; empty if the curve
            is not known.
        streaming_efficiency: Share of the datasheet bandwidth at each of these working sets.
        l2_bytes: Size of the last-level cache; for ``systolic``, of the vector memory (VMEM) that
            products are tiled through.
        kernel_launch_s: Time between two dependent small kernels, on a GPU inside a graph.
        host_launch_s: Time that the host takes to launch a kernel by itself, outside a graph; None
            if the file states none.
        eager: Whether the host launches every kernel by itself, as without graphs; files never say
            so, `moesim.hardware.what_if` does.
        serial: Coefficients of the serial cost model by phase (seconds, or seconds per unit).
        residuals: P10 and P90 of measured over predicted time of each of these phases, on calls
            left out of the fit.
        host_fabric: All-to-all between the processes or devices of the host, if it was measured.
        contended: Whether other work disturbed the machine during the measurement.
        machine: The machine that was measured; empty for data sheets.
        digest: The first 12 hex digits of the SHA-256 of the file, which results call the profile
            hash.
        provenance: Kind and source of every number, by key path.
        power_w: Rated power in watts; None if the file does not state it.
        host_link_bytes_per_s: Rate at which the device reads the host's memory, by the data sheet
            of the link; None if the file does not state it.
        growth: Key -> factor over the number of the file, for numbers that
            `moesim.hardware.what_if` changed.
    """

    name: str
    execution: Execution
    compute_capability: float | None
    calibration: str
    peak_flops_per_s: dict[str, float]
    num_sms: int
    clock_hz: float
    shared_memory_per_sm_bytes: float
    mxu_size: int
    hbm_capacity_bytes: float
    hbm_reserved_bytes: float
    hbm_bandwidth_bytes_per_s: float
    gather_access_bytes: tuple[float, ...]
    gather_efficiency: tuple[float, ...]
    streaming_bytes: tuple[float, ...]
    streaming_efficiency: tuple[float, ...]
    l2_bytes: float
    kernel_launch_s: float
    serial: dict[str, dict[str, float]]
    residuals: dict[str, tuple[float, float]]
    host_fabric: HostFabric | None
    contended: bool
    digest: str
    provenance: dict[str, tuple[str, str]]
    power_w: float | None = None
    host_launch_s: float | None = None
    eager: bool = False
    host_link_bytes_per_s: float | None = None
    growth: dict[str, float] = field(default_factory=dict)
    machine: str = ""

    def facts(self) -> dict[str, str]:
        """Return what people look at first, as texts."""
        peaks = (f"{fmt} {peak / TERA:,.0f}" for fmt, peak in self.peak_flops_per_s.items())
        return {
            "name": self.name,
            "memory": f"{self.hbm_capacity_bytes / GIB:,.0f} GiB",
            "bandwidth": f"{self.hbm_bandwidth_bytes_per_s / GB:,.0f} GB/s",
            "runs": self.execution,
            "peak, TFLOP/s": ", ".join(peaks),
            "hash": self.digest,
        }

    @property
    def usable_bytes(self) -> float:
        """The memory that a model may fill."""
        return self.hbm_capacity_bytes - self.hbm_reserved_bytes

    def peak(self, fmt: str) -> float:
        """Return the dense FLOP/s of a format.

        Raises:
            ConfigError: The device has no rate for the format.
        """
        try:
            return self.peak_flops_per_s[fmt]
        except KeyError:
            raise toml.ConfigError(
                f"{self.name}: no compute rate for {fmt}; it has {', '.join(self.peak_flops_per_s)}"
            ) from None

    def gather_share(self, access_bytes: float) -> float:
        """Return the useful share of the bandwidth when rows of ``access_bytes`` are gathered
        (log-linear between points).
        """
        return float(
            np.interp(
                np.log(access_bytes), np.log(self.gather_access_bytes), self.gather_efficiency
            )
        )

    def gather_slowdown(self, access_bytes: np.ndarray | float) -> np.ndarray | float:
        """Return how much longer rows of ``access_bytes`` at random addresses take than rows of the
        best size of the curve.

        Rows of the best size move as fast as a stream, whose achieved bandwidth a calibration
        knows; the curve only adds its shape. (The best size need not be the largest: of measured
        curves the end wavers by a per cent or two.) Rows written at random addresses are assumed to
        be as slow as rows read there (the same 32-byte sectors).
        """
        share = np.interp(
            np.log(access_bytes), np.log(self.gather_access_bytes), self.gather_efficiency
        )
        return max(self.gather_efficiency) / share

    def cache_speed_up(self, working_set_bytes: np.ndarray | float) -> np.ndarray:
        """Return how much faster a working set is streamed than one far larger than the cache
        (log-linear between points).

        Args:
            working_set_bytes: Bytes that are streamed repeatedly, an array of any shape.

        Returns:
            ndarray of the same shape, >= 1 if the curve falls with size; 1 if no curve is known.
        """
        size = np.maximum(np.asarray(working_set_bytes, dtype=np.float64), 1.0)
        if not self.streaming_bytes:
            return np.ones_like(size)
        share = np.interp(np.log(size), np.log(self.streaming_bytes), self.streaming_efficiency)
        return share / self.streaming_efficiency[-1]


#: interval of an all-to-all whose file states no residuals (assumed)
_ASSUMED_INTERVAL = (1 / 1.5, 1.5)


def _host_fabric(file: HostFabricFile | None) -> HostFabric | None:
    if file is None:
        return None
    held_out = file.residuals
    return HostFabric(
        backend=file.backend,
        start_s=file.start_us.value * US,
        port_bytes_per_s=file.gb_per_s.value * GB,
        ranks=tuple(p.ranks for p in file.points),
        bytes_per_pair=tuple(p.bytes_per_pair for p in file.points),
        time_s=tuple(p.time_us.value * US for p in file.points),
        interval=(held_out.low.value, held_out.high.value) if held_out else _ASSUMED_INTERVAL,
    )


def _build(path_name: str, text: str, where: str) -> Profile:
    file = toml.parse(text, ProfileFile, where)
    num_sms, shared, mxu = (
        file.compute.num_sms.value,
        file.compute.shared_memory_per_sm_kib,
        file.compute.mxu_size,
    )
    for key, value in (("num_sms", num_sms), ("mxu_size", mxu.value if mxu else 1.0)):
        if not value.is_integer():
            raise toml.ConfigError(
                f"{where}: compute.{key}.value: expected an integer >= 1, got {value}"
            )
    points = sorted(file.hbm.gather, key=lambda p: p.access_bytes)
    streams = sorted(file.hbm.streaming, key=lambda p: p.working_set_mib)
    return Profile(
        name=path_name,
        execution=file.execution,
        compute_capability=file.compute_capability,
        calibration=file.calibration,
        peak_flops_per_s={fmt: q.value * TERA for fmt, q in file.compute.peak_tflops.items()},
        num_sms=int(num_sms),
        clock_hz=file.compute.clock_ghz.value * 1e9,
        shared_memory_per_sm_bytes=shared.value * KIB if shared else 0.0,
        mxu_size=int(mxu.value) if mxu else 0,
        hbm_capacity_bytes=file.hbm.capacity_gib.value * GIB,
        hbm_reserved_bytes=file.hbm.reserved_gib.value * GIB if file.hbm.reserved_gib else 0.0,
        hbm_bandwidth_bytes_per_s=file.hbm.bandwidth_gb_per_s.value * GB,
        gather_access_bytes=tuple(p.access_bytes for p in points),
        gather_efficiency=tuple(p.efficiency.value for p in points),
        streaming_bytes=tuple(p.working_set_mib * MIB for p in streams),
        streaming_efficiency=tuple(p.efficiency.value for p in streams),
        l2_bytes=file.l2.capacity_mib.value * MIB,
        kernel_launch_s=file.launch.kernel_us.value * US,
        host_launch_s=host.value * US if (host := file.launch.plain_kernel_us) else None,
        serial={
            phase: {k: q.value for k, q in table.items()} for phase, table in file.serial.items()
        },
        residuals={
            phase: (held_out.low.value, held_out.high.value)
            for phase, held_out in file.residuals.items()
        },
        host_fabric=_host_fabric(file.host_fabric),
        contended=file.measurement is not None and file.measurement.contended,
        digest=hashlib.sha256(text.encode()).hexdigest()[:12],
        provenance={key: (q.kind, q.source) for key, q in toml.quantities(file)},
        host_link_bytes_per_s=host_link.value * GB
        if (host_link := file.host_link_gb_per_s)
        else None,
        power_w=file.power_watt.value if file.power_watt else None,
        machine=file.measurement.machine if file.measurement is not None else "",
    )


@lru_cache(maxsize=64)
def _load(path: str, modified_ns: int) -> Profile:
    file = toml.Path(path)
    return _build(file.stem, read_text(file), file.name)


def load_profile(name: str) -> Profile:
    """Load a device profile by name, alias or path.

    Args:
        name: A name such as ``h100-sxm``, an alias such as ``h100_sxm``, or the path of a TOML
            file.

    Raises:
        ConfigError: The profile does not exist (the text lists near matches), or its file is
            malformed (the text names the file, the key path, the rule and the value found).
    """
    path = toml.find("devices", name)
    return _load(str(path), toml.modified_ns(path))
