"""A real MoE layer in torch on the CPU, timed phase by phase on one thread.

Phases: ``gate`` (logits, softmax, top-k), ``permute`` (stable sort of the choices, histogram,
gather of rows), ``experts`` (grouped GEMM, SiLU, product, grouped GEMM), ``combine`` (weighted
`index_add_`).

What makes such times repeatable, and what they mean:

- They are times of the thread, not of the clock on the wall: a core that is taken away for a while
  does not count.
- The layer stands for one of many: before each repeat a stream of 128 MiB flushes the caches, so
  that weights, buffers and the framework's own code come from memory; then 3 ms of GEMMs bring the
  clock down to where wide instructions keep it (some 15 % under that of a core that waited for
  memory), and the input is written.
- The histogram of experts stays the same while the order of tokens changes, and there is a warm-up:
  libraries compile a bfloat16 kernel for each new row count (about half a millisecond), and branch
  predictors learn one input by heart.
- Freed memory is kept (glibc's mallopt): returning it and faulting it in again can cost more than
  the layer.
- A sentinel, a stream of 64 MiB and a GEMM, runs before and after. Spread inside a run does not
  show a neighbour that streams memory, nor one that wants this core; the sentinel does. A run it
  finds more than 8 % slower is repeated once, and otherwise marked.

Shape suffixes: T tokens, K experts a token uses, P = T x K pairs, E experts, G groups, g groups
kept, S experts of one group, H hidden size, I expert width, N outputs.
"""

import ctypes
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from moesim_kernels.cpu.gate import CpuGate, align, choose
from torch.nn.functional import grouped_mm, silu

from moesim.errors import ConfigError
from moesim.model import MoELayer

__all__ = [
    "PHASES",
    "CpuLayer",
    "LayerTiming",
    "Sentinel",
    "Spread",
    "activate",
    "add_up",
    "align",
    "choose",
    "measuring",
    "thread_clock",
    "time_gate",
    "time_layer",
]
PHASES = ("gate", "permute", "experts", "combine")
#: slowdown of the sentinel from which a run counts as contended
CONTENDED = 0.08
#: read before each repeat: beyond the share of a last-level cache that one core gets
FLUSH_BYTES = 128 << 20
_SETTLE_S = 3e-3
_INPUTS, _WARM_UP = 8, 2
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_MMAP_MAX = -1, -3, -4


def thread_clock() -> Callable[[], float]:
    """Seconds the core gave this thread where that is known to a microsecond, else the wall clock.
    """
    return (
        time.thread_time
        if time.get_clock_info("thread_time").resolution <= 1e-6
        else time.perf_counter
    )


