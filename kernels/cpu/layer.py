"""Run a real MoE layer in torch on the CPU, timed phase by phase on one thread.

The phases are ``gate`` (logits, softmax, top-k), ``permute`` (stable sort of the choices,
histogram, gather of rows), ``experts`` (grouped GEMM, SiLU, product, grouped GEMM), and ``combine``
(weighted `index_add_`). `moesim_kernels.cpu.protocol` says what makes the times repeatable, and
what they mean.

Shape suffixes: T tokens, K experts a token uses, P = T x K pairs, E experts, G groups, g groups
kept, S experts of one group, H hidden size, I expert width, N outputs.
"""

import time
from collections.abc import Callable

import numpy as np
import torch
from moesim_kernels.cpu.gate import CpuGate, align, choose
from moesim_kernels.cpu.protocol import (
    CONTENDED,
    LayerTiming,
    Sentinel,
    Spread,
    measuring,
    thread_clock,
)
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
    "time_case",
    "time_gate",
    "time_layer",
]
PHASES = ("gate", "permute", "experts", "combine")
# Several inputs in turn, so that branch predictors cannot memorize one.
_INPUTS, _WARM_UP = 8, 2


def activate(up_PN: torch.Tensor, width: int) -> torch.Tensor:
    """Apply SiLU to the first ``width`` columns, times the other columns if there are any (SwiGLU):
    shape (P, I).
    """
    # SiLU of a strided view computes the end of every row one element at a time, which is up to
    # five times as slow as making a copy first.
    act_PI = silu(up_PN[:, :width].contiguous(), inplace=True)
    return act_PI.mul_(up_PN[:, width:]) if up_PN.shape[1] > width else act_PI


def add_up(
    y_PH: torch.Tensor, weights_P: torch.Tensor, token_P: torch.Tensor, num_tokens: int
) -> torch.Tensor:
    """Return the weighted sum of each token's rows, shape (T, H); this overwrites ``y_PH``."""
    out_TH = torch.zeros(num_tokens, y_PH.shape[1], dtype=y_PH.dtype)
    return out_TH.index_add_(0, token_P, y_PH.mul_(weights_P.to(y_PH.dtype)[:, None]))


class CpuLayer(CpuGate):
    """A routed MoE layer with random weights, and the choices its experts are given.

    The gate really scores and selects, but the experts follow ``expert_ids_TK``: a simulator prices
    a histogram, and the two can only be compared for the same histogram. Shared experts and
    capacity limits are not computed.

    Args:
        layer: Layer that gives sizes and gate; its number formats are not used.
        expert_ids_TK: Integer array of shape (T, K): the experts of each token, all different.
        dtype: Number format of tokens, experts, and gate; logits are float32.
        seed: Seed of weights, inputs, and orders.

    Raises:
        ConfigError: Experts have different widths, rows of weights are not a multiple of 16 bytes
            (which grouped_mm refuses), or ids have the wrong shape.
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
        # grouped_mm refuses rows that are not a multiple of 16 bytes.
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
        # Another order of tokens for each input, with the same histogram of experts.
        self._ids = [
            ids_TK[torch.randperm(len(ids_TK), generator=generator)].contiguous()
            for _ in range(_INPUTS)
        ]
        self.select(0)

    def select(self, repeat: int) -> None:
        """Write the input of this repeat and use its order of tokens."""
        self.x_TH.copy_(self._inputs[repeat % _INPUTS])
        self.ids_TK = self._ids[repeat % _INPUTS]

    def permute(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return the results of `align`, and the pairs' rows in that order, shape (P, H)."""
        order_P, token_P, ends_E = align(
            self.ids_TK.flatten(), self.layer.num_experts, self.layer.top_k
        )
        return order_P, token_P, ends_E, self.x_TH.index_select(0, token_P)

    def experts(self, rows_PH: torch.Tensor, ends_E: torch.Tensor) -> torch.Tensor:
        """Return the outputs of the pairs' experts, shape (P, H)."""
        up_PN = grouped_mm(rows_PH, self.w_up_ENH.transpose(1, 2), offs=ends_E)
        act_PI = activate(up_PN, self.layer.expert_intermediate_size)
        return grouped_mm(act_PI, self.w_down_EHI.transpose(1, 2), offs=ends_E)

    def forward(
        self, clock: Callable[[], float] = time.perf_counter
    ) -> tuple[torch.Tensor, list[float]]:
        """Run one pass; return the output of shape (T, H) and the clock before, between, and after
        `PHASES`.
        """
        times = [clock()]
        # The gate's ids are dropped: the experts follow the choices that were priced.
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
    """Time a layer phase by phase, by the protocol of `moesim_kernels.cpu.protocol`.

    Args:
        layer: Layer that gives sizes and gate.
        expert_ids_TK: Integer array of shape (T, K).
        dtype: Number format, torch.float32 or torch.bfloat16.
        seconds: Time to spend on repeats.
        min_repeats: Number of repeats to make at least, however long they take.
        sentinel: Sentinel to compare with; a new one by default.
        seed: Seed of weights and inputs.

    Raises:
        ConfigError: `CpuLayer` refuses the layer or the ids.
    """
    # The layer is made inside, so that its memory is kept as well.
    with measuring():
        case = CpuLayer(layer, expert_ids_TK, dtype, seed=seed)
        sentinel = sentinel or Sentinel()
        return time_case(case, PHASES, seconds, min_repeats, sentinel)


class _GateAlone(CpuGate):
    """A gate and its inputs, without experts."""

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
        """Run one pass; return the weights and the clock before and after."""
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
    """Time a layer's gate alone, by the same protocol; no experts are made, so there may be a
    million.

    Args:
        layer: Layer that gives sizes and gate.
        num_tokens: Number of tokens T.
        dtype: Number format, torch.float32 or torch.bfloat16.
        seconds: Time to spend on repeats.
        min_repeats: Number of repeats to make at least, however long they take.
        sentinel: Sentinel to compare with; a new one by default.
        seed: Seed of keys and inputs.
    """
    with measuring():
        case = _GateAlone(layer, num_tokens, dtype, seed)
        return time_case(case, ("gate",), seconds, min_repeats, sentinel or Sentinel())


def time_case(
    case: "CpuLayer | _GateAlone",
    names: tuple[str, ...],
    seconds: float,
    min_repeats: int,
    sentinel: Sentinel,
) -> LayerTiming:
    """Warm up and time, a second time if the machine was slower during the first.

    Args:
        case: The layer; its ``forward`` is timed.
        names: Names of its phases.
        seconds: Time to spend on repeats.
        min_repeats: Number of repeats to make at least.
        sentinel: Sentinel to compare with.
    """
    # A gate alone warms up on every input once.
    for repeat in range(_WARM_UP if isinstance(case, CpuLayer) else _INPUTS):
        case.select(repeat)
        case.forward()
    timings = [_time(case, names, seconds, min_repeats, sentinel)]
    if timings[0].contended:
        timings.append(_time(case, names, seconds, min_repeats, sentinel))
    # An undisturbed run wins over a disturbed one, then the faster one wins.
    return min(timings, key=lambda timing: (timing.contended, timing.phases["total"].p10_s))


def _time(
    case: "CpuLayer | _GateAlone",
    names: tuple[str, ...],
    seconds: float,
    min_repeats: int,
    sentinel: Sentinel,
) -> LayerTiming:
    clock = thread_clock()
    # Measured before and after, since a neighbor may come or go in between.
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
