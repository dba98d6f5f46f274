"""Price what stands between the projections of an attention and its core: rotary embeddings, norms
of latent vectors, keys and values into the cache, and keys put together for prompts.

All of it only moves bytes (`moesim.costs.dense.elementwise`), some percent of a long prompt. Only
the tokens of prompts are counted, without launches: what a decoding step spends on these kernels is
in the constants of an engine's host, which were fitted to whole steps. The kernels are those of
SGLang and vLLM: rotary embeddings in place, and for latent attention a norm of each latent vector,
and keys of prompts that are written whole, their own part beside the rotary part that all heads
share (SGLang, models/deepseek_v2.py, forward_normal; vLLM, MLACommonImpl).
"""

from functools import singledispatch

from moesim.costs.dense.elementwise import norm_bytes, rotary_bytes
from moesim.costs.phase import PhaseCost, sequence
from moesim.costs.steps.mixers import DensePricing, projections
from moesim.costs.steps.shares import kv_heads_of
from moesim.design.step import Step
from moesim.model.latent import LatentAttention
from moesim.model.mixers import GroupedAttention, Mixer

_ELEMENT_BYTES = 2.0


def projected(pricing: DensePricing, mixer: Mixer, step: Step) -> PhaseCost:
    """Price the GEMMs of a mixer, and what stands between them and its core."""
    moved = _moved_bytes(mixer, pricing, step)
    gemms = projections(pricing, mixer, step)
    return sequence(gemms, pricing.moved(moved, 0)) if moved else gemms


@singledispatch
def _moved_bytes(mixer: Mixer, pricing: DensePricing, step: Step) -> float:
    """Return the bytes that are read and written; none for mixers that keep a state, whose core
    counts them.
    """
    return 0.0


@_moved_bytes.register
def _(mixer: GroupedAttention, pricing: DensePricing, step: Step) -> float:
    keys = kv_heads_of(mixer, pricing.tp)
    rotated = rotary_bytes(
        step.prefill_tokens, mixer.num_heads / pricing.tp + keys, mixer.head_size
    )
    cached = 2.0 * _ELEMENT_BYTES * step.prefill_tokens * 2.0 * keys * mixer.head_size
    return float(rotated + cached)


@_moved_bytes.register
def _(mixer: LatentAttention, pricing: DensePricing, step: Step) -> float:
    heads = mixer.num_heads / pricing.tp
    latent = mixer.q_rank + mixer.kv_rank
    moved = norm_bytes(step.prefill_tokens, latent, residual=False)
    moved += rotary_bytes(step.prefill_tokens, heads + 1.0, mixer.rope_size)
    moved += 2.0 * _ELEMENT_BYTES * step.prefill_tokens * (mixer.kv_rank + mixer.rope_size)
    if mixer.indexer is None:
        keys = 2.0 * mixer.head_size + mixer.rope_size
        moved += _ELEMENT_BYTES * step.prefill_tokens * heads * keys
    return float(moved)
