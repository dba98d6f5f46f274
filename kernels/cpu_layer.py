"""A real MoE layer in torch on the CPU, timed phase by phase on one thread.

Phases: ``gate`` (logits, softmax, top-k), ``permute`` (stable sort of the choices, histogram, gather of rows),
``experts`` (grouped GEMM, SiLU, product, grouped GEMM), ``combine`` (weighted `index_add_`).

What makes such times repeatable, and what they mean:

- They are times of the thread, not of the clock on the wall: a core that is taken away for a while does not count.
- The layer stands for one of many: before each repeat a stream of 128 MiB flushes the caches, so that weights, buffers
  and the framework's own code come from memory; then 3 ms of GEMMs bring the clock down to where wide instructions
  keep it (some 15 % under that of a core that waited for memory), and the input is written.
- The histogram of experts stays the same while the order of tokens changes, and there is a warm-up: libraries compile
  a bfloat16 kernel for each new row count (about half a millisecond), and branch predictors learn one input by heart.
- Freed memory is kept (glibc's mallopt): returning it and faulting it in again can cost more than the layer.
- A sentinel, a stream of 64 MiB and a GEMM, runs before and after. Spread inside a run does not show a neighbour that
  streams memory; the sentinel does. A run it finds more than 8 % slower is repeated once, and otherwise marked.

Shape suffixes: T tokens, K experts a token uses, P = T x K pairs, E experts, G groups, g groups kept, S experts of one
group, H hidden size, I expert width, N outputs.
"""

import ctypes
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn.functional import grouped_mm, silu

from moesim.errors import ConfigError
from moesim.model import MoELayer

PHASES = ("gate", "permute", "experts", "combine")
#: slowdown of the sentinel from which a run counts as contended
CONTENDED = 0.08
#: read before each repeat: beyond the share of a last-level cache that one core gets
FLUSH_BYTES = 128 << 20
_SETTLE_S = 3e-3
_INPUTS, _WARM_UP = 8, 2
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_MMAP_MAX = -1, -3, -4


def thread_clock() -> Callable[[], float]:
    """Seconds the core gave this thread where that is known to a microsecond, else the wall clock."""
    return time.thread_time if time.get_clock_info("thread_time").resolution <= 1e-6 else time.perf_counter


@contextmanager
def measuring() -> Iterator[None]:
    """One torch thread, no gradients, freed memory kept; afterwards the old thread count and glibc's usual limits."""
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
            # glibc stops adapting its limits once one is set; these are those that it would have grown to
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
        return cls(min_s=float(np.min(seconds)), p10_s=float(p10), median_s=float(median), p90_s=float(p90))


