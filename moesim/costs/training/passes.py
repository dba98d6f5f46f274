"""Price the passes of dense parts: forward, backward through activations (dgrad), backward through
weights (wgrad).

Of a GEMM (m x k) times (k x n), dgrad is (m x n) times (n x k), and wgrad (n x m) times (m x k),
whose depth is the tokens; each has the FLOPs of the forward. A wgrad adds to a sum of gradients,
which it reads and writes. The backward of attention does five products of the size of the
forward's two (FlashAttention-2, Dao 2023, arXiv 2307.08691: 2.5 times its FLOPs), because it makes
the scores again. Kernels that only move bytes read the gradient as well: norms and activations
move twice the bytes of their forward.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import singledispatch
from typing import Literal

import numpy as np

from moesim.costs.dense.elementwise import activation_bytes, norm_bytes
from moesim.costs.dense.prefill import attended_pairs
from moesim.costs.phase import PhaseCost, sequence
from moesim.costs.steps import mixers
from moesim.costs.steps.mixers import DensePricing
from moesim.costs.steps.shares import Gemm, channel_params, products_of
from moesim.costs.training.parts import Part, scaled, together
from moesim.design.step import Step
from moesim.model.latent import CompressedAttention, LatentAttention
from moesim.model.mixers import GroupedAttention, Mixer

Which = Literal["forward", "dgrad", "wgrad"]
#: FLOPs of the backward of attention over those of the forward (arXiv 2307.08691)
ATTENTION_BACKWARD = 2.5
_ELEMENT_BYTES = 2.0
_FLOPS_PER_STATE = 4.0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class DensePasses:
    """Prices of passes on one device.

    Attributes:
        pricing: Prices of the device, and the tensor parallelism.
        gradient_bytes: Bytes of an element of the sums of gradients.
        sequences: Sequences of a micro-batch.
        length: Tokens of a sequence.
        cp: Devices that share a sequence.
    """

    pricing: DensePricing
    gradient_bytes: float
    sequences: float
    length: float
    cp: int = 1

    @property
    def tokens(self) -> float:
        """The tokens of a device where heads and widths are divided."""
        return self.sequences * self.length / self.cp

    @property
    def own_tokens(self) -> float:
        """The tokens of a device where the sequence is divided, too."""
        return self.tokens / self.pricing.tp

    def gemms(
        self, name: str, which: Which, products: Sequence[Gemm], tokens: float, fmt: str = ""
    ) -> Part:
        """Price a pass of GEMMs that all multiply the same number of tokens."""
        found: list[PhaseCost] = []
        for n, k in products:
            if which == "forward":
                found.append(self.pricing.gemm(tokens, n, k, fmt or None))
            elif which == "dgrad":
                found.append(self.pricing.gemm(tokens, k, n, fmt or None))
            else:
                found.append(self._wgrad(tokens, n, k, fmt))
        flops = sum(2.0 * tokens * n * k for n, k in products)
        return Part(name=name, cost=sequence(*found), flops=flops)

    def _wgrad(self, tokens: float, n: float, k: float, fmt: str) -> PhaseCost:
        product = self.pricing.gemm(n, k, tokens, fmt or None)
        # the product's own price writes two bytes of each result
        more = max(2.0 * self.gradient_bytes - _ELEMENT_BYTES, 0.0) * n * k
        rate = self.pricing.prices.profile.hbm_bandwidth_bytes_per_s
        return PhaseCost(
            compute_s_D=product.compute_s_D,
            memory_s_D=product.memory_s_D + more / rate,
            latency_s_D=product.latency_s_D,
        )

    def moved(self, name: str, num_bytes: float) -> Part:
        """Price a kernel that only moves bytes."""
        return Part(name=name, cost=self.pricing.moved(num_bytes))

    def norm(self, which: Which) -> Part:
        """Price a norm with the addition of the residual; its weights' gradients are few."""
        times = {"forward": 1.0, "dgrad": 2.0, "wgrad": 0.0}[which]
        moved = norm_bytes(self.own_tokens, self.pricing.hidden_size)
        return self.moved("norm", times * float(moved))

    def projections(self, mixer: Mixer, which: Which) -> Part:
        """Price the GEMMs of a mixer, and its few weights for single channels."""
        pricing = self.pricing
        products = products_of(mixer, pricing.hidden_size, pricing.tp)
        found = self.gemms("projections", which, products, self.tokens)
        params = channel_params(mixer, pricing.hidden_size, pricing.tp)
        if not params:
            return found
        channels = max(params / 4.0, 1.0)
        moved = _ELEMENT_BYTES * (params + 2.0 * self.tokens * channels)
        return together("projections", found, self.moved("projections", moved))

    def attention(self, mixer: Mixer, which: Which) -> Part:
        """Price what tokens do with each other; a wgrad has no part in it."""
        step = Step(prefills=self.sequences, new_tokens=self.length)
        times = {"forward": 1.0, "dgrad": ATTENTION_BACKWARD, "wgrad": 0.0}[which] / self.cp
        flops = times * mixing_flops(mixer, self.sequences, self.length) / self.pricing.tp
        cost = scaled(mixers.core(mixer, self.pricing, step), times)
        return Part(name="attention", cost=cost, flops=flops)

    def feed_forward(
        self,
        name: str,
        which: Which,
        tokens: float,
        size: tuple[float, float],
        *,
        gated: bool,
    ) -> Part:
        """Price a dense feed-forward.

        Args:
            name: Name of the phase.
            which: The pass.
            tokens: Tokens of the device.
            size: Width of the device's share, and width of a token.
            gated: Whether it has two up projections.
        """
        width, hidden = size
        products = [Gemm((2.0 if gated else 1.0) * width, hidden), Gemm(hidden, width)]
        found = self.gemms(name, which, products, tokens)
        times = {"forward": 1.0, "dgrad": 2.0, "wgrad": 0.0}[which]
        if not times:
            return found
        moved = times * float(activation_bytes(tokens, width, gated=gated))
        return together(name, found, self.moved(name, moved))


@singledispatch
def mixing_flops(mixer: Mixer, sequences: float, length: float) -> float:
    """Return the FLOPs of the forward of what tokens do with each other, all heads together: by
    default the update of a state.
    """
    elements = mixer.state_bytes_per_sequence / 4.0
    return _FLOPS_PER_STATE * elements * sequences * length


def _pairs(length: float, window: int | None) -> float:
    whole = np.asarray(float(length))
    return float(attended_pairs(whole, np.zeros(()), np.asarray(float(window or 0))))


@mixing_flops.register
def _(mixer: GroupedAttention, sequences: float, length: float) -> float:
    size = mixer.head_size + (mixer.value_size or mixer.head_size)
    return 2.0 * sequences * mixer.num_heads * size * _pairs(length, mixer.window)


@mixing_flops.register
def _(mixer: LatentAttention, sequences: float, length: float) -> float:
    size = mixer.head_size + mixer.rope_size + mixer.value_size
    return 2.0 * sequences * mixer.num_heads * size * _pairs(length, mixer.window)


@mixing_flops.register
def _(mixer: CompressedAttention, sequences: float, length: float) -> float:
    pairs = _pairs(length, mixer.window)
    if mixer.compress_ratio:
        older = _pairs(length, None) - pairs
        pairs += older / mixer.compress_ratio
    return 4.0 * sequences * mixer.num_heads * mixer.head_size * pairs
