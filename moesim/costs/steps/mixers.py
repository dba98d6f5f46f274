"""Price a mixer on one device: its projections, and what its tokens do with each other.

Attention is priced by fitted forms (`moesim.costs.dense`). Latent attention decodes in its absorbed
form, where query and output are multiplied by the up-projection of keys and values head by head:
as many FLOPs and weights as the up-projection itself (DeepSeek-V2, arXiv 2405.04434). Its prompts
project keys and values up, and attend as plain attention does; where an indexer picks keys for each
token, they stay absorbed (FlashMLA's sparse prefill). A sparse attention reads the keys that its
indexer picked, after scoring all of them. Mixers with a state
read and write it for every decoding sequence, and update it for every token of a prompt; nothing is
fitted there, and their grade is D.

Every price is of one device, with arrays of shape (1,).
"""

from dataclasses import dataclass, replace
from functools import singledispatch
from math import isqrt

import numpy as np

from moesim.costs.dense.blocks import Amount
from moesim.costs.dense.demands import (
    decode_demand,
    gemm_demand,
    prefill_demand,
    stream_demand,
)
from moesim.costs.dense.heads import Heads
from moesim.costs.dense.prices import DensePrices
from moesim.costs.phase import PhaseCost, sequence
from moesim.costs.steps.shares import channel_params, kv_heads_of, products_of
from moesim.design.step import Step
from moesim.model.latent import CompressedAttention, LatentAttention
from moesim.model.mixers import GroupedAttention, Indexer, Mixer

_ELEMENT_BYTES = 2.0
#: format in which an indexer scores keys, where a device has it (DeepSeek-V3.2)
_SCORES = "float8_e4m3"
#: share of the peak that the products of a state's update reach (assumed: those of a prefill of
#: attention with small heads)
_STATE_SHARE = 0.4
_FLOPS_PER_STATE = 4.0
#: small kernels of an indexer beside its GEMMs and scores (SGLang, nsa_indexer.py): norm of the
#: keys, rotary embedding, its results put back into queries and keys, Hadamard transforms of both,
#: quantization of both, keys into the cache, scaled weights of heads, top-k
_INDEX_KERNELS = 11
#: of these, those that read and write all queries: rotary part, transform, quantization
_QUERY_PASSES = 3.0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class DensePricing:
    """What the dense parts of a model are priced with, on one device.

    Attributes:
        prices: Fitted prices of GEMMs and attention.
        hidden_size: Width of a token.
        tp: Devices of an attention rank.
        fmt: Format of the GEMMs, one of `moesim.costs.dense.gemm.FORMATS`.
        kv: Format of the KV cache, ``bfloat16`` or ``fp8``.
    """

    prices: DensePrices
    hidden_size: int
    tp: int = 1
    fmt: str = "bfloat16"
    kv: str = "bfloat16"

    def gemm(self, m: float, n: float, k: float, fmt: str | None = None) -> PhaseCost:
        """Price one GEMM."""
        return _row(gemm_demand(self.prices, m, n, k, fmt or self.fmt))

    def moved(self, num_bytes: Amount, kernels: int = 1) -> PhaseCost:
        """Price kernels that only read and write bytes in order."""
        return _row(stream_demand(self.prices, num_bytes, kernels))


def _row(cost: PhaseCost) -> PhaseCost:
    """Return the price of one device as arrays of shape (1,)."""
    return PhaseCost(
        compute_s_D=np.atleast_1d(cost.compute_s_D),
        memory_s_D=np.atleast_1d(cost.memory_s_D),
        latency_s_D=np.atleast_1d(cost.latency_s_D),
    )


def projections(pricing: DensePricing, mixer: Mixer, step: Step) -> PhaseCost:
    """Price the GEMMs of a mixer."""
    found = [
        pricing.gemm(step.tokens, n, k)
        for n, k in products_of(mixer, pricing.hidden_size, pricing.tp)
    ]
    params = channel_params(mixer, pricing.hidden_size, pricing.tp)
    if params:
        # every token passes each channel once, in and out
        channels = max(params / 4.0, 1.0)
        found.append(pricing.moved(_ELEMENT_BYTES * (params + 2.0 * step.tokens * channels)))
    return sequence(*found)


@singledispatch
def core(mixer: Mixer, pricing: DensePricing, step: Step) -> PhaseCost:
    """Price what the tokens of a mixer do with each other: by default the update of a state."""
    state = mixer.state_bytes_per_sequence / pricing.tp
    elements = state / 4.0
    flops = _FLOPS_PER_STATE * elements * step.prefill_tokens
    compute_s = flops / (pricing.prices.profile.peak("bfloat16") * _STATE_SHARE)
    moved = 2.0 * state * (step.sequences + step.prefills)
    moved += 4.0 * isqrt(round(elements) or 1) * step.tokens * _ELEMENT_BYTES
    memory = pricing.moved(moved)
    return PhaseCost(
        compute_s_D=memory.compute_s_D + compute_s,
        memory_s_D=memory.memory_s_D,
        latency_s_D=memory.latency_s_D,
    )


