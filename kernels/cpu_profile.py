"""A device profile of this machine's CPU, measured: primitives, never a layer.

One torch thread, caches flushed and inputs written before each timing, freed memory kept (`moesim_kernels.cpu_layer`
says why). Just before a timed call the same call runs on a few elements: that brings its code back, whose cost is
measured once, as ``launch.call_s``, and not in every primitive again. Random sizes cover what layers ask for; the
coefficients of `moesim.costs.serial` are fitted to them, non-negative, with a robust loss on the log of the ratio, so
that a call of 20 microseconds counts as much as one of 5 milliseconds. A term that fewer than three calls exercised
stays 0: left free, it would be anything.

``low`` and ``high`` of a measured number are the P10 and P90 of its repeats; those of a fitted coefficient are the
coefficient times the P10 and P90 of measured over fitted time in its table.
"""

import json
import math
import os
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import numpy as np
import torch
from moesim_kernels.cpu_layer import Sentinel, activate, add_up, align, choose, measuring, thread_clock
from scipy.optimize import least_squares, nnls
from torch.nn.functional import grouped_mm

from moesim.costs import serial
from moesim.units import GB, GIB, MIB, TERA, US

Array = np.ndarray
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
#: shares of the budget; what is left over pays for the machine's own numbers
_SHARES = {"gemm_float32": 0.31, "gemm_bfloat16": 0.31, "stream": 0.22, "top_k": 0.07, "align": 0.04, "gather": 0.05}
_MIN_CALLS, _MIN_USES, _REPEATS = 12, 3, 2
#: longest GEMM, and bytes of the largest tensors
_GEMM_S, _MAX_BYTES = 4e-3, 32 << 20
_APART_BYTES = 8 << 20
_ACCESS_BYTES = (64, 256, 1024, 4096)
_SMALL_CALLS = 19


@dataclass(frozen=True, slots=True, kw_only=True)
class _Case:
    """One call to time.

    Attributes:
        features: Terms of its table in `moesim.costs.serial`.
        write: Writes its inputs.
        call: The call.
        small: The same call on a few elements.
        dtype: Format of its numbers.
        cold: Whether caches are flushed before it.
        apart: Whether a GEMM lies between the writing of its inputs and the call, so that they left the core's cache.
    """

    features: dict[str, float]
    write: Callable[[], object]
    call: Callable[[], object]
    small: Callable[[], object]
    dtype: torch.dtype = torch.float32
    cold: bool = True
    apart: bool = False


