"""Price what surrounds mixers and experts: norms, dense feed-forwards, embedding, head, sampler.

GEMMs are fitted; what only moves bytes is counted (`moesim.costs.dense.elementwise`).
"""

import numpy as np

from moesim.costs.dense.elementwise import (
    activation_bytes,
    embedding_bytes,
    norm_bytes,
    sampler_bytes,
    sum_bytes,
)
from moesim.costs.devices.primitives import kernels_for
from moesim.costs.phase import PhaseCost, sequence
from moesim.costs.phases.gate import price_gate
from moesim.costs.steps.mixers import DensePricing
from moesim.design.step import Step
from moesim.model import MoELayer
from moesim.model.feedforward import DenseFeedForward, MoEFeedForward

_LOGIT_BYTES = 4.0
#: gates that engines compute in one kernel after the scores
_FUSED = ("flat", "group_limited")


def norm(pricing: DensePricing, tokens: float) -> PhaseCost:
    """Price a norm with the residual's addition."""
    return pricing.moved(norm_bytes(tokens, pricing.hidden_size))


def feed_forward(
    pricing: DensePricing, tokens: float, width: float, *, gated: bool, size: int | None = None
) -> PhaseCost:
    """Price a dense feed-forward of one device, whose share of the width is given."""
    hidden = size or pricing.hidden_size
    up = 2.0 if gated else 1.0
    return sequence(
        pricing.gemm(tokens, up * width, hidden),
        pricing.moved(activation_bytes(tokens, width, gated=gated)),
        pricing.gemm(tokens, hidden, width),
    )


def dense(pricing: DensePricing, block: DenseFeedForward, step: Step) -> PhaseCost:
    """Price the dense feed-forward of a layer."""
    return feed_forward(pricing, step.tokens, block.width / pricing.tp, gated=block.gated)


def shared(pricing: DensePricing, moe: MoEFeedForward, tokens: float, tp: int) -> PhaseCost:
    """Price the shared experts of a layer, whose width ``tp`` devices share, as one block, and
    adding their result to that of the routed ones.
    """
    width = moe.num_shared_experts * moe.shared_width / tp
    return sequence(
        feed_forward(pricing, tokens, width, gated=moe.gated),
        pricing.moved(sum_bytes(tokens, pricing.hidden_size), 0),
    )


def gate(pricing: DensePricing, layer: MoELayer, tokens: float) -> PhaseCost:
    """Price the gate of a serving engine: the scores, then one kernel that normalizes, limits
    groups and picks (``moe_fused_gate`` of SGLang, ``grouped_topk`` of vLLM, ``noAuxTc`` of
    TensorRT-LLM).
    """
    if layer.gate.kind not in _FUSED:
        return price_gate(
            kernels_for(pricing.prices.profile), layer, np.full(1, round(tokens) or 1)
        )
    logits = tokens * layer.num_experts * _LOGIT_BYTES
    return sequence(
        pricing.gemm(tokens, layer.num_experts, layer.hidden_size, "bfloat16"),
        pricing.moved(2.0 * logits),
    )


def latent(pricing: DensePricing, moe: MoEFeedForward, tokens: float) -> PhaseCost:
    """Price the projections into and out of the space that experts work in."""
    assert moe.latent_size is not None, "there is such a space"
    return sequence(
        pricing.gemm(tokens, moe.latent_size, pricing.hidden_size),
        pricing.gemm(tokens, pricing.hidden_size, moe.latent_size),
    )


def embedding(pricing: DensePricing, step: Step) -> PhaseCost:
    """Price looking up the tokens."""
    return pricing.moved(embedding_bytes(step.tokens, pricing.hidden_size))


def head(pricing: DensePricing, vocab_size: int, step: Step) -> PhaseCost:
    """Price the output head: the last token of a prompt, every token of a decoding sequence."""
    rows = step.prefills + step.decode_tokens
    return pricing.gemm(rows, vocab_size / pricing.tp, pricing.hidden_size, "bfloat16")


def sampler(pricing: DensePricing, vocab_size: int, step: Step) -> PhaseCost:
    """Price turning logits into tokens."""
    rows = step.prefills + step.decode_tokens
    return pricing.moved(sampler_bytes(rows, vocab_size))


def on_all(cost: PhaseCost, num_devices: int) -> PhaseCost:
    """Return the price of one device for each of several that do the same."""
    return PhaseCost(
        compute_s_D=np.broadcast_to(cost.compute_s_D, num_devices),
        memory_s_D=np.broadcast_to(cost.memory_s_D, num_devices),
        latency_s_D=np.broadcast_to(cost.latency_s_D, num_devices),
    )
