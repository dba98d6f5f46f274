"""Price the attention of a prefill: causal, with cached prefixes and sliding windows.

With B sequences of S new tokens after P cached ones, H heads, K KV heads, keys of Dk and values of
Dv elements, and A pairs of a query and a key that it attends to,

    launch + 2 B H (Dk + Dv) (A + ramp S) / (peak eff)
           + tail x seconds of the longest tile on one SM + waves x tile
           + (query, output + factor x new KV + cached KV) bytes / (share of the bandwidth).

A tile holds 128 rows, a row being a query of a head. Where heads that share a KV head share tiles
(``packed``, as in FlashAttention-3; Shah et al. 2024, arXiv 2407.08608), waves = ceil(B K ceil(S H
/ K / 128) / SMs), otherwise ceil(B H ceil(S / 128) / SMs). Copies at a tile's start and end do not
overlap its products: the terms add up. The efficiency depends on the head size, linearly between
those measured. New KV counts as more bytes than it has: it is written to the cache and read by
every tile of its head.

Without a window A = S P + S (S + 1) / 2. With a window of W a query attends to at most W keys, and
its tile touches up to 127 more; where keys are left out, each wave takes ``window_us`` more.

``launch_us``, ``compute_efficiency_SIZE``, ``ramp_tokens``, ``tail``, ``tile_us``, ``window_us``,
``kv_factor`` and ``packed`` are fitted. No measured row has a cached prefix.
"""

from collections.abc import Mapping

import numpy as np

from moesim.costs.dense.blocks import units_of
from moesim.costs.dense.heads import Heads
from moesim.errors import UnknownNameError
from moesim.hardware import Profile
from moesim.units import US

Array = np.ndarray
#: format -> format of the products, bytes of one element of the KV cache
_FORMATS = {
    "bfloat16": ("bfloat16", 2.0),
    "fp8_kv": ("bfloat16", 1.0),
    "fp8": ("float8_e4m3", 1.0),
}
FORMATS = tuple(_FORMATS)
#: rows of a tile
_ROWS = 128
_ELEMENT_BYTES = 2.0
#: share of the bandwidth at which queries and outputs move, that of the GEMMs' operands (assumed)
_STREAM_SHARE = 0.85
EFFICIENCY = "compute_efficiency_"


def format_of(name: str) -> tuple[str, float]:
    """Return the format of the products and the bytes of one element of the cache.

    Raises:
        UnknownNameError: The name is not one of `FORMATS`.
    """
    if name not in _FORMATS:
        raise UnknownNameError("format of a prefill", name, FORMATS)
    return _FORMATS[name]


def attended_pairs(tokens: Array, cached: Array, window: Array, *, beyond: float = 0.0) -> Array:
    """Return the pairs of a query and a key that it attends to.

    Args:
        tokens: New tokens S of a sequence, ndarray of any shape.
        cached: Cached tokens P before them, of a shape that broadcasts.
        window: Keys that a query may attend to; 0 for all before it.
        beyond: Keys that a query with a full window touches beyond it.
    """
    limit = np.where(window > 0, window, np.inf)
    growing = np.clip(limit - cached, 0.0, tokens)
    full = tokens - growing
    keys = np.where(full > 0, np.minimum(limit + beyond, cached + tokens), 0.0)
    some = growing * cached + growing * (growing + 1.0) / 2.0 + full * keys
    return np.minimum(some, tokens * cached + tokens * (tokens + 1.0) / 2.0)


def prefill_seconds(
    values: Mapping[str, float],
    fmt: str,
    profile: Profile,
    heads: Heads,
    work: tuple[Array, Array, Array, Array],
) -> Array:
    """Return the seconds of the attention of a prefill.

    Args:
        values: Fitted parameters of the format.
        fmt: One of `FORMATS`.
        profile: The device.
        heads: Heads of the device.
        work: Sequences B, new tokens S, cached tokens P and window, ndarrays whose shapes
            broadcast.

    Raises:
        ConfigError: The device has no rate for the format.
    """
    products, kv_bytes = format_of(fmt)
    sequences, tokens, cached, window = work
    share = by_size(values, EFFICIENCY, heads.key_size)
    flops_per_s = profile.peak(products) * share
    per_pair = 2.0 * (heads.key_size + heads.value_size)
    ramp = values["ramp_tokens"]
    pairs = attended_pairs(tokens, cached, window, beyond=_ROWS - 1.0) + ramp * tokens
    compute = sequences * heads.num_heads * per_pair * pairs / flops_per_s
    last = np.where(window > 0, np.minimum(cached + tokens, window + _ROWS - 1.0), cached + tokens)
    longest = _ROWS * per_pair * (last + ramp) * units_of(profile) / flops_per_s
    group = heads.num_heads / heads.num_kv_heads if values["packed"] else 1.0
    tiles = sequences * (heads.num_heads / group) * np.ceil(tokens * group / _ROWS)
    windowed = (window > 0) & (cached + tokens > window)
    tile_us = values["tile_us"] + np.where(windowed, values["window_us"], 0.0)
    waves = np.ceil(tiles / units_of(profile))
    rows_bytes = tokens * heads.num_heads * (heads.key_size + heads.value_size) * _ELEMENT_BYTES
    kv = heads.num_kv_heads * heads.kv_size * kv_bytes
    moved = sequences * (rows_bytes + kv * (values["kv_factor"] * tokens + _kept(cached, window)))
    return (
        values["launch_us"] * US
        + compute
        + values["tail"] * longest
        + waves * tile_us * US
        + moved / (profile.hbm_bandwidth_bytes_per_s * _STREAM_SHARE)
    )


def prefill_limits_s(
    fmt: str, profile: Profile, heads: Heads, work: tuple[Array, Array, Array, Array]
) -> tuple[Array, Array]:
    """Return FLOPs over the peak and bytes over the bandwidth, in seconds; the larger is the
    roofline, and the arguments are those of `prefill_seconds`.

    Raises:
        ConfigError: The device has no rate for the format.
    """
    products, kv_bytes = format_of(fmt)
    sequences, tokens, cached, window = work
    per_pair = 2.0 * (heads.key_size + heads.value_size)
    pairs = attended_pairs(tokens, cached, window)
    rows_bytes = tokens * heads.num_heads * (heads.key_size + heads.value_size) * _ELEMENT_BYTES
    kv = heads.num_kv_heads * heads.kv_size * kv_bytes * (tokens + _kept(cached, window))
    return (
        sequences * heads.num_heads * per_pair * pairs / profile.peak(products),
        sequences * (rows_bytes + kv) / profile.hbm_bandwidth_bytes_per_s,
    )


def by_size(values: Mapping[str, float], start: str, size: Array | int) -> Array:
    """Return a parameter that depends on the head size, linearly between the sizes that were
    fitted, and as the nearest one beyond them.

    Args:
        values: Fitted parameters.
        start: What the parameter's names begin with; the size follows.
        size: Head sizes, a number or an ndarray.
    """
    known = sorted(
        (int(name.removeprefix(start)), value)
        for name, value in values.items()
        if name.startswith(start)
    )
    return np.asarray(np.interp(size, [one[0] for one in known], [one[1] for one in known]))


def _kept(cached: Array, window: Array) -> Array:
    return np.where(window > 0, np.minimum(cached, window), cached)