@contextmanager
def measuring() -> Iterator[None]:
    """One torch thread, no gradients, freed memory kept; afterwards the old thread count and
    glibc's usual limits.
    """
    threads = torch.get_num_threads()
    libc = ctypes.CDLL(None)
    mallopt, malloc_trim = getattr(libc, "mallopt", None), getattr(libc, "malloc_trim", None)
    torch.set_num_threads(1)
    if mallopt:
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
    try:
        with torch.no_grad():
            yield
    finally:
        torch.set_num_threads(threads)
        if mallopt:
            # glibc stops adapting its limits once one is set; these are those that it would have
            # grown to
            mallopt(_M_MMAP_MAX, 65536)
            mallopt(_M_MMAP_THRESHOLD, 32 << 20)
            mallopt(_M_TRIM_THRESHOLD, 64 << 20)
        if malloc_trim:
            malloc_trim(0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """Statistics of repeated times, in seconds."""

    min_s: float
    p10_s: float
    median_s: float
    p90_s: float

    @classmethod
    def of(cls, seconds: np.ndarray) -> "Spread":
        """Statistics of an ndarray of shape (repeats,)."""
        p10, median, p90 = np.percentile(seconds, (10, 50, 90))
        return cls(
            min_s=float(np.min(seconds)), p10_s=float(p10), median_s=float(median), p90_s=float(p90)
        )


class Sentinel:
    """Work that is always the same, to notice a machine that became slower; its buffer also flushes
    the caches.
    """

    def __init__(self) -> None:
        self.buffer = torch.ones(FLUSH_BYTES // 4)
        self.source, self.target = self.buffer.chunk(2)
        self._left, self._right = torch.ones(384, 384), torch.ones(384, 384)
        self._seconds()
        self._reference = self._seconds()

    def settle(self, dtype: torch.dtype, flush: bool = True) -> None:
        """As between two layers: caches full of other things, the clock that of a core at GEMMs of
        this format.
        """
        if flush:
            self.buffer.sum()
        small = self._left[:128, :128].to(dtype)
        until = time.perf_counter() + _SETTLE_S
        while time.perf_counter() < until:
            torch.mm(small, small)

    def stream(self) -> None:
        """Read 64 MiB and write 64 MiB."""
        torch.mul(self.source, 2.0, out=self.target)

    def slowdown(self) -> float:
        """How much slower than when this sentinel was made, 0.1 for 10 %: the worst of stream, GEMM
        and stolen time.

        Stolen is what passed on the wall beyond what the thread got: others wanted this core, and
        used its caches.
        """
        started = time.perf_counter(), thread_clock()()
        seconds = self._seconds()
        stolen = (time.perf_counter() - started[0]) / max(thread_clock()() - started[1], 1e-9)
        return float(max((seconds / self._reference).max(), stolen) - 1.0)

    def _seconds(self) -> np.ndarray:
        """Median of five streams and of five GEMMs: ndarray of shape (2,)."""
        clock = thread_clock()
        seconds = np.empty((5, 2))
        for row in seconds:
            start = clock()
            self.stream()
            between = clock()
            torch.mm(self._left, self._right)
            row[:] = between - start, clock() - between
        return np.median(seconds, axis=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerTiming:
    """Times of one layer.

    Attributes:
        seconds: `PHASES` and ``total`` -> ndarray of shape (repeats,).
        slowdown: The sentinel's worst slowdown before or after.
        contended: Whether that is over `CONTENDED`, also in the second try.
    """

    seconds: dict[str, np.ndarray]
    slowdown: float
    contended: bool

    @property
    def phases(self) -> dict[str, Spread]:
        """Statistics of each phase and of ``total``."""
        return {name: Spread.of(seconds_R) for name, seconds_R in self.seconds.items()}

    @property
    def repeats(self) -> int:
        """Number of repeats."""
        return len(self.seconds["total"])


def activate(up_PN: torch.Tensor, width: int) -> torch.Tensor:
    """SiLU of the first ``width`` columns, times the others where there are any (SwiGLU): shape (P,
    I).
    """
    # SiLU of a strided view computes the end of every row one element at a time: up to five times
    # as slow as a copy
    act_PI = silu(up_PN[:, :width].contiguous(), inplace=True)
    return act_PI.mul_(up_PN[:, width:]) if up_PN.shape[1] > width else act_PI


def add_up(
    y_PH: torch.Tensor, weights_P: torch.Tensor, token_P: torch.Tensor, num_tokens: int
) -> torch.Tensor:
    """Weighted sum of each token's rows, shape (T, H); overwrites ``y_PH``."""
    out_TH = torch.zeros(num_tokens, y_PH.shape[1], dtype=y_PH.dtype)
    return out_TH.index_add_(0, token_P, y_PH.mul_(weights_P.to(y_PH.dtype)[:, None]))


class CpuLayer(CpuGate):
    """One routed MoE layer with random weights, and the choices its experts are given.

    The gate really scores and selects, but the experts follow ``expert_ids_TK``: a simulator prices
    a histogram, and only with the same histogram can the two be compared. Shared experts and
    capacity limits are not computed.

    Args:
        layer: Sizes and gate; its number formats are not used.
        expert_ids_TK: Integer array of shape (T, K): the experts of each token, all different.
        dtype: Format of tokens, experts and gate; logits are float32.
        seed: Seed of weights, inputs and orders.

    Raises:
        ConfigError: Experts of different widths, rows of weights that are no multiple of 16 bytes,
            which grouped_mm refuses, or ids out of shape.
    """

    def __init__(
        self, layer: MoELayer, expert_ids_TK: np.ndarray, dtype: torch.dtype, *, seed: int = 0
    ) -> None:
        hidden, width = layer.hidden_size, layer.expert_intermediate_size
        if not isinstance(width, int):
            raise ConfigError(
                "layer.expert_intermediate_size: expected one width for a layer on a CPU, got "
                "several"
            )
        multiple = 16 // dtype.itemsize
        if hidden % multiple or width % multiple:
            raise ConfigError(
                "layer: expected hidden_size and expert_intermediate_size as multiples of "
                f"{multiple} for {dtype} on a CPU, got {hidden} and {width}"
            )
        ids_TK = torch.as_tensor(expert_ids_TK).long()
        if ids_TK.ndim != 2 or ids_TK.shape[1] != layer.top_k:
            raise ConfigError(
                f"expert_ids_TK: expected shape (T, {layer.top_k}), got {tuple(ids_TK.shape)}"
            )
        generator = torch.Generator().manual_seed(seed)
        super().__init__(layer, dtype, generator)
        up_columns = (2 if layer.gated else 1) * width
        self.w_up_ENH = self.normal(layer.num_experts, up_columns, hidden)
        self.w_down_EHI = self.normal(layer.num_experts, hidden, width)
        self.x_TH = torch.empty(ids_TK.shape[0], hidden, dtype=dtype)
        self._inputs = [
            torch.randn(self.x_TH.shape, generator=generator).to(dtype) for _ in range(_INPUTS)
        ]
        self._ids = [
            ids_TK[torch.randperm(len(ids_TK), generator=generator)].contiguous()
            for _ in range(_INPUTS)
        ]
        self.select(0)

    def select(self, repeat: int) -> None:
        """Write the input of this repeat and take its order of tokens."""
        self.x_TH.copy_(self._inputs[repeat % _INPUTS])
        self.ids_TK = self._ids[repeat % _INPUTS]

    def permute(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """What `align` gives, and the pairs' rows in that order, shape (P, H)."""
        order_P, token_P, ends_E = align(
            self.ids_TK.flatten(), self.layer.num_experts, self.layer.top_k
        )
        return order_P, token_P, ends_E, self.x_TH.index_select(0, token_P)

    def experts(self, rows_PH: torch.Tensor, ends_E: torch.Tensor) -> torch.Tensor:
        """Outputs of the pairs' experts, shape (P, H)."""
        up_PN = grouped_mm(rows_PH, self.w_up_ENH.transpose(1, 2), offs=ends_E)
        act_PI = activate(up_PN, self.layer.expert_intermediate_size)
        return grouped_mm(act_PI, self.w_down_EHI.transpose(1, 2), offs=ends_E)

    def forward(
        self, clock: Callable[[], float] = time.perf_counter
    ) -> tuple[torch.Tensor, list[float]]:
        """One pass: output of shape (T, H), and the clock before, between and after the `PHASES`.
        """
        times = [clock()]
        weights_TK, _ = self.gate()
        times.append(clock())
        order_P, token_P, ends_E, rows_PH = self.permute()
        times.append(clock())
        y_PH = self.experts(rows_PH, ends_E)
        times.append(clock())
        out_TH = add_up(y_PH, weights_TK.flatten()[order_P], token_P, len(self.x_TH))
        times.append(clock())
        return out_TH, times


def time_layer(
    layer: MoELayer,
    expert_ids_TK: np.ndarray,
    dtype: torch.dtype,
    *,
    seconds: float = 0.25,
    min_repeats: int = 7,
    sentinel: Sentinel | None = None,
    seed: int = 0,
) -> LayerTiming:
    """Time a layer phase by phase, by the protocol of this module.

    Args:
        layer: Sizes and gate.
        expert_ids_TK: Integer array of shape (T, K).
        dtype: torch.float32 or torch.bfloat16.
        seconds: Time to fill with repeats.
        min_repeats: Repeats to make however long they take.
        sentinel: To compare with; a new one by default.
        seed: Of weights and inputs.

    Raises:
        ConfigError: See `CpuLayer`.
    """
    with measuring():
        case = CpuLayer(layer, expert_ids_TK, dtype, seed=seed)
        sentinel = sentinel or Sentinel()
        return _timed(case, case.forward, PHASES, seconds, min_repeats, sentinel)


class _GateAlone(CpuGate):
    """A gate and its inputs."""

    def __init__(self, layer: MoELayer, num_tokens: int, dtype: torch.dtype, seed: int) -> None:
        super().__init__(layer, dtype, torch.Generator().manual_seed(seed))
        self.x_TH = torch.empty(num_tokens, layer.hidden_size, dtype=dtype)
        self._inputs = [
            torch.randn(self.x_TH.shape, generator=self.generator).to(dtype) for _ in range(_INPUTS)
        ]

    def select(self, repeat: int) -> None:
        """Write the input of this repeat."""
        self.x_TH.copy_(self._inputs[repeat % _INPUTS])

    def forward(
        self, clock: Callable[[], float] = time.perf_counter
    ) -> tuple[torch.Tensor, list[float]]:
        """One pass: weights, and the clock before and after."""
        start = clock()
        weights_TK, _ = self.gate()
        return weights_TK, [start, clock()]


def time_gate(
    layer: MoELayer,
    num_tokens: int,
    dtype: torch.dtype,
    *,
    seconds: float = 0.1,
    min_repeats: int = 7,
    sentinel: Sentinel | None = None,
    seed: int = 0,
) -> LayerTiming:
    """Time a layer's gate by itself, by the protocol of this module: no experts are made, so there
    may be a million.

    Args:
        layer: Sizes and gate.
        num_tokens: T.
        dtype: torch.float32 or torch.bfloat16.
        seconds: Time to fill with repeats.
        min_repeats: Repeats to make however long they take.
        sentinel: To compare with; a new one by default.
        seed: Of keys and inputs.
    """
    with measuring():
        case = _GateAlone(layer, num_tokens, dtype, seed)
        return _timed(case, case.forward, ("gate",), seconds, min_repeats, sentinel or Sentinel())


def _timed(
    case: "CpuLayer | _GateAlone",
    forward: Callable,
    names: tuple[str, ...],
    seconds: float,
    min_repeats: int,
    sentinel: Sentinel,
) -> LayerTiming:
    """Warmed up and timed, twice if the machine was slower the first time."""
    for repeat in range(_WARM_UP if isinstance(case, CpuLayer) else _INPUTS):
        case.select(repeat)
        forward()
    timings = [_time(case, names, seconds, min_repeats, sentinel)]
    if timings[0].contended:
        timings.append(_time(case, names, seconds, min_repeats, sentinel))
    return min(timings, key=lambda timing: (timing.contended, timing.phases["total"].p10_s))


def _time(
    case: "CpuLayer | _GateAlone",
    names: tuple[str, ...],
    seconds: float,
    min_repeats: int,
    sentinel: Sentinel,
) -> LayerTiming:
    clock = thread_clock()
    before = sentinel.slowdown()
    rows: list[np.ndarray] = []
    started = time.perf_counter()
    while len(rows) < min_repeats or time.perf_counter() - started < seconds:
        sentinel.settle(case.dtype)
        case.select(len(rows))
        times = case.forward(clock)[1]
        rows.append(np.append(np.diff(times), times[-1] - times[0]))
    slowdown = max(before, sentinel.slowdown())
    return LayerTiming(
        seconds=dict(zip((*names, "total"), np.array(rows).T, strict=True)),
        slowdown=slowdown,
        contended=slowdown > CONTENDED,
    )
