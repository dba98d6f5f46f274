"""Measure a device profile of this machine's GPU: GEMMs, streams, gathers, launches, and copies and
all-to-alls between its GPUs.

Peak rates, bandwidth, and clock of a profile are data sheet figures, since calibrated prices are
shares of them and cycles of it (`moesim.costs.devices.gpu`). A GPU that a shipped profile describes
keeps that profile's figures; its clock is the one the calibration counts in, not the highest that
the driver allows. For any other GPU the clock is the driver's, and the other figures are derived:
at them the calibrated model reaches what was measured here. Measured rates by format and size,
curves by access size and working set, and launch times are recorded with minimum, median, P10, and
P90.

Calls are timed by what more of them add to a CUDA graph (`moesim_kernels.timing.graphs`), on
random data; the median counts. Bandwidths are those beside the launch, whose time in a graph is
subtracted, since prices add launches by themselves; GEMM rates contain it. Launches have two times:
between two kernels of a graph, and what the host needs for one by itself. Copies between GPUs
cannot be captured, so that they are queued behind a kernel that spins until all are launched.
"""

import json
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from moesim_kernels.cpu.protocol import CONTENDED
from moesim_kernels.ops.runtime import device as kernel_device
from moesim_kernels.ops.runtime import triton
from moesim_kernels.profile.gpu_curves import (
    COPY_BYTES,
    GEMM_SIZES,
    Timer,
    copy_rates,
    gather_rates,
    gemm_rates,
    host_launch_seconds,
    launch_seconds,
    stream_rates,
)
from moesim_kernels.profile.host_fabric import fabric_or_why, measure_nccl
from moesim_kernels.profile.text import measurement, quantity, software, sources, spread
from moesim_kernels.timing.graphs import CudaClock, GpuClock, per_call_seconds

from moesim.costs.calibration import CalibrationFile
from moesim.errors import MeasurementError
from moesim.files import toml
from moesim.files.output import write_file
from moesim.hardware import Profile, load_profile
from moesim.report.terminal import say
from moesim.units import GB, GIB, KIB, MIB, TERA, US

Array = np.ndarray
CALIBRATION = "triton-moe"
#: shortest timeout of the all-to-all in seconds; most of it is the start of the ranks
_FABRIC_S = 20.0
#: share of the time that one number gets; about seventy are measured
_SHARE = 0.01


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """Properties of a GPU that its driver reports.

    Attributes:
        name: Name of the GPU.
        compute_capability: Compute capability on NVIDIA, otherwise None.
        num_sms: Number of multiprocessors or compute units.
        clock_hz: Highest clock rate.
        shared_bytes: Shared memory of a multiprocessor.
        memory_bytes: Size of the GPU's memory.
        l2_bytes: Size of the GPU's L2 cache.
        count: Number of GPUs in this machine.
    """

    name: str
    compute_capability: float | None
    num_sms: int
    clock_hz: float
    shared_bytes: int
    memory_bytes: int
    l2_bytes: int
    count: int

    @classmethod
    def here(cls) -> "Gpu":
        """Return the current GPU.

        Raises:
            MeasurementError: The driver does not report a property that is needed.
        """
        driver = triton.runtime.driver.active
        told = driver.utils.get_device_properties(driver.get_current_device())
        properties = torch.cuda.get_device_properties(driver.get_current_device())
        # AMD's major and minor version are not a compute capability.
        nvidia = driver.get_current_target().backend == "cuda"
        try:
            return cls(
                name=properties.name,
                num_sms=told["multiprocessor_count"],
                compute_capability=properties.major + properties.minor / 10 if nvidia else None,
                clock_hz=told["sm_clock_rate"] * 1e3,
                memory_bytes=properties.total_memory,
                # Some builds of torch do not report it; then the most that one program gets stands
                # for it.
                shared_bytes=getattr(
                    properties, "shared_memory_per_multiprocessor", told["max_shared_mem"]
                ),
                l2_bytes=properties.L2_cache_size,
                count=torch.cuda.device_count(),
            )
        except (AttributeError, KeyError) as error:
            raise MeasurementError(f"gpu: the driver does not tell {error}") from None

    def shipped(self) -> Profile | None:
        """Return the shipped profile of this GPU: the first part of its name occurs in the GPU's
        name, and the multiprocessors agree.
        """
        for name in toml.names("devices"):
            if name.split("-")[0] in self.name.lower().replace(" ", "-").split("-"):
                profile = load_profile(name)
                if profile.execution == "waves" and profile.num_sms == self.num_sms:
                    return profile
        return None


