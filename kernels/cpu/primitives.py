"""Make random calls of the primitives that `moesim.costs.devices.serial` prices, and time them on
this CPU.

Caches are flushed and inputs written before each timing. Just before a timed call, the same call
runs on a few elements, which brings its code back into the caches. The cost of that is measured
once, as ``launch.call_s``, and not again in every primitive. Random sizes cover what layers ask
for.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from moesim_kernels.cpu.gate import align, choose
from moesim_kernels.cpu.layer import activate, add_up
from moesim_kernels.cpu.protocol import Sentinel, thread_clock
from torch.nn.functional import grouped_mm

from moesim.costs.devices import serial

Array = np.ndarray
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
#: seconds of the longest GEMM, and bytes of the largest tensors
_GEMM_S, _MAX_BYTES = 4e-3, 32 << 20
# Bytes read between writing an input and the call, enough to push it out of the core's own cache.
_APART_BYTES = 8 << 20
# Framework calls in one run of `Bench.small_calls`.
_SMALL_CALLS = 19
#: share of random logits that fit into the cache
_SMALL_LOGITS = 0.8


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One call to time.

    Attributes:
        features: Terms of the call in its table of `moesim.costs.devices.serial`.
        write: Function that writes the inputs.
        call: Function that makes the call.
        small: Function that makes the same call on a few elements.
        dtype: Number format of the inputs.
        cold: Whether caches are flushed before the call.
        apart: Whether other data is read between the writing of the inputs and the call, so that
            the inputs have left the core's cache.
    """

    features: dict[str, float]
    write: Callable[[], object]
    call: Callable[[], object]
    small: Callable[[], object]
    dtype: torch.dtype = torch.float32
    cold: bool = True
    apart: bool = False


def time_call(
    call: Callable[[], object], repeats: int, before: Callable[[], object] = lambda: None
) -> Array:
    """Return the thread's seconds for each repeat: ndarray of shape (repeats,)."""
    clock, seconds = thread_clock(), np.empty(repeats)
    for repeat in range(repeats):
        before()
        start = clock()
        call()
        seconds[repeat] = clock() - start
    return seconds


