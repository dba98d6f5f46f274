"""Price every dense part of a step on one device: what a lowering calls.

All functions are elementwise: sizes are numbers or ndarrays whose shapes broadcast, and seconds
come back as an ndarray of the common shape. `DensePrices.grade` says what a price rests on, with
its 80 % interval.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np

from moesim.costs.calibration import Calibration, load_calibration
from moesim.costs.comm.work import Ports
from moesim.costs.dense.all_reduce import all_reduce_seconds
from moesim.costs.dense.blocks import Amount, in_blocks
from moesim.costs.dense.decode import cache_bytes, decode_seconds
from moesim.costs.dense.elementwise import stream_seconds
from moesim.costs.dense.fitted import WINDOW, FittedSet, fitted_set
from moesim.costs.dense.gemm import GemmFormat, gemm_seconds, quantize_seconds
from moesim.costs.dense.heads import Heads
from moesim.costs.dense.prefill import format_of, prefill_seconds
from moesim.costs.grades import ASSUMED_GRADE, Grade
from moesim.errors import require
from moesim.hardware import Profile

Array = np.ndarray
Op = Literal["gemm", "all_reduce", "prefill", "decode", "mla_prefill", "mla_decode"]
#: kind of price -> calibration file
CALIBRATIONS: dict[Op, str] = {
    "gemm": "dense-gemm",
    "all_reduce": "engine-all-reduce",
    "prefill": "attention-prefill",
    "decode": "attention-decode",
    "mla_prefill": "mla-prefill",
    "mla_decode": "mla-decode",
}
#: first generation on which prefills of latent attention were measured with keys projected up
_PROJECTED_FROM = 100
#: format -> fitted format that computes alike, where a table has only some
_LIKE = {"fp8": "fp8_kv", "fp8_kv": "fp8"}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class DensePrices:
    """Prices of the dense parts of a model on one device, with one serving engine's kernels.

    Attributes:
        profile: The device.
        library: Serving engine, such as ``sglang`` or ``vllm/0.24.0``; empty for any.
        calibrations: Kind of price -> fitted parameters.
    """

    profile: Profile
    library: str
    calibrations: dict[Op, Calibration]

    def gemm_s(self, m: Amount, n: Amount, k: Amount, fmt: str, *, quantized: bool = True) -> Array:
        """Return the seconds of (m x k) times (k x n).

        Args:
            m: Rows.
            n: Columns of the result.
            k: Depth.
            fmt: One of `moesim.costs.dense.gemm.FORMATS`.
            quantized: Whether the price holds the quantization of the activations, where the format
                needs one; False where the kernel before it writes them quantized.

        Raises:
            ConfigError: The format is unknown, or the device has no rate for it.
        """
        made, fitted = GemmFormat.named(fmt), self.fitted("gemm", fmt)
        sizes = (np.asarray(m), np.asarray(n), np.asarray(k))
        seconds = gemm_seconds(fitted.values, made, self.profile, sizes)
        if quantized and made.quantizes:
            return seconds + quantize_seconds(fitted.values, self.profile, sizes[0], sizes[2])
        return seconds

    def prefill_s(
        self,
        heads: Heads,
        sequences: Amount,
        tokens: Amount,
        fmt: str,
        *,
        cached: Amount = 0,
        window: Amount = 0,
    ) -> Array:
        """Return the seconds of the causal attention of a prefill.

        Args:
            heads: Heads of the device, `Heads.grouped` or `Heads.mla_prefill`.
            sequences: Sequences, each of the same size.
            tokens: New tokens of each.
            fmt: One of `moesim.costs.dense.prefill.FORMATS`: ``fp8_kv`` caches fp8 and multiplies
                bfloat16, ``fp8`` does both in fp8.
            cached: Tokens of each that are in the cache already.
            window: Keys that a query may attend to; 0 for all before it.

        Raises:
            ConfigError: The format is unknown, or the device has no rate for it.
        """
        format_of(fmt)
        fitted = self.fitted(_op(heads, "prefill"), fmt)

        def price(b: Array, s: Array, p: Array, w: Array, *sizes: Array) -> Array:
            return prefill_seconds(
                fitted.values, fmt, self.profile, _heads(heads, sizes), (b, s, p, w)
            )

        return _by_row(price, heads, sequences, tokens, cached, window)

    def latent_prefill(self, fmt: str) -> Op:
        """Return the price of the prefill of multi-head latent attention that projects keys and
        values up, which is how engines compute a prompt.

        What was measured on Hopper is another form. Counted as projected up, its longest rows run
        at 173 TFLOP/s; counted as absorbed, with 3.4 times the products, at 587. Engines project up
        (``MHA_CHUNKED_KV`` in SGLang's ``attention_backend_handler.py``, prompts in vLLM's
        ``mla/common.py``), and call the kernel of plain attention for it, FlashAttention-3. On
        Blackwell the projected form was measured itself.

        Raises:
            ConfigError: The format is unknown.
        """
        measured = self.fitted("mla_prefill", fmt).generation
        return "mla_prefill" if measured >= _PROJECTED_FROM else "prefill"

    def decode_s(
        self,
        heads: Heads,
        sequences: Amount,
        length: Amount,
        fmt: str,
        *,
        window: Amount = 0,
        cold: bool = True,
    ) -> Array:
        """Return the seconds of the attention of a decode.

        Args:
            heads: Heads of the device, `Heads.grouped` or `Heads.mla_decode`.
            sequences: Sequences that decode one token each.
            length: Tokens that each attends to, the new one included.
            fmt: Format of the KV cache, ``bfloat16`` or ``fp8``.
            window: Keys that a query may attend to; 0 for all before it.
            cold: Whether the cache must come from memory, as in a step.

        Raises:
            ConfigError: The format is unknown.
        """
        cache_bytes(fmt)
        fitted = self.fitted(_op(heads, "decode"), fmt)

        def price(b: Array, n: Array, w: Array, *sizes: Array) -> Array:
            made = _heads(heads, sizes)
            return decode_seconds(fitted.values, fmt, self.profile, made, (b, n, w), cold=cold)

        return _by_row(price, heads, sequences, length, window)

    def all_reduce_s(self, num_bytes: Amount, ports: Ports) -> Array:
        """Return the seconds of an all-reduce after a tensor-parallel layer.

        Args:
            num_bytes: Bytes of the buffer of one rank.
            ports: The device's side of the fabric; its ``num_ranks`` take part.

        Raises:
            ConfigError: The calibration of NCCL is missing or malformed.
        """
        return all_reduce_seconds(
            self.fitted("all_reduce", "bfloat16").values,
            self.profile,
            ports,
            np.asarray(num_bytes, dtype=np.float64),
        )

    def stream_s(self, num_bytes: Amount, kernels: Amount = 1) -> Array:
        """Return the seconds of kernels that only move bytes, see `moesim.costs.dense.elementwise`.

        Args:
            num_bytes: Bytes that all of them read and write.
            kernels: Number of kernels.

        Raises:
            ConfigError: The calibration of the launch is missing or malformed.
        """
        return stream_seconds(self.profile, num_bytes, kernels)

    @property
    def stream_grade(self) -> Grade:
        """What `stream_s` rests on: no measured rows."""
        return ASSUMED_GRADE

    def grade(self, op: Op, fmt: str, *, windowed: bool = False) -> Grade:
        """Return what a price rests on, with the P10 and P90 of measured / predicted.

        Args:
            op: Kind of price.
            fmt: Format.
            windowed: Whether a window limits the attention.

        Raises:
            ConfigError: The format is unknown, or no windows were measured.
        """
        if not windowed:
            return self.fitted(op, fmt).grade
        like = _LIKE.get(fmt, "") + WINDOW
        return fitted_set(
            self.calibrations[op], fmt + WINDOW, like=like, library=self.library
        ).grade

    def fitted(self, op: Op, fmt: str) -> FittedSet:
        """Return the fitted parameters of a price.

        Raises:
            ConfigError: Neither the format nor one that computes alike was fitted.
        """
        like = GemmFormat.named(fmt).like if op == "gemm" else _LIKE.get(fmt, "")
        return fitted_set(self.calibrations[op], fmt, like=like, library=self.library)


@lru_cache(maxsize=64)
def _prices(profile: Profile, library: str, calibrations: tuple[Calibration, ...]) -> DensePrices:
    return DensePrices(
        profile=profile,
        library=library,
        calibrations=dict(zip(CALIBRATIONS, calibrations, strict=True)),
    )


def dense_prices(profile: Profile, library: str = "sglang") -> DensePrices:
    """Return the prices of a device, the same object as long as its calibrations stay.

    A device without streaming multiprocessors is priced as if it had 128 units: its spec sheet says
    the rest.

    Args:
        profile: The device.
        library: Serving engine whose kernels run; one that was not fitted is priced as another, at
            a lower grade.

    Raises:
        ConfigError: A calibration file is missing or malformed, or the device is a CPU, whose
            profile holds tables of its own.
    """
    require(profile.execution != "serial", "dense prices", "a GPU or TPU", profile.name)
    return _prices(
        profile, library, tuple(load_calibration(name, profile) for name in CALIBRATIONS.values())
    )


def _op(heads: Heads, phase: Literal["prefill", "decode"]) -> Op:
    if phase == "prefill":
        return "mla_prefill" if heads.kind == "mla" else "prefill"
    return "mla_decode" if heads.kind == "mla" else "decode"


def _by_row(price: Callable[..., Array], heads: Heads, *work: Amount) -> Array:
    """Evaluate a price block by block; the sizes of the heads are further columns."""
    sizes = (heads.num_heads, heads.num_kv_heads, heads.key_size, heads.value_size, heads.kv_size)
    return in_blocks(price, *work, *sizes)


def _heads(heads: Heads, sizes: tuple[Array, ...]) -> Heads:
    num_heads, num_kv_heads, key_size, value_size, kv_size = sizes
    return Heads(
        kind=heads.kind,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        key_size=key_size,
        value_size=value_size,
        kv_size=kv_size,
    )