class Sentinel:
    """Work that is always the same, to notice a machine that became slower; its buffer also flushes the caches."""

    def __init__(self) -> None:
        self.buffer = torch.ones(FLUSH_BYTES // 4)
        self.source, self.target = self.buffer.chunk(2)
        self._left, self._right = torch.ones(384, 384), torch.ones(384, 384)
        self._seconds()
        self._reference = self._seconds()

    def settle(self, dtype: torch.dtype, flush: bool = True) -> None:
        """As between two layers: caches full of other things, the clock that of a core at GEMMs of this format."""
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
        """How much slower than when this sentinel was made: the worse of stream and GEMM, 0.1 for 10 %."""
        return float((self._seconds() / self._reference).max() - 1.0)

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
        phases: `PHASES` and ``total``, each over all repeats.
        repeats: Number of repeats.
        slowdown: The sentinel's worst slowdown before or after.
        contended: Whether that is over `CONTENDED`, also in the second try.
    """

    phases: dict[str, Spread]
    repeats: int
    slowdown: float
    contended: bool


def align(ids_P: torch.Tensor, num_experts: int, top_k: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Sort pairs by expert.

    Args:
        ids_P: Expert of each pair, token by token, shape (P,), int64.
        num_experts: E.
        top_k: K.

    Returns:
        Pair numbers in order of their expert, shape (P,), int64; tokens of these pairs; first pair after each
        expert's, int32 of shape (E,).
    """
    order_P = torch.argsort(ids_P, stable=True)
    ends_E = torch.bincount(ids_P, minlength=num_experts).cumsum(0).int()
    return order_P, order_P // top_k, ends_E


def choose(logits_TE: torch.Tensor, top_k: int, score: str = "softmax") -> tuple[torch.Tensor, torch.Tensor]:
    """Weights, float32 of shape (T, K), each row summing to 1, and ids, int64 of shape (T, K), of the best experts."""
    return _best(_scores(logits_TE, score), top_k)


def _scores(logits_TE: torch.Tensor, score: str) -> torch.Tensor:
    return torch.softmax(logits_TE, dim=1) if score == "softmax" else torch.sigmoid(logits_TE)


def _best(scores_TE: torch.Tensor, top_k: int) -> tuple[torch.Tensor, torch.Tensor]:
    weights_TK, ids_TK = scores_TE.topk(top_k, dim=1)
    return weights_TK.div_(weights_TK.sum(dim=1, keepdim=True)), ids_TK


def product_key(x_TH: torch.Tensor, query_QH: torch.Tensor, keys_2Sq: torch.Tensor, heads: int,
                top_k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The best experts of each head of a product-key gate, without a score for every expert.

    Args:
        x_TH: Tokens, shape (T, H).
        query_QH: Projection to the queries of all heads, shape (heads x query_size, H).
        keys_2Sq: Keys of both halves, shape (2, S, query_size / 2); expert i x S + j has row key i and column key j.
        heads: Queries of a token.
        top_k: Experts each head finds.

    Returns:
        Weights, float32 of shape (T, heads x top_k), those of each head summing to 1; expert ids, int64.
    """
    keys = keys_2Sq.shape[1]
    halves_2Rq = (x_TH @ query_QH.T).view(len(x_TH) * heads, 2, keys_2Sq.shape[2]).transpose(0, 1)
    best_2Rk, at_2Rk = torch.bmm(halves_2Rq, keys_2Sq.transpose(1, 2)).float().topk(min(top_k, keys), dim=2)
    if top_k == 1:  # the best pair is that of both bests
        return torch.ones(len(x_TH), heads), (at_2Rk[0] * keys + at_2Rk[1]).view(len(x_TH), heads)
    sums_RP = (best_2Rk[0][:, :, None] + best_2Rk[1][:, None, :]).flatten(1)
    ids_RP = (at_2Rk[0][:, :, None] * keys + at_2Rk[1][:, None, :]).flatten(1)
    scores_RK, place_RK = sums_RP.topk(top_k, dim=1)
    weights_RK = torch.softmax(scores_RK, dim=1)
    return weights_RK.view(len(x_TH), -1), ids_RP.gather(1, place_RK).view(len(x_TH), -1)


def activate(up_PN: torch.Tensor, width: int) -> torch.Tensor:
    """SiLU of the first ``width`` columns, times the others where there are any (SwiGLU): shape (P, I)."""
    # SiLU of a strided view computes the end of every row one element at a time: up to five times as slow as a copy
    act_PI = silu(up_PN[:, :width].contiguous(), inplace=True)
    return act_PI.mul_(up_PN[:, width:]) if up_PN.shape[1] > width else act_PI


def add_up(y_PH: torch.Tensor, weights_P: torch.Tensor, token_P: torch.Tensor, num_tokens: int) -> torch.Tensor:
    """Weighted sum of each token's rows, shape (T, H); overwrites ``y_PH``."""
    out_TH = torch.zeros(num_tokens, y_PH.shape[1], dtype=y_PH.dtype)
    return out_TH.index_add_(0, token_P, y_PH.mul_(weights_P.to(y_PH.dtype)[:, None]))


class CpuLayer:
    """One routed MoE layer with random weights, and the choices its experts are given.

    The gate really scores and selects, but the experts follow ``expert_ids_TK``: a simulator prices a histogram, and
    only with the same histogram can the two be compared. Shared experts and capacity limits are not computed.

    Args:
        layer: Sizes and gate; its number formats are not used.
        expert_ids_TK: Integer array of shape (T, K): the experts of each token, all different.
        dtype: Format of tokens, experts and gate; logits are float32.
        seed: Seed of weights, inputs and orders.

    Raises:
        ConfigError: Experts of different widths, rows of weights that are no multiple of 16 bytes, which grouped_mm
            refuses, or ids out of shape.
    """

    def __init__(self, layer: MoELayer, expert_ids_TK: np.ndarray, dtype: torch.dtype, *, seed: int = 0) -> None:
        hidden, width = layer.hidden_size, layer.expert_intermediate_size
        if not isinstance(width, int):
            raise ConfigError("layer.expert_intermediate_size: expected one width for a layer on a CPU, got several")
        multiple = 16 // dtype.itemsize
        if hidden % multiple or width % multiple:
            raise ConfigError(f"layer: expected hidden_size and expert_intermediate_size as multiples of {multiple} "
                              f"for {dtype} on a CPU, got {hidden} and {width}")
        ids_TK = torch.as_tensor(expert_ids_TK).long()
        if ids_TK.ndim != 2 or ids_TK.shape[1] != layer.top_k:
            raise ConfigError(f"expert_ids_TK: expected shape (T, {layer.top_k}), got {tuple(ids_TK.shape)}")
        self.layer, self.dtype = layer, dtype
        generator = torch.Generator().manual_seed(seed)

        def normal(*shape: int) -> torch.Tensor:
            return torch.empty(shape, dtype=dtype).normal_(0.0, shape[-1]**-0.5, generator=generator)

        up_columns = (2 if layer.gated else 1) * width
        coarse = layer.gate.num_expert_groups if layer.gate.kind == "two_level" else 0
        queries = layer.gate.query_heads * layer.gate.query_size
        if product_key := layer.gate.kind == "product_key":
            self.query_QH = normal(queries, hidden)
            self.keys_2Sq = normal(2, math.isqrt(layer.num_experts), layer.gate.query_size // 2)
        self.keys_EH = normal(0 if product_key else coarse + layer.num_experts, hidden)
        self.w_up_ENH = normal(layer.num_experts, up_columns, hidden)
        self.w_down_EHI = normal(layer.num_experts, hidden, width)
        self.x_TH = torch.empty(ids_TK.shape[0], hidden, dtype=dtype)
        self._inputs = [torch.randn(self.x_TH.shape, generator=generator).to(dtype) for _ in range(_INPUTS)]
        self._ids = [ids_TK[torch.randperm(len(ids_TK), generator=generator)].contiguous() for _ in range(_INPUTS)]
        self.select(0)

    def select(self, repeat: int) -> None:
        """Write the input of this repeat and take its order of tokens."""
        self.x_TH.copy_(self._inputs[repeat % _INPUTS])
        self.ids_TK = self._ids[repeat % _INPUTS]

    def gate(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Weights and ids as `choose` gives them, by the layer's kind of gate."""
        gate, top_k = self.layer.gate, self.layer.top_k
        if gate.kind == "two_level":
            return self._two_level()
        if gate.kind == "product_key":
            weights_TF, ids_TF = product_key(self.x_TH, self.query_QH, self.keys_2Sq, gate.query_heads,
                                             -(-top_k // gate.query_heads))
            if ids_TF.shape[1] == top_k:
                return weights_TF.div_(gate.query_heads), ids_TF
            weights_TK, place_TK = _best(weights_TF, top_k)
            return weights_TK, ids_TF.gather(1, place_TK)
        logits_TE = (self.x_TH @ self.keys_EH.T).float()
        if gate.kind == "flat":
            return choose(logits_TE, top_k, gate.score)
        scores_TGS = _scores(logits_TE, gate.score).view(len(logits_TE), gate.num_expert_groups, -1)
        best_TG = scores_TGS.topk(min(2, scores_TGS.shape[2]), dim=2).values.sum(dim=2)
        kept_Tg = best_TG.topk(gate.num_limited_groups, dim=1).indices
        closed_TG = torch.ones_like(best_TG, dtype=torch.bool).scatter_(1, kept_Tg, False)
        return _best(scores_TGS.masked_fill(closed_TG[:, :, None], -1.0).flatten(1), top_k)

    def _two_level(self) -> tuple[torch.Tensor, torch.Tensor]:
        gate, top_k = self.layer.gate, self.layer.top_k
        groups, kept = gate.num_expert_groups, gate.num_limited_groups
        per_group = self.layer.num_experts // groups
        kept_Tg = choose((self.x_TH @ self.keys_EH[:groups].T).float(), kept)[1]
        order_P, token_P, ends_G = align(kept_Tg.flatten(), groups, kept)
        keys_GHS = self.keys_EH[groups:].view(groups, per_group, -1).transpose(1, 2)
        rows_PH = self.x_TH.index_select(0, token_P)
        fine_PS = torch.empty(len(order_P), per_group, dtype=self.dtype)
        fine_PS[order_P] = grouped_mm(rows_PH, keys_GHS, offs=ends_G)
        weights_TK, slots_TK = choose(fine_PS.float().view(-1, kept * per_group), top_k, gate.score)
        return weights_TK, kept_Tg.gather(1, slots_TK // per_group) * per_group + slots_TK % per_group

    def permute(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """What `align` gives, and the pairs' rows in that order, shape (P, H)."""
        order_P, token_P, ends_E = align(self.ids_TK.flatten(), self.layer.num_experts, self.layer.top_k)
        return order_P, token_P, ends_E, self.x_TH.index_select(0, token_P)

    def experts(self, rows_PH: torch.Tensor, ends_E: torch.Tensor) -> torch.Tensor:
        """Outputs of the pairs' experts, shape (P, H)."""
        up_PN = grouped_mm(rows_PH, self.w_up_ENH.transpose(1, 2), offs=ends_E)
        act_PI = activate(up_PN, self.layer.expert_intermediate_size)
        return grouped_mm(act_PI, self.w_down_EHI.transpose(1, 2), offs=ends_E)

    def forward(self, clock: Callable[[], float] = time.perf_counter) -> tuple[torch.Tensor, list[float]]:
        """One pass: output of shape (T, H), and the clock before, between and after the `PHASES`."""
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


def time_layer(layer: MoELayer, expert_ids_TK: np.ndarray, dtype: torch.dtype, *, seconds: float = 0.25,
               min_repeats: int = 7, sentinel: Sentinel | None = None, seed: int = 0) -> LayerTiming:
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
        for repeat in range(_WARM_UP):
            case.select(repeat)
            case.forward()
        timings = [_time(case, seconds, min_repeats, sentinel)]
        if timings[0].contended:
            timings.append(_time(case, seconds, min_repeats, sentinel))
    return min(timings, key=lambda timing: (timing.contended, timing.phases["total"].p10_s))


def _time(case: CpuLayer, seconds: float, min_repeats: int, sentinel: Sentinel) -> LayerTiming:
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
    phases = {name: Spread.of(seconds_R) for name, seconds_R in zip((*PHASES, "total"), np.array(rows).T, strict=True)}
    return LayerTiming(phases=phases, repeats=len(rows), slowdown=slowdown, contended=slowdown > CONTENDED)
