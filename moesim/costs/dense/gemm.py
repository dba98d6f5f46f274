"""Price a dense GEMM, (m x k) times (k x n), as a vendor's library runs it on a GPU.

The library picks the tile and the split of the depth that it expects to be fastest, so that the
price is the least over both of

    launch + softmax(waves (depth (2 BM BN SMs / (peak eff) + step) + tile),
                     bytes / (bandwidth eff))

in which waves = ceil(tiles x splits / SMs), depth = k / splits, the tile's own cost grows with the
square root of its area, and softmax is a 4-norm: copies and products run side by side. A split
beyond one adds a second kernel and the float32 partial sums, written and read once. Results count
as more bytes than they have, since a tile writes them after its last product.

``launch_us``, ``compute_efficiency``, ``memory_efficiency``, ``tile_us``, ``split_us``,
``output_factor``, ``step_ns`` (per element of depth) and, for formats below 16 bits, the bytes that
the quantization of one activation moves (``quantize_bytes``) are fitted. The latter is a kernel of
its own, which the measured rows include: an amax and a quantized copy are 3 bytes in one pass
(blocks) and 5 in two (one scale per tensor) at the peak bandwidth.

Tiles: those of CUTLASS's and cuBLAS's Hopper kernels (NVIDIA, CUTLASS profiler documentation).
Rows: aiconfigurator-core 0.12, gemm_perf; weights are cold there, as they are in a step.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from moesim.costs.dense.blocks import in_blocks, units_of
from moesim.errors import UnknownNameError
from moesim.hardware import Profile
from moesim.model import Precision
from moesim.units import US

Array = np.ndarray
#: rows and columns of a tile
_TILES = ((64, 64), (64, 128), (128, 64), (128, 128), (64, 256), (256, 64), (128, 256), (256, 128))
_LARGE_TILE = 128 * 128
_SPLITS = (1, 2, 4, 8, 16)
#: elements of depth that a tile loads at once
_STEP = 64
_OUTPUT_BYTES = 2.0
#: a float32 partial sum is written and read
_PARTIAL_BYTES = 8.0
#: name of a format in measured rows -> recipe, and the format that computes alike
_FORMATS = {
    "bfloat16": (Precision.named("bf16"), "bfloat16"),
    "fp8": (Precision.named("fp8_tensor"), "fp8"),
    "fp8_block": (Precision.named("fp8"), "fp8_block"),
    "nvfp4": (Precision.named("nvfp4"), "fp8_block"),
    "int4_wo": (Precision.named("int4"), "bfloat16"),
    "w4a16_mxfp4": (Precision.named("mxfp4"), "bfloat16"),
    "w4a8_mxfp4_mxfp8": (Precision.named("mxfp4_a8"), "fp8_block"),
}
FORMATS = tuple(_FORMATS)


@dataclass(frozen=True, slots=True, kw_only=True)
class GemmFormat:
    """Formats of a dense GEMM.

    Attributes:
        name: Name in measured rows, one of `FORMATS`.
        peak: Format of the products, which names the device's rate.
        weight_bytes: Bytes of one weight, with its share of the scales.
        activation_bytes: Bytes of one activation, with its share of the scales.
        like: Fitted format that computes alike.
    """

    name: str
    peak: str
    weight_bytes: float
    activation_bytes: float
    like: str

    @classmethod
    def named(cls, name: str) -> "GemmFormat":
        """Return a format by its name.

        Raises:
            UnknownNameError: The name is not one of `FORMATS`.
        """
        if name not in _FORMATS:
            raise UnknownNameError("format of a dense GEMM", name, FORMATS)
        precision, like = _FORMATS[name]
        width = 1024
        return cls(
            name=name,
            peak=precision.activations,
            weight_bytes=precision.weight_bytes,
            activation_bytes=precision.token_bytes("activations", width) / width,
            like=like,
        )

    @property
    def quantizes(self) -> bool:
        """Whether activations are quantized before the product."""
        return self.activation_bytes < _OUTPUT_BYTES


def gemm_seconds(
    values: Mapping[str, float],
    fmt: GemmFormat,
    profile: Profile,
    sizes: tuple[Array, Array, Array],
) -> Array:
    """Return the seconds of the products, without the quantization of the activations.

    Args:
        values: Fitted parameters of the format.
        fmt: Formats.
        profile: The device.
        sizes: The sizes m, n and k, ndarrays of one shape.

    Returns:
        ndarray of the same shape.

    Raises:
        ConfigError: The device has no rate for the format.
    """
    units = units_of(profile)
    flops_per_s = profile.peak(fmt.peak) * values["compute_efficiency"] / units
    bytes_per_s = profile.hbm_bandwidth_bytes_per_s * values["memory_efficiency"]

    def block(m: Array, n: Array, k: Array) -> Array:
        moved = m * k * fmt.activation_bytes + n * k * fmt.weight_bytes
        memory = (moved + m * n * _OUTPUT_BYTES * values["output_factor"]) / bytes_per_s
        counts = [(area, np.ceil(m / bm) * np.ceil(n / bn)) for bm, bn, area in _areas()]
        fastest = np.full(m.shape, np.inf)
        for splits in _SPLITS:
            depth = np.ceil(k / (splits * _STEP)) * _STEP
            compute = np.full(m.shape, np.inf)
            for area, tiles in counts:
                per_step = 2.0 * area / flops_per_s + values["step_ns"] * 1e-3 * US
                fixed = values["tile_us"] * US * (area / _LARGE_TILE) ** 0.5
                waves = np.ceil(tiles * (splits / units))
                np.minimum(compute, waves * (depth * per_step + fixed), out=compute)
            time = _four_norm(compute, memory)
            if splits > 1:
                partial = splits * _PARTIAL_BYTES / profile.hbm_bandwidth_bytes_per_s
                time += values["split_us"] * US + m * n * partial
            np.minimum(fastest, time, out=fastest)
        return values["launch_us"] * US + fastest

    return in_blocks(block, *sizes)


def quantize_seconds(values: Mapping[str, float], profile: Profile, m: Array, k: Array) -> Array:
    """Return the seconds in which (m x k) activations are quantized for a product.

    Its launch is in that of the products, with which it was timed.

    Args:
        values: Fitted parameters of the format.
        profile: The device.
        m: Rows, an ndarray of any shape.
        k: Elements of a row, of a shape that broadcasts with it.
    """
    return values["quantize_bytes"] * m * k / profile.hbm_bandwidth_bytes_per_s


def gemm_limits_s(
    fmt: GemmFormat, profile: Profile, sizes: tuple[Array, Array, Array]
) -> tuple[Array, Array]:
    """Return FLOPs over the peak and bytes over the bandwidth, in seconds; the larger is the
    roofline.

    Args:
        fmt: Formats.
        profile: The device.
        sizes: The sizes m, n and k, ndarrays whose shapes broadcast.

    Raises:
        ConfigError: The device has no rate for the format.
    """
    m, n, k = sizes
    moved = m * k * fmt.activation_bytes + n * k * fmt.weight_bytes + m * n * _OUTPUT_BYTES
    return 2.0 * m * n * k / profile.peak(fmt.peak), moved / profile.hbm_bandwidth_bytes_per_s


def _areas() -> tuple[tuple[int, int, float], ...]:
    return tuple((bm, bn, float(bm * bn)) for bm, bn in _TILES)


def _four_norm(one: Array, other: Array) -> Array:
    """Return (one^4 + other^4)^(1/4); two square roots are faster than a power."""
    first, second = one * one, other * other
    return np.sqrt(np.sqrt(first * first + second * second))
