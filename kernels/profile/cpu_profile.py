"""A device profile of this machine's CPU, measured: primitives, never a layer.

One torch thread, caches flushed and inputs written before each timing, freed memory kept
(`moesim_kernels.cpu.layer` says why). Curves (`cpu_curves`) are what a data sheet would tell;
coefficients of `moesim.costs.devices.serial` are fitted (`fit`) to random calls of the primitives
(`moesim_kernels.cpu.primitives`), non-negative, with a robust loss on the log of the ratio, so that
a call of 20 microseconds counts as much as one of 5 milliseconds.

``low`` and ``high`` of a measured number are the P10 and P90 of its repeats; those of a fitted
coefficient are the coefficient times the P10 and P90 of measured over fitted time in its table.
``[residuals]`` has the P10 and P90 of measured over predicted time of calls that the prediction was
not fitted to: the interval of what is simulated.

Between the parts a sentinel looks whether the machine became slower, which the spread of repeats
does not show. A part after which it is more than 8 % slower is measured once more if the time
allows, and otherwise the profile is marked ``contended``.
"""

import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
from moesim_kernels.cpu.layer import CONTENDED, Sentinel, measuring
from moesim_kernels.cpu.primitives import DTYPES, Bench
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
from moesim.units import GIB

T = TypeVar("T")
#: shares of the time for random calls; what is left over pays for the curves
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
}
_MIN_CALLS, _REPEATS = 12, 2
#: longest single GEMM of the curves, and as a share of the time
_LONGEST_S, _LONGEST_SHARE = 0.06, 2.5e-3
#: what the all-to-all may take at least: most of it is the start of two processes, on a busy
#: machine half a minute
_FABRIC_S = 60.0
#: budget under which each call is timed once
_SHORT_S = 2.0


class _Watch:
    """Runs the parts of a measurement and asks the sentinel after each.

    Args:
        sentinel: As it was before.
        until: time.perf_counter() at which all parts should be done.
    """

    def __init__(self, sentinel: Sentinel, until: float) -> None:
        self.sentinel, self.until = sentinel, until
        self.slowdown = max(sentinel.slowdown(), 0.0)
        self.contended = self.slowdown > CONTENDED

    def left_s(self) -> float:
        """Seconds until then."""
        return max(self.until - time.perf_counter(), 0.0)

    def run(self, part: Callable[[], T]) -> T:
        """What the part returns; of a second try, where the machine was slower after the first."""
        started = time.perf_counter()
        found = part()
        slowdown = self.sentinel.slowdown()
        if slowdown > CONTENDED and time.perf_counter() - started < self.left_s():
            found, slowdown = part(), self.sentinel.slowdown()
        self.slowdown = max(self.slowdown, slowdown)
        self.contended |= slowdown > CONTENDED
        return found


def _calls(
    bench: Bench, table: str, seconds_s: float, repeats: int
) -> tuple[list[dict[str, float]], np.ndarray]:
    """Features and seconds of random calls of one table."""
    until = time.perf_counter() + seconds_s
    features, seconds = [], []
    while len(seconds) < _MIN_CALLS or time.perf_counter() < until:
        case = bench.case(table)
        seconds.append(bench.time_case(case, repeats))
        features.append(case.features)
    return features, np.array(seconds)


def _tables(bench: Bench, watch: _Watch) -> list[str]:
    """Lines of the serial tables but ``launch``, and of their residuals; they share the time that
    is left.
    """
    lines = []
    repeats = _REPEATS if watch.left_s() > _SHORT_S else 1
    for table, share in _SHARES.items():
        later = sum(list(_SHARES.values())[list(_SHARES).index(table) :])
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
        lines += held_out(f"residuals.{table}", held_out_ratios(features, seconds))
    return lines


def measure_profile(
    budget_s: float = 16.0,
    *,
    seed: int = 0,
    sentinel: Sentinel | None = None,
    fabric: bool = False,
    command: str = "moesim_kernels.profile.cpu_profile.measure_profile",
) -> str:
    """Measure this CPU with one torch thread.

    Args:
        budget_s: Seconds to spend, about; a few calls of each primitive are made in any case.
        seed: Of sizes and inputs.
        sentinel: Whose buffer to use, as it was before; a new one by default.
        fabric: Whether all-to-alls between two processes are measured too.
        command: What the profile says it was written by.

    Returns:
        Text of a device profile, to be saved as ``cpu-local.toml``.
    """
    started = time.perf_counter()
    host = (
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
        bench = Bench(
            seed,
            sentinel,
            {name: max(float(r.max()) for r in rates[name].values()) for name in DTYPES},
            cache,
        )
        hot, cold = cpu_curves.launch_line(), bench.small_calls()
        tables = _tables(bench, watch)
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
    """`measure_profile`, saved; the file's name without ``.toml`` is the profile's.

    Raises:
        OSError: The file cannot be written.
    """
    Path(path).write_text(
        measure_profile(budget_s, fabric=fabric, command=command), encoding="utf-8"
    )