def _parameters() -> dict[str, float]:
    path = toml.find("calibration", CALIBRATION)
    return toml.parse(path.read_text(encoding="utf-8"), CalibrationFile, path.name).parameters


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """What measures: timers, and where tensors lie.

    Attributes:
        timer: Function that times calls captured in graphs.
        queue: Function that times calls that cannot be captured.
        wait: Function that waits for the GPU.
        device: The GPU.
        peer: Another GPU of this machine, or None if there is none.
    """

    timer: Timer
    queue: Timer
    wait: Callable[[], object]
    device: torch.device
    peer: torch.device | None = None

    @classmethod
    def of(cls, clock: GpuClock, device: torch.device, budget_s: float, count: int) -> "Bench":
        """Return timers by a GPU's clock.

        Args:
            clock: The clock.
            device: The GPU.
            budget_s: About how many seconds of the GPU one number takes.
            count: Number of GPUs in this machine.
        """

        def timer(call: Callable[[], object], flush: bool, graph: bool = True) -> Array:
            return per_call_seconds(clock, call, cold=flush, budget_s=budget_s, graph=graph)

        other = ((device.index or 0) + 1) % count
        return cls(
            timer=timer,
            queue=partial(timer, graph=False),
            wait=torch.cuda.synchronize,
            device=device,
            peer=torch.device(device.type, other) if count > 1 else None,
        )


