"""Schema of the device profiles that people and `moesim measure` write. Keys contain the units;
every number has a kind and a source.

`moesim.hardware` turns a `ProfileFile` into a `Profile` in SI units. The tables that no data sheet
has belong to a measured machine: the run itself (``[measurement]``), rates by size, coefficients
and their held-out residuals, and between processes or devices of the host the all-to-all
(``[host_fabric]``) and copies (``[[peer_copies]]``).
"""

from typing import Literal

from pydantic import Field, model_validator

from moesim.files.toml import Quantity, Sourced, Strict

#: waves: tiles on SMs, a GPU. serial: one group after another, a CPU. systolic: padded tiles on
#: matrix units, a TPU.
Execution = Literal["waves", "serial", "systolic"]


class GemmPoint(Strict):
    """The rate of a square product of ``size`` rows, columns and depth."""

    format: str
    size: int = Field(gt=0)
    tflops: Quantity


class _Compute(Strict):
    num_sms: Quantity
    clock_ghz: Quantity
    shared_memory_per_sm_kib: Quantity | None = None
    mxu_size: Quantity | None = None
    peak_tflops: dict[str, Quantity] = Field(min_length=1)
    gemm: list[GemmPoint] = []


class AccessPoint(Strict):
    """The useful share of the memory bandwidth when random rows of ``access_bytes`` are
    gathered.
    """

    access_bytes: float = Field(gt=0)
    efficiency: Quantity


class CachedAccessPoint(AccessPoint):
    """The useful share for rows of a table of ``working_set_mib`` that a cache may hold; it is
    above 1 inside the cache.
    """

    working_set_mib: float = Field(gt=0)


class StreamPoint(Strict):
    """The achieved share of the datasheet memory bandwidth when a working set is streamed; it is
    above 1 inside the cache.
    """

    working_set_mib: float = Field(gt=0)
    efficiency: Quantity


class _Hbm(Strict):
    capacity_gib: Quantity
    reserved_gib: Quantity | None = None
    bandwidth_gb_per_s: Quantity
    gather: list[AccessPoint] = Field(min_length=1)
    gather_cached: list[CachedAccessPoint] = []
    streaming: list[StreamPoint] = []


class _L2(Strict):
    capacity_mib: Quantity


class _Launch(Strict):
    kernel_us: Quantity
    #: the host's time for a launch by itself; ``kernel_us`` is then the time inside a graph
    plain_kernel_us: Quantity | None = None


class CopyPoint(Strict):
    """The rate of copies of ``bytes`` from one device's memory to that of another of the host."""

    bytes: float = Field(gt=0)
    gb_per_s: Quantity


class Measurement(Strict):
    """The run that wrote a measured profile, and whether other work ran at the same time."""

    command: str
    created: str
    machine: str
    software: str
    seconds: float = Field(gt=0)
    #: the worst slowdown of the sentinel, 0.1 for 10 %
    slowdown: float
    contended: bool


class HeldOut(Strict):
    """The P10 and P90 of measured over predicted time, on points that the prediction was not fitted
    to.
    """

    low: Quantity
    high: Quantity
    points: int = Field(gt=0)

    @model_validator(mode="after")
    def _ordered(self) -> "HeldOut":
        if self.low.value > self.high.value:
            raise ValueError(f"@high.value@a number >= low = {self.low.value}@{self.high.value}")
        return self


class AllToAllPoint(Strict):
    """A measured all-to-all of ``bytes_per_pair`` from each of ``ranks`` to each other."""

    ranks: int = Field(ge=2)
    bytes_per_pair: float = Field(gt=0)
    time_us: Quantity


class HostFabricFile(Strict):
    """The all-to-alls between the processes or devices of one host, with time = start + (ranks - 1)
    x bytes / rate.
    """

    backend: str
    start_us: Quantity
    gb_per_s: Quantity
    points: list[AllToAllPoint] = Field(min_length=1)
    residuals: HeldOut | None = None


class ProfileFile(Sourced):
    """The content of ``hw_profiles/devices/NAME.toml``: a device profile."""

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
    #: rate of one direction of the link to the host's memory, the share of one device
    host_link_gb_per_s: Quantity | None = None
    price_usd_per_hour: Quantity | None = None
    measurement: Measurement | None = None
    #: Coefficients of the serial cost model by phase and format, only in profiles measured on a
    #: CPU.
    serial: dict[str, dict[str, Quantity]] = {}
    #: Errors of these coefficients on calls that they were not fitted to.
    residuals: dict[str, HeldOut] = {}
    host_fabric: HostFabricFile | None = None
    peer_copies: list[CopyPoint] = []

    @model_validator(mode="after")
    def _complete(self) -> "ProfileFile":
        needed = "mxu_size" if self.execution == "systolic" else "shared_memory_per_sm_kib"
        if getattr(self.compute, needed) is None:
            raise ValueError(
                f"@compute.{needed}@a value for execution = {self.execution!r}@nothing"
            )
        return self
