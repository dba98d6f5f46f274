"""Device profiles: what a chip can do, each number with its kind and its source.

`ProfileFile` is the file as people write it (units in the keys); `Profile` is what the rest of moesim reads, in SI
units. A profile never holds fitted efficiencies: those live in calibration files, with what they were fitted on.
"""

import hashlib
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
from pydantic import Field

from moesim import configfile
from moesim.configfile import Quantity, Sourced, Strict
from moesim.units import GB, GIB, KIB, MIB, TERA, US

Execution = Literal["waves", "serial"]


class _Compute(Strict):
    num_sms: Quantity
    clock_ghz: Quantity
    shared_memory_per_sm_kib: Quantity
    peak_tflops: dict[str, Quantity] = Field(min_length=1)


class AccessPoint(Strict):
    """Useful share of the memory bandwidth when random rows of ``access_bytes`` are gathered."""

    access_bytes: float = Field(gt=0)
    efficiency: Quantity


class StreamPoint(Strict):
    """Achieved share of the datasheet memory bandwidth when a working set is streamed; above 1 inside the cache."""

    working_set_mib: float = Field(gt=0)
    efficiency: Quantity


class _Hbm(Strict):
    capacity_gib: Quantity
    reserved_gib: Quantity | None = None
    bandwidth_gb_per_s: Quantity
    gather: list[AccessPoint] = Field(min_length=1)
    streaming: list[StreamPoint] = []


class _L2(Strict):
    capacity_mib: Quantity


class _Launch(Strict):
    kernel_us: Quantity


class ProfileFile(Sourced):
    """A device profile as written in ``hw_profiles/devices/NAME.toml``."""

    title: str
    aliases: list[str] = []
    execution: Execution = "waves"
    compute_capability: float | None = None
    calibration: str
    compute: _Compute
    hbm: _Hbm
    l2: _L2
    launch: _Launch
    power_watt: Quantity | None = None
    price_usd_per_hour: Quantity | None = None
    #: Coefficients of the serial cost model, by phase and format: only in profiles measured on a CPU.
    serial: dict[str, dict[str, Quantity]] = {}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Profile:
    """One device, in SI units.

    Attributes:
        name: Name it was loaded by its file.
        execution: ``waves`` (tiles on SMs, a GPU) or ``serial`` (one group after another, a CPU).
        compute_capability: NVIDIA's, or None.
        calibration: Name of the calibration file of its kernels.
        peak_flops_per_s: Dense peak by format.
        num_sms: Streaming multiprocessors (1 for ``serial``).
        clock_hz: Sustained clock under a matrix load.
        shared_memory_per_sm_bytes: What CTAs on one SM share.
        hbm_capacity_bytes: Memory of the device.
        hbm_reserved_bytes: What driver, framework and communication buffers take of it.
        hbm_bandwidth_bytes_per_s: Its streaming bandwidth.
        gather_access_bytes: Access sizes of the gather curve, ascending.
        gather_efficiency: Useful share of the bandwidth at these sizes.
        streaming_bytes: Working sets of the streaming curve, ascending; empty where it is not known.
        streaming_efficiency: Share of the datasheet bandwidth at these working sets.
        l2_bytes: Last-level cache.
        kernel_launch_s: Time between two dependent small kernels.
        serial: Coefficients of the serial cost model by phase (seconds, or seconds per unit).
        digest: First 12 hex digits of the file's SHA-256: the profile hash in results.
        provenance: Kind and source of every number, by key path.
    """

    name: str
    execution: Execution
    compute_capability: float | None
    calibration: str
    peak_flops_per_s: dict[str, float]
    num_sms: int
    clock_hz: float
    shared_memory_per_sm_bytes: float
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
    digest: str
    provenance: dict[str, tuple[str, str]]

    @property
    def usable_bytes(self) -> float:
        """Memory a model may fill."""
        return self.hbm_capacity_bytes - self.hbm_reserved_bytes

    def peak(self, fmt: str) -> float:
        """Dense FLOP/s at a format.

        Raises:
            ConfigError: The device has no rate for it.
        """
        try:
            return self.peak_flops_per_s[fmt]
        except KeyError:
            raise configfile.ConfigError(
                f"{self.name}: no compute rate for {fmt}; it has {', '.join(self.peak_flops_per_s)}"
            ) from None

    def gather_share(self, access_bytes: float) -> float:
        """Useful share of the bandwidth when rows of ``access_bytes`` are gathered (log-linear between points)."""
        return float(np.interp(np.log(access_bytes), np.log(self.gather_access_bytes), self.gather_efficiency))


    def cache_speed_up(self, working_set_bytes: np.ndarray | float) -> np.ndarray:
        """How much faster a working set is streamed than one far larger than the cache (log-linear between points).

        Args:
            working_set_bytes: Bytes that are streamed again and again, any shape.

        Returns:
            ndarray of the same shape, >= 1 where the curve falls with size; 1 where no curve is known.
        """
        size = np.maximum(np.asarray(working_set_bytes, dtype=np.float64), 1.0)
        if not self.streaming_bytes:
            return np.ones_like(size)
        share = np.interp(np.log(size), np.log(self.streaming_bytes), self.streaming_efficiency)
        return share / self.streaming_efficiency[-1]


def _build(path_name: str, text: str, where: str) -> Profile:
    file = configfile.parse(text, ProfileFile, where)
    num_sms = file.compute.num_sms.value
    if not num_sms.is_integer():
        raise configfile.ConfigError(f"{where}: compute.num_sms.value: expected an integer >= 1, got {num_sms}")
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
        shared_memory_per_sm_bytes=file.compute.shared_memory_per_sm_kib.value * KIB,
        hbm_capacity_bytes=file.hbm.capacity_gib.value * GIB,
        hbm_reserved_bytes=file.hbm.reserved_gib.value * GIB if file.hbm.reserved_gib else 0.0,
        hbm_bandwidth_bytes_per_s=file.hbm.bandwidth_gb_per_s.value * GB,
        gather_access_bytes=tuple(p.access_bytes for p in points),
        gather_efficiency=tuple(p.efficiency.value for p in points),
        streaming_bytes=tuple(p.working_set_mib * MIB for p in streams),
        streaming_efficiency=tuple(p.efficiency.value for p in streams),
        l2_bytes=file.l2.capacity_mib.value * MIB,
        kernel_launch_s=file.launch.kernel_us.value * US,
        serial={phase: {k: q.value for k, q in table.items()} for phase, table in file.serial.items()},
        digest=hashlib.sha256(text.encode()).hexdigest()[:12],
        provenance={key: (q.kind, q.source) for key, q in configfile.quantities(file)},
    )


@lru_cache(maxsize=64)
def _load(path: str, modified_ns: int) -> Profile:
    file = configfile.Path(path)
    return _build(file.stem, configfile.read_text(file), file.name)


def load_profile(name: str) -> Profile:
    """Load a device profile by name, alias or path.

    Args:
        name: ``h100-sxm``, an alias such as ``h100_sxm``, or the path of a TOML file.

    Raises:
        ConfigError: No such profile (with near matches), or a malformed file (file, key path, rule, what came).
    """
    path = configfile.find("devices", name)
    return _load(str(path), path.stat().st_mtime_ns)
