"""Turn prices of dense parts into demands, which a lowering hands to the engines.

A price is seconds. Of a kernel, its launch is latency; the rest keeps busy whichever of the compute
pool and the memory decides at full rate (the roofline), and the other for as long as its own work
takes at full rate. Alone, a demand takes as long as its price.
"""

import numpy as np

from moesim.costs.dense.blocks import Amount
from moesim.costs.dense.decode import decode_limits_s
from moesim.costs.dense.gemm import GemmFormat, gemm_limits_s
from moesim.costs.dense.heads import Heads
from moesim.costs.dense.prefill import prefill_limits_s
from moesim.costs.dense.prices import DensePrices, Op
from moesim.costs.phase import PhaseCost
from moesim.units import US

Array = np.ndarray


def gemm_demand(
    prices: DensePrices, m: Amount, n: Amount, k: Amount, fmt: str, *, quantized: bool = True
) -> PhaseCost:
    """Return what a GEMM demands; the arguments are those of `DensePrices.gemm_s`.

    Raises:
        ConfigError: The format is unknown, or the device has no rate for it.
    """
    seconds = prices.gemm_s(m, n, k, fmt, quantized=quantized)
    limits = gemm_limits_s(GemmFormat.named(fmt), prices.profile, _arrays(m, n, k))
    return _demand(seconds, prices, "gemm", fmt, limits)


def prefill_demand(
    prices: DensePrices,
    heads: Heads,
    sequences: Amount,
    tokens: Amount,
    fmt: str,
    *,
    cached: Amount = 0,
    window: Amount = 0,
) -> PhaseCost:
    """Return what the attention of a prefill demands; the arguments are those of
    `DensePrices.prefill_s`.

    Raises:
        ConfigError: The format is unknown, or the device has no rate for it.
    """
    seconds = prices.prefill_s(heads, sequences, tokens, fmt, cached=cached, window=window)
    work = _arrays(sequences, tokens, cached, window)
    limits = prefill_limits_s(fmt, prices.profile, heads, work)
    op: Op = "mla_prefill" if heads.kind == "mla" else "prefill"
    return _demand(seconds, prices, op, fmt, limits)


def decode_demand(
    prices: DensePrices,
    heads: Heads,
    sequences: Amount,
    length: Amount,
    fmt: str,
    *,
    window: Amount = 0,
) -> PhaseCost:
    """Return what the attention of a decode demands; the arguments are those of
    `DensePrices.decode_s`.

    Raises:
        ConfigError: The format is unknown.
    """
    seconds = prices.decode_s(heads, sequences, length, fmt, window=window)
    limits = decode_limits_s(fmt, prices.profile, heads, _arrays(sequences, length, window))
    op: Op = "mla_decode" if heads.kind == "mla" else "decode"
    return _demand(seconds, prices, op, fmt, limits)


def stream_demand(prices: DensePrices, num_bytes: Amount, kernels: Amount = 1) -> PhaseCost:
    """Return what kernels that only move bytes demand; the arguments are those of
    `DensePrices.stream_s`.
    """
    seconds, launch = prices.stream_s(num_bytes, kernels), prices.stream_s(0.0, kernels)
    return PhaseCost(
        compute_s_D=np.zeros_like(seconds),
        memory_s_D=seconds - launch,
        latency_s_D=launch + np.zeros_like(seconds),
    )


def _arrays(*sizes: Amount):
    return tuple(np.asarray(size, dtype=np.float64) for size in sizes)


def _demand(
    seconds: Array, prices: DensePrices, op: Op, fmt: str, limits: tuple[Array, Array]
) -> PhaseCost:
    compute, memory = limits
    launch = np.minimum(prices.fitted(op, fmt)["launch_us"] * US, seconds)
    busy = seconds - launch
    decides = compute >= memory
    return PhaseCost(
        compute_s_D=np.where(decides, busy, np.minimum(compute, busy)),
        memory_s_D=np.where(decides, np.minimum(memory, busy), busy),
        latency_s_D=launch,
    )