def profile_text(
    gpu: Gpu,
    bench: Bench,
    *,
    command: str,
    largest_bytes: int = 4 << 30,
    sizes: Sequence[int] = GEMM_SIZES,
    host: Sequence[str] = (),
    tell: Callable[[str], None] = say,
) -> str:
    """Measure and compose a profile.

    Args:
        gpu: Properties that the driver reports.
        bench: What measures.
        command: Command that the profile names as its origin.
        largest_bytes: Size of the largest working set; at most an eighth of the memory is used.
        sizes: Sizes of the square products.
        host: Lines of ``[host_fabric]``.
        tell: Function that is told what is measured next, and what is not.

    Raises:
        MeasurementError: More calls take no longer than fewer.
    """
    started = time.perf_counter()
    timer, device = bench.timer, bench.device
    largest = min(largest_bytes, gpu.memory_bytes // 8)
    tell("measuring launches")
    launch = launch_seconds(timer, device)
    plain = host_launch_seconds(device, bench.wait)
    launch_s = float(np.median(launch))
    tell(f"measuring GEMMs of {sizes[0]} to {sizes[-1]} rows")
    rates = gemm_rates(timer, device, sizes)
    tell("measuring streams")
    streams = stream_rates(timer, device, gpu.l2_bytes, largest, launch_s)
    shipped, parameters = gpu.shipped(), _parameters()
    # The fastest product of each format, whatever its size.
    best = {
        name: max(float(np.median(r)) for r in by_size.values()) for name, by_size in rates.items()
    }
    far = float(np.median(streams[max(streams)]))
    if shipped is not None:
        peaks, bandwidth = shipped.peak_flops_per_s, shipped.hbm_bandwidth_bytes_per_s
    else:
        # The model takes a share of the peak, so the measured rate is divided by that share.
        peaks = {name: rate / parameters["mma_efficiency"] for name, rate in best.items()}
        bandwidth = far / parameters["activation_bandwidth_efficiency"]

    def figure(value: float, key: str) -> str:
        """Return a figure that is as certain as the shipped profile's."""
        return quantity(
            value, kind=shipped.provenance[key][0] if shipped else "derived", source="figures"
        )

    driver = partial(quantity, kind="datasheet", source="driver")
    clock = driver(gpu.clock_hz / 1e9)
    if shipped is not None:
        clock = figure(shipped.clock_hz / 1e9, "compute.clock_ghz")

    def shares(measured: Array) -> str:
        return f"efficiency = {spread(measured / bandwidth)}"

    lines = [f"title = {json.dumps(f'This GPU: {gpu.name}')}", f'calibration = "{CALIBRATION}"']
    lines += (
        [f"compute_capability = {gpu.compute_capability}"]
        if gpu.compute_capability is not None
        else []
    )
    tables = [
        "[compute]",
        f"num_sms = {driver(gpu.num_sms)}",
        f"clock_ghz = {clock}",
        f"shared_memory_per_sm_kib = {driver(gpu.shared_bytes / KIB)}",
        "[compute.peak_tflops]",
        *(
            f"{name} = {figure(rate / TERA, f'compute.peak_tflops.{name}')}"
            for name, rate in peaks.items()
        ),
    ]
    tables += [
        line
        for name, by_size in rates.items()
        for size, r in by_size.items()
        for line in (
            "[[compute.gemm]]",
            f'format = "{name}"',
            f"size = {size}",
            f"tflops = {spread(r / TERA)}",
        )
    ]
    tables += [
        "[hbm]",
        f"capacity_gib = {driver(gpu.memory_bytes / GIB)}",
        f"bandwidth_gb_per_s = {figure(bandwidth / GB, 'hbm.bandwidth_gb_per_s')}",
    ]
    tell("measuring gathers")
    # Random reads of a working set far larger than L2, flushed, come from memory.
    moved = max(largest // 8, 1 << 12)
    tables += [
        line
        for access, r in _gathers(bench, largest, moved, launch_s, cold=True)
        for line in ("[[hbm.gather]]", f"access_bytes = {float(access)}", shares(r))
    ]
    # A quarter of L2 stays in L2.
    near = max(gpu.l2_bytes // 4, 1 << 12)
    tables += [
        line
        for access, r in _gathers(bench, near, near, launch_s, cold=False)
        for line in (
            "[[hbm.gather_cached]]",
            f"access_bytes = {float(access)}",
            f"working_set_mib = {near / MIB}",
            shares(r),
        )
    ]
    tables += [
        line
        for size, r in streams.items()
        for line in ("[[hbm.streaming]]", f"working_set_mib = {size / MIB}", shares(r))
    ]
    tables += [
        "[l2]",
        f"capacity_mib = {driver(gpu.l2_bytes / MIB)}",
        "[launch]",
        f"kernel_us = {spread(launch / US)}",
        f"plain_kernel_us = {spread(plain / US, source='host')}",
        *_copies(gpu, bench, tell),
        *host,
    ]
    where = f"{gpu.name}, {software()}"
    described = [
        (
            "protocol",
            "moesim_kernels: what more calls add to a CUDA graph, random data, medians",
            where,
        ),
        ("host", "moesim_kernels: the host's clock around launches through Triton, medians", where),
        ("driver", "What the GPU's driver tells", gpu.name),
        (
            "figures",
            f"Figures of the shipped profile {shipped.name}"
            if shipped
            else "Figures at which the calibrated model reaches the best measured rate",
            "moesim profiles NAME shows their sources" if shipped else f"calibration {CALIBRATION}",
        ),
    ]
    if bench.peer is not None:
        described.append(
            ("copies", "moesim_kernels: what more copies add to queued ones, medians", where)
        )
    if host:
        described.append(
            (
                "fit",
                (
                    "moesim_kernels.profile.host_fabric: start and rate fitted to this host's "
                    "all-to-alls"
                ),
                where,
            )
        )
    # The sentinel: the largest stream is measured once more, after everything else.
    again = stream_rates(timer, device, 4 * max(streams), max(streams), launch_s)[max(streams)]
    slowdown = far / float(np.median(again)) - 1.0
    about = measurement(
        machine=gpu.name,
        command=command,
        seconds=time.perf_counter() - started,
        slowdown=slowdown,
        contended=slowdown > CONTENDED,
    )
    return "\n".join([*lines, *about, *tables, *sources(described), ""])


def _gathers(
    bench: Bench, table: int, moved: int, launch_s: float, *, cold: bool
) -> Iterable[tuple[int, Array]]:
    rates = gather_rates(bench.timer, bench.device, table, moved, cold=cold, launch_s=launch_s)
    return rates.items()


def _copies(gpu: Gpu, bench: Bench, tell: Callable[[str], None]) -> list[str]:
    """Return the lines of ``[[peer_copies]]``; with one GPU none, and say so."""
    if bench.peer is None:
        tell("copies between GPUs: not measured, there is one GPU here")
        return []
    rates = copy_rates(bench.queue, bench.device, bench.peer, COPY_BYTES)
    size = max(rates)
    tell(
        f"copies to one of the {gpu.count} GPUs from another: "
        f"{float(np.median(rates[size])) / GB:.0f} GB/s at {size / MIB:.0f} MiB"
    )
    return [
        line
        for size, r in rates.items()
        for line in (
            "[[peer_copies]]",
            f"bytes = {float(size)}",
            f"gb_per_s = {spread(r / GB, source='copies')}",
        )
    ]


def write_profile(path: str | Path, seconds: float, *, command: str) -> None:
    """Measure the current GPU for about ``seconds`` and save its profile.

    Raises:
        MeasurementError: The driver does not report a property that is needed, or more calls take
            no longer than fewer.
        ConfigError: The file cannot be written.
    """
    gpu = Gpu.here()
    # Measured first: the ranks are processes that use the GPUs, too.
    exchange = partial(measure_nccl, gpu.count, timeout_s=max(seconds, _FABRIC_S))
    host = fabric_or_why("nccl", exchange) if gpu.count > 1 else []
    bench = Bench.of(CudaClock(gpu.clock_hz), kernel_device(), _SHARE * seconds, gpu.count)
    text = profile_text(gpu, bench, command=command, host=host)
    write_file(Path(path), text)