@core.register
def _(mixer: GroupedAttention, pricing: DensePricing, step: Step) -> PhaseCost:
    heads = Heads.grouped(
        mixer.num_heads // pricing.tp, kv_heads_of(mixer, pricing.tp), mixer.head_size
    )
    return _attention(pricing, step, heads, heads, mixer.window, mixer.indexer)


@core.register
def _(mixer: LatentAttention, pricing: DensePricing, step: Step) -> PhaseCost:
    heads = mixer.num_heads // pricing.tp
    absorbed = Heads.mla_decode(heads, latent_size=mixer.kv_rank, rope_size=mixer.rope_size)
    prefill = Heads.mla_prefill(
        heads, key_size=mixer.head_size + mixer.rope_size, value_size=mixer.value_size
    )
    if _picks(mixer.indexer, step):
        # keys that were picked token by token are read as they are cached
        prefill = Heads.plain(absorbed)
    elif pricing.prices.latent_prefill(_prefill_format(pricing)) == "prefill":
        prefill = Heads.plain(prefill)
    return _attention(pricing, step, prefill, absorbed, mixer.window, mixer.indexer)


def _picks(indexer: Indexer | None, step: Step) -> bool:
    """Return whether an indexer leaves keys of a prompt out."""
    keys = step.cached_tokens + step.new_tokens
    return indexer is not None and keys > indexer.top_k * indexer.block_size


def _prefill_format(pricing: DensePricing) -> str:
    """Return the format of a prefill as its price names it."""
    return "fp8_kv" if pricing.kv == "fp8" else pricing.kv


@core.register
def _(mixer: CompressedAttention, pricing: DensePricing, step: Step) -> PhaseCost:
    # one head of keys that are values, too; older keys stand for several tokens
    heads = Heads.mla_decode(
        mixer.num_heads // pricing.tp, latent_size=mixer.head_size, rope_size=0
    )
    ratio = mixer.compress_ratio
    kept = min(step.context, mixer.window)
    if ratio:
        older = max(step.context - mixer.window, 0.0) / ratio
        kept += min(older, mixer.indexer.top_k) if mixer.indexer else older
    parts = []
    if step.prefills:
        prompts = replace(step, sequences=0.0)
        parts.append(_attention(pricing, prompts, heads, heads, mixer.window, None))
    if step.sequences:
        # what is kept holds the window already
        reading = replace(step, prefills=0.0, context=max(kept, 1.0))
        parts.append(_attention(pricing, reading, heads, heads, None, None))
    if mixer.indexer:
        parts.append(_index(pricing, step, mixer.indexer))
    return sequence(*parts)


def _attention(
    pricing: DensePricing,
    step: Step,
    prefill: Heads,
    decode: Heads,
    window: int | None,
    indexer: Indexer | None,
) -> PhaseCost:
    """Price prefill and decode, one after the other, and the indexer before them."""
    parts, prices = [], pricing.prices
    picked = indexer.top_k * indexer.block_size if indexer else 0
    limit = min((w for w in (window or 0, picked) if w), default=0)
    if indexer:
        parts.append(_index(pricing, step, indexer))
    if step.prefills:
        whole = prefill_demand(
            prices,
            prefill,
            step.prefills,
            step.new_tokens,
            _prefill_format(pricing),
            cached=step.cached_tokens,
            window=limit,
        )
        parts.append(_row(whole))
    if step.sequences:
        # all new tokens of a sequence read its cache once, like heads that share it
        heads = replace(decode, num_heads=decode.num_heads * step.tokens_per_sequence)
        length = max(step.context, 1.0)
        read = decode_demand(prices, heads, step.sequences, length, pricing.kv, window=limit)
        parts.append(_row(read))
    return sequence(*parts)


def _index(pricing: DensePricing, step: Step, indexer: Indexer) -> PhaseCost:
    """Price an indexer without its GEMMs: the scores of every new token against all keys, which are
    read once for each sequence, and the small kernels around them. Scores are written in float32,
    and read by the top-k.
    """
    ratio, profile = indexer.compress_ratio, pricing.prices.profile
    new = step.new_tokens
    pairs = step.prefills * new * (step.cached_tokens + (new + 1.0) / 2.0)
    pairs += step.decode_tokens * step.context
    read = step.prefills * (step.cached_tokens + new) + step.sequences * step.context
    flops = 2.0 * pairs / ratio * indexer.num_heads * indexer.head_size
    moved = read * indexer.bytes_per_token + 2.0 * 4.0 * pairs / ratio
    queries = step.tokens * indexer.num_heads * indexer.head_size
    moved += 2.0 * _QUERY_PASSES * _ELEMENT_BYTES * queries
    peak = profile.peak(_SCORES if _SCORES in profile.peak_flops_per_s else "bfloat16")
    compute_s = flops / (peak * _STATE_SHARE)
    memory = pricing.moved(moved, 1 + _INDEX_KERNELS)
    return sequence(
        PhaseCost(
            compute_s_D=memory.compute_s_D + compute_s,
            memory_s_D=memory.memory_s_D,
            latency_s_D=memory.latency_s_D,
        )
    )
