"""Measure a device profile of this machine's CPU, from primitives and never from a layer.

There is one torch thread; caches are flushed and inputs written before each timing, and freed
memory is kept (`moesim_kernels.cpu.protocol` says why). Curves (`cpu_curves`) are what a data sheet
would give. Coefficients of `moesim.costs.devices.serial` are fitted (`fit`) to random calls of the
primitives (`moesim_kernels.cpu.primitives`); they are non-negative, with a robust loss on the log
of the ratio, so that a call of 20 microseconds counts as much as one of 5 milliseconds.

``low`` and ``high`` of a measured number are the P10 and P90 of its repeats; for a fitted
coefficient they are the coefficient times the P10 and P90 of measured over fitted time in its
table. ``[residuals]`` has the P10 and P90 of measured over predicted time of calls that were left
out of the fit of the prediction: this is the interval of what is simulated.

Between the parts a sentinel checks whether the machine became slower, which the spread of repeats
does not show. If the machine is more than 8 % slower after a part, the part is measured once more
if the time allows; otherwise the profile is marked ``contended``.
"""

import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
from moesim_kernels.cpu.primitives import DTYPES, Bench
from moesim_kernels.cpu.protocol import CONTENDED, Sentinel, measuring
from moesim_kernels.profile import cpu_curves
from moesim_kernels.profile.fit import fit, held_out_ratios
from moesim_kernels.profile.host_fabric import fabric_or_why, measure_gloo
from moesim_kernels.profile.text import (
    cpu,
    held_out,
    measurement,
    memory_bytes,
    quantity,
    software,
    sources,
    spread,
)

from moesim.costs.devices import serial
from moesim.files.output import write_file
from moesim.units import GIB

T = TypeVar("T")
#: shares of the remaining time that the random calls of each table get
_SHARES = {
    "gemm_float32": 0.28,
    "gemm_bfloat16": 0.31,
    "stream": 0.18,
    "top_k": 0.07,
    "softmax": 0.04,
    "cast": 0.02,
    "mask": 0.02,
    "align": 0.04,
    "gather": 0.04,
    "adamw_float32": 0.02,
    "adamw_bfloat16": 0.02,
}
#: tables that only training steps use
_OF_TRAINING = ("adamw_float32", "adamw_bfloat16")
# Calls of each table at least, and repeats of each call.
_MIN_CALLS, _REPEATS = 12, 2
#: seconds of the longest single GEMM of the curves, and the same as a share of the time
_LONGEST_S, _LONGEST_SHARE = 0.06, 2.5e-3
#: shortest timeout of the all-to-all in seconds: most of it is the start of two processes, which
#: takes half a minute on a busy machine
_FABRIC_S = 60.0
#: time left in seconds, below which each call is timed once
_SHORT_S = 2.0


class _Watch:
    """Runs the parts of a measurement and asks the sentinel after each.

    Args:
        sentinel: Sentinel in its state before the measurement.
        until: Value of time.perf_counter() at which all parts should be done.
    """

    def __init__(self, sentinel: Sentinel, until: float) -> None:
        self.sentinel, self.until = sentinel, until
        self.slowdown = max(sentinel.slowdown(), 0.0)
        self.contended = self.slowdown > CONTENDED

    def left_s(self) -> float:
        """Return the seconds until all parts should be done."""
        return max(self.until - time.perf_counter(), 0.0)

    def run(self, part: Callable[[], T]) -> T:
        """Return the result of the part; of a second attempt, if the machine was slower after the
        first.
        """
        started = time.perf_counter()
        found = part()
        slowdown = self.sentinel.slowdown()
        # A second attempt only if the time left covers what the first one took.
        if slowdown > CONTENDED and time.perf_counter() - started < self.left_s():
            found, slowdown = part(), self.sentinel.slowdown()
        self.slowdown = max(self.slowdown, slowdown)
        self.contended |= slowdown > CONTENDED
        return found


def _calls(
    bench: Bench, table: str, seconds_s: float, repeats: int
) -> tuple[list[dict[str, float]], np.ndarray]:
    """Return features and seconds of random calls of one table."""
    until = time.perf_counter() + seconds_s
    features, seconds = [], []
    while len(seconds) < _MIN_CALLS or time.perf_counter() < until:
        case = bench.case(table)
        seconds.append(bench.time_case(case, repeats))
        features.append(case.features)
    return features, np.array(seconds)


