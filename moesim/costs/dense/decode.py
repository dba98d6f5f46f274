"""Price the attention of a decode: one new token of each sequence reads the sequence's KV cache.

With B sequences of L tokens (the new one included), H heads, K KV heads of c cached elements, keys
of Dk and values of Dv elements,

    launch + doubling log2(1 + L / 256) + waves x wave
           + softmax(B K c L' bytes / (bandwidth eff), 2 B K R (Dk + Dv) L' / (peak rate))
           + query and output bytes x factor / bandwidth.

A tile holds the rows that share a KV head, H / K, in whole tiles of ``tile_rows`` (R rows in all),
so that waves = ceil(B K R / (tile_rows SMs)); each starts and ends on its own. L' = sqrt(L^2 +
pad^2): a short sequence takes as long as one of ``pad_tokens``. The products only matter for many
rows (all heads of multi-head latent attention share one latent; absorbed form, DeepSeek-V2, arXiv
2405.04434). softmax is an 8-norm. A longer sequence is split more often, and the parts are
combined. ``compute_rate`` is relative to the peak in bfloat16. A window limits L, and where it
does, each wave takes ``window_us`` more.

Measured rows repeat one call, so that a cache smaller than the L2 stays in it: a share
``cached_share`` of the bytes is saved up to ``cache_fraction`` of the L2, and none from twice that
on. The cache of a step is cold: prices leave that term out.

``launch_us``, ``doubling_us``, ``wave_us``, ``window_us``, ``pad_tokens``,
``read_efficiency_SIZE``, ``compute_rate``, ``query_factor`` and both of the L2 are fitted;
sizes between those fitted are linear.
"""

from collections.abc import Mapping

import numpy as np

from moesim.costs.dense.blocks import units_of
from moesim.costs.dense.heads import Heads
from moesim.costs.dense.prefill import by_size
from moesim.errors import UnknownNameError
from moesim.hardware import Profile
from moesim.units import US

Array = np.ndarray
#: format of the KV cache -> bytes of one element; the products are in bfloat16
_FORMATS = {"bfloat16": 2.0, "fp8": 1.0}
FORMATS = tuple(_FORMATS)
_PRODUCTS = "bfloat16"
_DOUBLING_FROM = 256.0
_ELEMENT_BYTES = 2.0
EFFICIENCY = "read_efficiency_"


def cache_bytes(name: str) -> float:
    """Return the bytes of one element of a KV cache.

    Raises:
        UnknownNameError: The name is not one of `FORMATS`.
    """
    if name not in _FORMATS:
        raise UnknownNameError("format of a KV cache", name, FORMATS)
    return _FORMATS[name]


def decode_seconds(
    values: Mapping[str, float],
    fmt: str,
    profile: Profile,
    heads: Heads,
    work: tuple[Array, Array, Array],
    *,
    cold: bool = True,
) -> Array:
    """Return the seconds of the attention of a decode.

    Args:
        values: Fitted parameters of the format.
        fmt: Format of the KV cache, one of `FORMATS`.
        profile: The device.
        heads: Heads of the device.
        work: Sequences B, their length L and window (0 for none), ndarrays whose shapes broadcast.
        cold: Whether the KV cache must come from memory, as in a step; False for a benchmark that
            repeats one call.
    """
    sequences, length, window = work
    kept = np.where(window > 0, np.minimum(length, window), length)
    padded = np.sqrt(kept**2 + values["pad_tokens"] ** 2)
    per_token = sequences * heads.num_kv_heads * heads.kv_size * cache_bytes(fmt)
    size = heads.key_size
    share = by_size(values, EFFICIENCY, size)
    read = per_token * padded / (profile.hbm_bandwidth_bytes_per_s * share)
    if not cold:
        read = read * (1.0 - values["cached_share"] * _warm(values, profile, per_token * kept))
    tile = values["tile_rows"]
    tiles = sequences * heads.num_kv_heads * np.ceil(heads.num_heads / heads.num_kv_heads / tile)
    flops = 2.0 * tiles * tile * (size + heads.value_size) * padded
    compute = flops / (profile.peak(_PRODUCTS) * values["compute_rate"])
    query = sequences * heads.num_heads * (size + heads.value_size) * _ELEMENT_BYTES
    wave_us = values["wave_us"] + np.where(kept < length, values["window_us"], 0.0)
    return (
        values["launch_us"] * US
        + values["doubling_us"] * US * np.log2(1.0 + kept / _DOUBLING_FROM)
        + wave_us * US * np.ceil(tiles / units_of(profile))
        + _eight_norm(read, compute)
        + values["query_factor"] * query / profile.hbm_bandwidth_bytes_per_s
    )


def decode_limits_s(
    fmt: str, profile: Profile, heads: Heads, work: tuple[Array, Array, Array]
) -> tuple[Array, Array]:
    """Return FLOPs over the peak and bytes over the bandwidth, in seconds; the larger is the
    roofline, and the arguments are those of `decode_seconds`.
    """
    sequences, length, window = work
    kept = np.where(window > 0, np.minimum(length, window), length)
    width = heads.key_size + heads.value_size
    flops = 2.0 * sequences * heads.num_heads * width * kept
    moved = sequences * (
        heads.num_kv_heads * heads.kv_size * cache_bytes(fmt) * kept
        + heads.num_heads * width * _ELEMENT_BYTES
    )
    return flops / profile.peak(_PRODUCTS), moved / profile.hbm_bandwidth_bytes_per_s


def _warm(values: Mapping[str, float], profile: Profile, working_set: Array) -> Array:
    """Return the share of a working set that stays in the L2: all of a small one, none of one that
    is twice as large as fits.
    """
    return np.clip(2.0 - working_set / (values["cache_fraction"] * profile.l2_bytes), 0.0, 1.0)


def _eight_norm(one: Array, other: Array) -> Array:
    """Return (one^8 + other^8)^(1/8), scaled so that nothing underflows."""
    largest = np.maximum(one, other)
    ratio = np.minimum(one, other) / largest
    return largest * np.sqrt(np.sqrt(np.sqrt(1.0 + ratio**8)))