class _Bench:
    """Random calls of every primitive, and their times."""

    def __init__(self, seed: int, sentinel: Sentinel | None) -> None:
        self.rng = np.random.default_rng(seed)
        self.generator = torch.Generator().manual_seed(seed)
        self.sentinel = sentinel or Sentinel()
        self.clock = thread_clock()
        self.weights = torch.ones(2 * _MAX_BYTES // 4)
        self.peak = {name: self._peak(dtype) for name, dtype in DTYPES.items()}
        self.cache_bytes = self._cache_bytes()

    def time(self, call: Callable[[], object], repeats: int, before: Callable[[], object] = lambda: None) -> Array:
        """Seconds of each repeat: ndarray of shape (repeats,)."""
        seconds = np.empty(repeats)
        for repeat in range(repeats):
            before()
            start = self.clock()
            call()
            seconds[repeat] = self.clock() - start
        return seconds

    def time_case(self, case: _Case, repeats: int) -> float:
        """Median of some repeats, after a call that is not counted."""
        def before() -> None:
            self.sentinel.settle(case.dtype, flush=case.cold)
            case.write()
            if case.apart:
                self.sentinel.buffer[: _APART_BYTES // 4].sum()
            case.small()

        before()
        case.call()
        return float(np.median(self.time(case.call, repeats, before)))

    def _peak(self, dtype: torch.dtype) -> Array:
        """FLOP/s of repeats of the largest square GEMM that takes under 30 ms."""
        rates = np.zeros(1)
        for size in (256, 512, 1024):
            flops = 2.0 * size**3
            if rates.any() and flops / rates.max() > 0.03:
                break
            left, right = torch.ones(size, size, dtype=dtype), torch.ones(1, size, size, dtype=dtype)
            ends = torch.tensor([size], dtype=torch.int32)
            call = partial(grouped_mm, left, right, offs=ends)
            call()
            rates = flops / self.time(call, 5)
        return rates

    def _cache_bytes(self) -> float:
        """Working set up to which reading again is nearer to the cache's rate than to the memory's."""
        sizes = (2.0 ** np.arange(22, 27.01, 0.5)).astype(int)
        rates = np.array([size / self.time(self.sentinel.buffer[: size // 4].sum, 4)[1:].min() for size in sizes])
        near = rates >= math.sqrt(rates.max() * rates[-1])
        return float(sizes[np.flatnonzero(near)[-1]])

    def size(self, low: float, high: float, multiple: int = 1) -> int:
        """A size, uniform in its logarithm."""
        exact = math.exp(self.rng.uniform(math.log(low), math.log(high)))
        return max(round(exact / multiple), 1) * multiple

    def gemm(self, name: str) -> _Case:
        """A grouped GEMM over ragged groups, some of them empty; a quarter with caches left as they are."""
        dtype, limit = DTYPES[name], 0.5 * _GEMM_S * self.peak[name].max()
        while True:
            depth, columns = self.size(32, 2048, 16), self.size(32, 2048, 16)
            groups, rows = self.size(1, 128), self.size(1, 2048)
            touched = groups * max(columns * depth, rows * (columns + depth)) * dtype.itemsize
            if groups * rows * columns * depth < limit and touched <= 2 * _MAX_BYTES:
                break
        # each row count is compiled in bfloat16: some calls have one, some many
        kinds = np.ceil(rows * self.rng.uniform(0.1, 1.0, self.size(1, 16))).astype(int)
        counts = self.rng.choice(kinds, groups) * (self.rng.random(groups) < 0.9)
        counts[0] = rows
        num_weights, cold = groups * columns * depth, bool(self.rng.random() < 0.75)
        pool = self.weights.view(dtype)
        first = int(self.rng.integers(0, pool.numel() - num_weights + 1)) // 64 * 64
        weights = pool[first : first + num_weights].view(groups, columns, depth).transpose(1, 2)
        inputs = torch.randn(int(counts.sum()), depth, generator=self.generator).to(dtype)
        few, few_weights = torch.ones(16, 16, dtype=dtype), torch.ones(1, 16, 16, dtype=dtype)
        bytes_touched = (np.count_nonzero(counts) * columns * depth + counts.sum() * (columns + depth)) * dtype.itemsize
        away = 1.0 if cold else float(serial.missing(bytes_touched, self.cache_bytes))
        return _Case(
            features=serial.gemm_features(counts, columns, depth, weight_bytes=dtype.itemsize, away=away),
            write=inputs.neg_, dtype=dtype, cold=cold,
            call=partial(grouped_mm, inputs, weights, offs=torch.from_numpy(counts.cumsum()).int()),
            small=partial(grouped_mm, few, few_weights, offs=torch.tensor([16], dtype=torch.int32)),
        )

    def top_k(self, _: str) -> _Case:
        """Softmax and top-k of fresh random rows."""
        while True:
            rows, columns, k = self.size(8, 4096), self.size(2, 1024), self.size(1, 16)
            if k <= columns and rows * columns <= 1 << 19:
                break
        logits, few = torch.empty(rows, columns), torch.randn(2, 4)
        return _Case(features=serial.top_k_features(rows, columns, k), call=partial(choose, logits, k), cold=False,
                     write=lambda: logits.normal_(generator=self.generator), small=partial(choose, few, 2))

    def align(self, _: str) -> _Case:
        """Sort and histogram of fresh random ids."""
        rows, experts = self.size(8, 32767), self.size(2, 1024)
        ids, few = torch.empty(rows, dtype=torch.int64), torch.arange(8)
        return _Case(features=serial.align_features(np.float64(rows), experts), small=partial(align, few, 8, 2),
                     cold=False, write=lambda: ids.random_(0, experts, generator=self.generator),
                     call=partial(align, ids, experts, 2))

    def _routed(self, dtype: torch.dtype) -> tuple[int, int, int, torch.Tensor]:
        """Tokens, pairs, hidden size, and the token of each pair in a random order."""
        while True:
            tokens, k, hidden = self.size(8, 4096), self.size(1, 8), self.size(64, 2048, 16)
            if tokens * k * hidden * dtype.itemsize <= _MAX_BYTES:
                break
        return tokens, tokens * k, hidden, torch.randperm(tokens * k, generator=self.generator) // k

    def gather(self, _: str) -> _Case:
        """Rows of tokens in the order of their experts."""
        dtype = DTYPES["float32" if self.rng.random() < 0.5 else "bfloat16"]
        tokens, rows, hidden, token = self._routed(dtype)
        source, few = torch.ones(tokens, hidden, dtype=dtype), torch.ones(4, 16, dtype=dtype)
        return _Case(features=serial.gather_features(rows, hidden * dtype.itemsize), write=source.neg_, dtype=dtype,
                     apart=True, call=partial(source.index_select, 0, token),
                     small=partial(few.index_select, 0, torch.arange(2)))

    def stream(self, _: str) -> _Case:
        """Either element-wise pass of the expert phase, in either format, in the bytes by which that phase counts."""
        dtype = DTYPES["float32" if self.rng.random() < 0.5 else "bfloat16"]
        return self._activation(dtype) if self.rng.random() < 0.5 else self._moved_rows(dtype)

    def _activation(self, dtype: torch.dtype) -> _Case:
        """SiLU of one half times the other."""
        while True:
            rows, width = self.size(8, 32768), self.size(32, 2048, 16)
            if 2 * rows * width * dtype.itemsize <= _MAX_BYTES:
                break
        both = torch.empty(rows, 2 * width, dtype=dtype).normal_(generator=self.generator)
        few = torch.ones(2, 32, dtype=dtype)
        return _Case(features=serial.stream_features(2.0 * 3 * rows * width, self.cache_bytes), write=both.neg_,
                     dtype=dtype, apart=True, call=partial(activate, both, width),
                     small=partial(activate, few, 16))

    def _moved_rows(self, dtype: torch.dtype) -> _Case:
        """Rows of tokens to their experts, and the experts' rows times weights, added up by token."""
        tokens, rows, hidden, token = self._routed(dtype)
        weights = torch.rand(rows, generator=self.generator)
        inputs, outputs = torch.ones(tokens, hidden, dtype=dtype), torch.ones(rows, hidden, dtype=dtype)
        few, pairs = torch.ones(4, 16, dtype=dtype), torch.arange(4)

        def moved(x: torch.Tensor, y: torch.Tensor, w: torch.Tensor, to: torch.Tensor) -> None:
            x.index_select(0, to)
            add_up(y, w[to], to, len(x))

        return _Case(features=serial.stream_features(2.0 * (rows + tokens) * hidden, self.cache_bytes),
                     dtype=dtype, apart=True, write=lambda: (inputs.neg_(), outputs.neg_()),
                     call=partial(moved, inputs, outputs, weights, token),
                     small=partial(moved, few, few.clone(), torch.ones(4), pairs))

    def small_calls(self) -> Array:
        """Seconds per call of the framework on a few elements, its code flushed: ndarray of repeats."""
        logits, ids, rows, weights = torch.randn(2, 4), torch.arange(4), torch.ones(4, 32), torch.ones(4)

        def calls() -> None:
            torch.mm(rows, rows.T)
            choose(logits, 2)
            rows.index_select(0, align(ids, 4, 2)[1])
            add_up(activate(rows, 16), weights[ids], ids, 4)

        return self.time(calls, 13, lambda: self.sentinel.settle(torch.float32))[1:] / _SMALL_CALLS


def fit(features: Sequence[dict[str, float]], seconds: Array) -> tuple[dict[str, float], float, float]:
    """Non-negative coefficients of calls' terms.

    A constant is fitted along and dropped: what a call costs by itself is counted by ``launch.call_s``.

    Args:
        features: Terms of each call, the same for all.
        seconds: ndarray of shape (N,).

    Returns:
        Coefficients above 0; P10 and P90 of measured over fitted time.
    """
    names = np.array([*features[0], "call"])
    terms = np.array([[*(float(value) for value in row.values()), 1.0] for row in features])
    used = (terms > 0).sum(axis=0) >= _MIN_USES
    names, terms = names[used], terms[:, used]
    scale = terms.max(axis=0)
    terms = terms / scale
    start = np.maximum(nnls(terms / seconds[:, None], np.ones(len(seconds)))[0], 1e-9)
    found = least_squares(lambda c: np.log(terms @ c / seconds), start, bounds=(0.0, np.inf), loss="soft_l1",
                          f_scale=0.1, x_scale=np.maximum(start, 1e-3 * start.max())).x
    fitted = terms @ found
    # the solver stays inside its bounds: what never makes up a thousandth of a call is a zero
    kept = ((terms * found / fitted[:, None]).max(axis=0) > 1e-3) & (names != "call")
    coefficients = {str(name): float(value) for name, value in zip(names[kept], (found / scale)[kept], strict=True)}
    low, high = np.percentile(seconds / fitted, (10, 90))
    return coefficients, float(low), float(high)


def _quantity(value: float, low: float | None = None, high: float | None = None, kind: str = "measured",
              source: str = "protocol") -> str:
    spread = "" if low is None or high is None else f", low = {_number(low)}, high = {_number(high)}"
    return f'{{value = {_number(value)}, kind = "{kind}", source = "{source}"{spread}}}'


def _number(value: float) -> str:
    return repr(float(f"{value:.5g}"))


def _spread(values: Array, best: Callable[[Array], float] = np.median) -> str:
    return _quantity(float(best(values)), *(float(v) for v in np.percentile(values, (10, 90))))


def _cpu() -> tuple[str, float | None]:
    """Name of the CPU, and its clock in GHz if the system tells."""
    name, clock = platform.processor() or platform.machine() or "unknown CPU", None
    if Path("/proc/cpuinfo").is_file():
        lines = [line.partition(":") for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()]
        told = {key.strip(): value.strip() for key, _, value in lines}
        name = told.get("model name", name)
        clock = float(told["cpu MHz"]) / 1e3 if told.get("cpu MHz") else None
    return name, clock


def _tables(bench: _Bench, budget_s: float) -> list[str]:
    """Lines of the serial tables but ``launch``."""
    lines = []
    for table, share in _SHARES.items():
        kind, _, name = table.partition("_") if table.startswith("gemm") else (table, "", "")
        until = time.perf_counter() + share * budget_s
        features, seconds = [], []
        while len(seconds) < _MIN_CALLS or time.perf_counter() < until:
            case = getattr(bench, kind)(name)
            seconds.append(bench.time_case(case, _REPEATS if budget_s > 2 else 1))
            features.append(case.features)
        lines += _table(table, *fit(features, np.array(seconds)))
    return lines


def _table(name: str, coefficients: dict[str, float], low: float, high: float) -> list[str]:
    return [f"[serial.{name}]", *(f'{key} = {_quantity(value, low * value, high * value, source="fit")}'
                                  for key, value in coefficients.items())]


def measure_profile(budget_s: float = 8.0, *, seed: int = 0, sentinel: Sentinel | None = None) -> str:
    """Measure this CPU with one torch thread.

    Args:
        budget_s: Seconds to spend, about; a few calls of each primitive are made in any case.
        seed: Of sizes and inputs.
        sentinel: Whose buffer to use; a new one by default.

    Returns:
        Text of a device profile, to be saved as ``cpu-local.toml``.
    """
    started = time.perf_counter()
    with measuring():
        bench = _Bench(seed, sentinel)
        bandwidth = 2 * bench.sentinel.source.nbytes / bench.time(bench.sentinel.stream, 7)
        gather = _gather_curve(bench, float(np.median(bandwidth)))
        few = torch.ones(64)
        add = partial(torch.add, few, 1.0)
        hot = np.array([bench.time(lambda: [add() for _ in range(50)], 1)[0] / 50 for _ in range(9)])
        cold = bench.small_calls()
        tables = _tables(bench, budget_s - (time.perf_counter() - started))
    name, clock = _cpu()
    ram = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    when = datetime.now(UTC).strftime("%Y-%m-%d")
    where = f"{name}, torch {torch.__version__}, one thread, {when}"
    return "\n".join([
        f"title = {json.dumps(f'This CPU, one thread: {name}')}",
        'execution = "serial"', 'calibration = "none"',
        "[compute]",
        f'num_sms = {_quantity(1.0, kind="assumed", source="thread")}',
        f'clock_ghz = {_quantity(clock or 3.0, kind="assumed", source="clock")}',
        f'shared_memory_per_sm_kib = {_quantity(serial.OWN_CACHE_BYTES / 1024, kind="assumed", source="thread")}',
        "[compute.peak_tflops]",
        *(f"{key} = {_spread(rates / TERA, np.max)}" for key, rates in bench.peak.items()),
        "[hbm]", f"capacity_gib = {_quantity(ram / GIB)}", f"bandwidth_gb_per_s = {_spread(bandwidth / GB)}", *gather,
        "[l2]", f"capacity_mib = {_quantity(bench.cache_bytes / MIB)}",
        "[launch]", f"kernel_us = {_spread(hot / US)}",
        "[serial.launch]", f"call_s = {_spread(cold)}", *tables,
        "[sources.protocol]",
        'title = "moesim_kernels.cpu_profile: repeated calls by thread time, caches flushed, freed memory kept"',
        f"locator = {json.dumps(where)}",
        "[sources.fit]",
        'title = "moesim_kernels.cpu_profile: non-negative fit to stand-alone primitives of random sizes"',
        f"locator = {json.dumps(where + '; low and high: P10 and P90 of measured over fitted time')}",
        "[sources.thread]", 'title = "One thread on one core; a core of its own has a cache of about 1 MiB"',
        'locator = "assumed"',
        "[sources.clock]", f"title = {json.dumps('Clock the operating system reports' if clock else 'A usual clock')}",
        'locator = "assumed; prices do not use it"', "",
    ])


def _gather_curve(bench: _Bench, bandwidth: float) -> list[str]:
    lines = []
    for access in _ACCESS_BYTES:
        table = bench.sentinel.buffer.view(-1, access // 4)
        count = (2 << 20) // access * (1 if access < 512 else 4)
        rows = torch.randint(0, len(table), (count,), generator=bench.generator)
        seconds = bench.time(partial(table.index_select, 0, rows), 4, bench.sentinel.buffer.sum)
        shares = np.minimum(2.0 * count * access / seconds / bandwidth, 1.0)
        lines += ["[[hbm.gather]]", f"access_bytes = {float(access)}", f"efficiency = {_spread(shares)}"]
    return lines


def write_profile(path: str | Path, budget_s: float = 8.0) -> None:
    """Measure this CPU and save the profile; the file's name without ``.toml`` is the profile's."""
    Path(path).write_text(measure_profile(budget_s), encoding="utf-8")