class Bench:
    """Random calls of every primitive, and their times.

    Args:
        seed: Seed of sizes and inputs.
        sentinel: Sentinel; its buffer flushes the caches.
        peak_flops_per_s: Rate of the fastest GEMM by format; no timed GEMM takes much longer than 4
            ms at this rate.
        cache_bytes: Size of the last-level cache, as far as one core fills it.
    """

    def __init__(
        self, seed: int, sentinel: Sentinel, peak_flops_per_s: dict[str, float], cache_bytes: float
    ) -> None:
        self.rng = np.random.default_rng(seed)
        self.generator = torch.Generator().manual_seed(seed)
        self.sentinel, self.peak, self.cache_bytes = sentinel, peak_flops_per_s, cache_bytes
        self.weights = torch.ones(2 * _MAX_BYTES // 4)

    def case(self, table: str) -> Case:
        """Return a random call of a table of `moesim.costs.devices.serial`, such as
        ``gemm_bfloat16`` or ``top_k``.
        """
        kind, _, name = table.rpartition("_")
        return getattr(self, kind)(name) if name in DTYPES else getattr(self, table)("")

    def time_case(self, case: Case, repeats: int) -> float:
        """Return the median of some repeats, after one call that is not counted."""

        def before() -> None:
            self.sentinel.settle(case.dtype, flush=case.cold)
            case.write()
            if case.apart:
                self.sentinel.buffer[: _APART_BYTES // 4].sum()
            # The small call brings back the code that flushing the caches evicted.
            case.small()

        before()
        case.call()
        return float(np.median(time_call(case.call, repeats, before)))

    def size(self, low: float, high: float, multiple: int = 1) -> int:
        """Return a random size, uniform in its logarithm."""
        exact = math.exp(self.rng.uniform(math.log(low), math.log(high)))
        return max(round(exact / multiple), 1) * multiple

    def gemm(self, name: str) -> Case:
        """Return a grouped GEMM over ragged groups, some of them empty; for a quarter of the calls
        the caches are not flushed.
        """
        dtype, limit = DTYPES[name], 0.5 * _GEMM_S * self.peak[name]
        # Draw again until the call is short enough and its tensors fit.
        while True:
            depth, columns = self.size(32, 2048, 16), self.size(32, 2048, 16)
            groups, rows = self.size(1, 128), self.size(1, 2048)
            touched = groups * max(columns * depth, rows * (columns + depth)) * dtype.itemsize
            if groups * rows * columns * depth < limit and touched <= 2 * _MAX_BYTES:
                break
        # bfloat16 kernels are compiled for each row count: some calls have one count, some many
        kinds = np.ceil(rows * self.rng.uniform(0.1, 1.0, self.size(1, 16))).astype(int)
        counts = self.rng.choice(kinds, groups) * (self.rng.random(groups) < 0.9)
        counts[0] = rows
        num_weights, cold = groups * columns * depth, bool(self.rng.random() < 0.75)
        pool = self.weights.view(dtype)
        # Weights start on a multiple of 64 elements, so that they are aligned.
        first = int(self.rng.integers(0, pool.numel() - num_weights + 1)) // 64 * 64
        weights = pool[first : first + num_weights].view(groups, columns, depth).transpose(1, 2)
        inputs = torch.randn(int(counts.sum()), depth, generator=self.generator).to(dtype)
        few, few_weights = torch.ones(16, 16, dtype=dtype), torch.ones(1, 16, 16, dtype=dtype)
        bytes_touched = (
            np.count_nonzero(counts) * columns * depth + counts.sum() * (columns + depth)
        ) * dtype.itemsize
        # What the last call left in the cache need not come from memory.
        away = 1.0 if cold else float(serial.missing(bytes_touched, self.cache_bytes))
        return Case(
            features=serial.gemm_features(
                counts, columns, depth, weight_bytes=dtype.itemsize, away=away
            ),
            write=inputs.neg_,
            dtype=dtype,
            cold=cold,
            call=partial(grouped_mm, inputs, weights, offs=torch.from_numpy(counts.cumsum()).int()),
            small=partial(grouped_mm, few, few_weights, offs=torch.tensor([16], dtype=torch.int32)),
        )

    def _logits(self) -> tuple[int, int]:
        """Return rows and columns of logits: most small, some larger than the cache."""
        most = 1 << (19 if self.rng.random() < _SMALL_LOGITS else 23)
        while True:
            rows, columns = self.size(8, 8192), self.size(2, 16384)
            if rows * columns <= most and (most < 1 << 20 or rows * columns > 1 << 19):
                return rows, columns

    def top_k(self, _: str) -> Case:
        """Return top-k of fresh random rows."""
        rows, columns = self._logits()
        k = min(self.size(1, 16), columns)
        logits, few = torch.empty(rows, columns), torch.randn(2, 4)
        return Case(
            features=serial.top_k_features(rows, columns, k, self.cache_bytes),
            call=partial(logits.topk, k, dim=1),
            small=partial(few.topk, 2, dim=1),
            write=lambda: logits.normal_(generator=self.generator),
        )

    def softmax(self, _: str) -> Case:
        """Return softmax of fresh random rows."""
        rows, columns = self._logits()
        logits, few = torch.empty(rows, columns), torch.randn(2, 4)
        return Case(
            features=serial.softmax_features(rows, columns, self.cache_bytes),
            call=partial(torch.softmax, logits, 1),
            small=partial(torch.softmax, few, 1),
            write=lambda: logits.normal_(generator=self.generator),
        )

    def cast(self, _: str) -> Case:
        """Return a cast of bfloat16 logits to float32."""
        rows, columns = self._logits()
        logits, few = (
            torch.ones(rows, columns, dtype=torch.bfloat16),
            torch.ones(2, 4, dtype=torch.bfloat16),
        )
        return Case(
            features=serial.element_features(np.float64(rows * columns), 8.0, self.cache_bytes),
            call=logits.float,
            small=few.float,
            write=logits.neg_,
        )

    def mask(self, _: str) -> Case:
        """Return the masking of the logits of closed groups."""
        rows, columns = self._logits()
        groups = min(self.size(2, 32), columns)
        scores, few = torch.ones(rows, groups, columns // groups), torch.ones(2, 2, 2)
        closed, shut = (
            torch.ones(rows, groups, 1, dtype=torch.bool),
            torch.ones(2, 2, 1, dtype=torch.bool),
        )
        closed[:, ::2] = False
        return Case(
            features=serial.element_features(np.float64(scores.numel()), 9.0, self.cache_bytes),
            call=partial(scores.masked_fill, closed, -1.0),
            small=partial(few.masked_fill, shut, -1.0),
            write=scores.neg_,
        )

    def adamw(self, name: str) -> Case:
        """Return a fused step of AdamW whose states have the format of the weights."""
        dtype, count = DTYPES[name], self.size(1 << 12, 1 << 22)

        def optimizer(size: int) -> torch.optim.AdamW:
            weight = torch.ones(size, dtype=dtype)
            weight.grad = torch.ones_like(weight)
            return torch.optim.AdamW([weight], lr=1e-4, fused=True)

        whole, few = optimizer(count), optimizer(16)
        weight = whole.param_groups[0]["params"][0]
        return Case(
            features=serial.adamw_features(np.float64(count), dtype.itemsize, self.cache_bytes),
            write=weight.grad.neg_,
            dtype=dtype,
            call=whole.step,
            small=few.step,
        )

    def align(self, _: str) -> Case:
        """Return sort and histogram of fresh random ids."""
        rows, experts = self.size(8, 32767), self.size(2, 1024)
        ids, few = torch.empty(rows, dtype=torch.int64), torch.arange(8)
        return Case(
            features=serial.align_features(np.float64(rows), experts),
            small=partial(align, few, 8, 2),
            cold=False,
            write=lambda: ids.random_(0, experts, generator=self.generator),
            call=partial(align, ids, experts, 2),
        )

    def _routed(self, dtype: torch.dtype) -> tuple[int, int, int, torch.Tensor]:
        """Return numbers of tokens and pairs, hidden size, and the token of each pair in a random
        order.
        """
        while True:
            tokens, k, hidden = self.size(8, 4096), self.size(1, 8), self.size(64, 2048, 16)
            if tokens * k * hidden * dtype.itemsize <= _MAX_BYTES:
                break
        return tokens, tokens * k, hidden, torch.randperm(tokens * k, generator=self.generator) // k

    def gather(self, _: str) -> Case:
        """Return a gather of tokens' rows in the order of their experts."""
        dtype = DTYPES["float32" if self.rng.random() < 0.5 else "bfloat16"]
        tokens, rows, hidden, token = self._routed(dtype)
        source, few = torch.ones(tokens, hidden, dtype=dtype), torch.ones(4, 16, dtype=dtype)
        return Case(
            features=serial.gather_features(rows, hidden * dtype.itemsize),
            write=source.neg_,
            dtype=dtype,
            apart=True,
            call=partial(source.index_select, 0, token),
            small=partial(few.index_select, 0, torch.arange(2)),
        )

    def stream(self, _: str) -> Case:
        """Return one of the two element-wise passes of the expert phase, in a random format, with
        the bytes that phase counts.
        """
        dtype = DTYPES["float32" if self.rng.random() < 0.5 else "bfloat16"]
        return self._activation(dtype) if self.rng.random() < 0.5 else self._moved_rows(dtype)

    def _activation(self, dtype: torch.dtype) -> Case:
        """Return SiLU of one half times the other half."""
        while True:
            rows, width = self.size(8, 32768), self.size(32, 2048, 16)
            if 2 * rows * width * dtype.itemsize <= _MAX_BYTES:
                break
        both = torch.empty(rows, 2 * width, dtype=dtype).normal_(generator=self.generator)
        few = torch.ones(2, 32, dtype=dtype)
        return Case(
            # Bytes of two reads and a write of each element, at two bytes each.
            features=serial.stream_features(2.0 * 3 * rows * width, self.cache_bytes),
            write=both.neg_,
            dtype=dtype,
            apart=True,
            call=partial(activate, both, width),
            small=partial(activate, few, 16),
        )

    def _moved_rows(self, dtype: torch.dtype) -> Case:
        """Return a move of tokens' rows to their experts, and of the experts' rows times weights,
        added up by token.
        """
        tokens, rows, hidden, token = self._routed(dtype)
        weights = torch.rand(rows, generator=self.generator)
        inputs, outputs = (
            torch.ones(tokens, hidden, dtype=dtype),
            torch.ones(rows, hidden, dtype=dtype),
        )
        few, pairs = torch.ones(4, 16, dtype=dtype), torch.arange(4)

        def moved(x: torch.Tensor, y: torch.Tensor, w: torch.Tensor, to: torch.Tensor) -> None:
            x.index_select(0, to)
            add_up(y, w[to], to, len(x))

        return Case(
            features=serial.stream_features(2.0 * (rows + tokens) * hidden, self.cache_bytes),
            dtype=dtype,
            apart=True,
            write=lambda: (inputs.neg_(), outputs.neg_()),
            call=partial(moved, inputs, outputs, weights, token),
            small=partial(moved, few, few.clone(), torch.ones(4), pairs),
        )

    def small_calls(self) -> Array:
        """Return seconds per framework call on a few elements, its code flushed from the caches:
        ndarray of repeats.
        """
        logits, ids, rows, weights = (
            torch.randn(2, 4),
            torch.arange(4),
            torch.ones(4, 32),
            torch.ones(4),
        )

        def calls() -> None:
            torch.mm(rows, rows.T)
            choose(logits, 2)
            rows.index_select(0, align(ids, 4, 2)[1])
            add_up(activate(rows, 16), weights[ids], ids, 4)

        # The first repeat is a warm-up and is dropped.
        return time_call(calls, 13, lambda: self.sentinel.settle(torch.float32))[1:] / _SMALL_CALLS