def _tables(bench: Bench, watch: _Watch, shares: dict[str, float]) -> list[str]:
    """Return the lines of the serial tables except ``launch``, and of their residuals; the tables
    share the time that is left.
    """
    lines = []
    repeats = _REPEATS if watch.left_s() > _SHORT_S else 1
    for table, share in shares.items():
        # A table gets its share of the time that this table and the later ones have left.
        later = sum(list(shares.values())[list(shares).index(table) :])
        features, seconds = watch.run(
            partial(_calls, bench, table, watch.left_s() * share / later, repeats)
        )
        coefficients, low, high = fit(features, seconds)
        lines += [
            f"[serial.{table}]",
            *(
                f"{key} = {quantity(value, source='fit', low=low * value, high=high * value)}"
                for key, value in coefficients.items()
            ),
        ]
        # The residuals come from calls left out of a fit, so they are honest intervals.
        lines += held_out(f"residuals.{table}", held_out_ratios(features, seconds))
    return lines


def measure_profile(
    budget_s: float = 16.0,
    *,
    seed: int = 0,
    sentinel: Sentinel | None = None,
    fabric: bool = False,
    training: bool = True,
    command: str = "moesim_kernels.profile.cpu_profile.measure_profile",
) -> str:
    """Measure this CPU with one torch thread.

    Args:
        budget_s: About how many seconds to spend; a few calls of each primitive are made in any
            case.
        seed: Seed of sizes and inputs.
        sentinel: Sentinel in its state before the measurement; a new one by default.
        fabric: Whether all-to-alls between two processes are measured too.
        training: Whether the optimizer is measured too, whose module takes seconds to load.
        command: Command that the profile names as its origin.

    Returns:
        Text of a device profile, to be saved as ``cpu-local.toml``.
    """
    started = time.perf_counter()
    host = (
        # Measured first, apart from the parts that the sentinel watches.
        fabric_or_why("gloo", partial(measure_gloo, timeout_s=max(budget_s, _FABRIC_S)))
        if fabric
        else []
    )
    with measuring():
        watch = _Watch(sentinel or Sentinel(), started + budget_s)
        sentinel = watch.sentinel
        rates = watch.run(
            partial(cpu_curves.gemm_rates, min(_LONGEST_S, _LONGEST_SHARE * budget_s))
        )
        streams = watch.run(lambda: cpu_curves.stream_rates(sentinel))
        cache = cpu_curves.cache_bytes(streams)
        memory = watch.run(lambda: cpu_curves.memory_lines(sentinel, streams, cache))
        # Random sizes depend on the peak rates and the cache that were just measured.
        bench = Bench(
            seed,
            sentinel,
            {name: max(float(r.max()) for r in rates[name].values()) for name in DTYPES},
            cache,
        )
        hot, cold = cpu_curves.launch_line(), bench.small_calls()
        shares = {t: share for t, share in _SHARES.items() if training or t not in _OF_TRAINING}
        tables = _tables(bench, watch, shares)
    name, clock = cpu()
    where = f"{name}, {software()}, one thread"
    return "\n".join(
        [
            f"title = {json.dumps(f'This CPU, one thread: {name}')}",
            'execution = "serial"',
            'calibration = "none"',
            *measurement(
                machine=name,
                command=command,
                seconds=time.perf_counter() - started,
                slowdown=watch.slowdown,
                contended=watch.contended,
            ),
            "[compute]",
            f"num_sms = {quantity(1.0, kind='assumed', source='thread')}",
            f"clock_ghz = {quantity(clock or 3.0, kind='assumed', source='clock')}",
            (
                "shared_memory_per_sm_kib = "
                f"{quantity(serial.OWN_CACHE_BYTES / 1024, kind='assumed', source='thread')}"
            ),
            *cpu_curves.gemm_lines(rates),
            "[hbm]",
            f"capacity_gib = {quantity(memory_bytes() / GIB)}",
            *memory,
            "[launch]",
            hot,
            "[serial.launch]",
            f"call_s = {spread(cold)}",
            *tables,
            *host,
            *sources(
                [
                    (
                        "protocol",
                        (
                            "moesim_kernels: repeated calls by thread time, caches flushed, "
                            "freed memory kept"
                        ),
                        where,
                    ),
                    (
                        "fit",
                        (
                            "moesim_kernels: non-negative fit to stand-alone primitives of "
                            "random sizes"
                        ),
                        (
                            f"{where}; low and high: P10 and P90 of measured over fitted time; "
                            "residuals: of calls left out"
                        ),
                    ),
                    (
                        "thread",
                        "One thread on one core; a core of its own has a cache of about 1 MiB",
                        "assumed",
                    ),
                    (
                        "clock",
                        "Clock the operating system reports" if clock else "A usual clock",
                        "assumed; prices do not use it",
                    ),
                ]
            ),
            "",
        ]
    )


def write_profile(
    path: str | Path,
    budget_s: float = 16.0,
    *,
    fabric: bool = False,
    command: str = "moesim_kernels.profile.cpu_profile.write_profile",
) -> None:
    """Save the result of `measure_profile`; the file's name without ``.toml`` is the profile's
    name.

    Raises:
        ConfigError: The file cannot be written.
    """
    write_file(Path(path), measure_profile(budget_s, fabric=fabric, command=command))
