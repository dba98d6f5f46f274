"""Put the parts of a mixture of experts in order, forward and backward.

Forward: gate, permute, dispatch (with shared experts beside it), experts, combine, reduce.
Backward: the gradients of a token's output are copied to its experts as the token was (permute,
dispatch), go back through the experts (and through their weights, before anything travels), return
(combine) and are added up (reduce), and the gate's scores follow.
"""

from dataclasses import dataclass, replace

import numpy as np

from moesim.costs.comm.choose import exchange_kernel
from moesim.costs.devices.primitives import kernels_for
from moesim.costs.steps.shares import Gemm
from moesim.costs.training.experts import expert_parts
from moesim.costs.training.parts import Part, together
from moesim.costs.training.passes import DensePasses, Which
from moesim.design.training.model import TrainedModel
from moesim.lowering.costs import BatchCosts, price_batches
from moesim.lowering.priced import Priced
from moesim.lowering.steps import Experts
from moesim.lowering.training.layers import Item, Travel

_BF16 = "bfloat16"


def exchange_of(trained: TrainedModel, experts: Experts) -> list[Priced]:
    """Return the exchange of a micro-batch; nothing on a single device."""
    if experts.cluster.num_devices == 1:
        return []
    candidate = trained.candidate(experts.moe)
    exchange = experts.cluster.exchange(candidate.schedule)
    if trained.every_choice:
        exchange = replace(exchange, every_choice=True)
    # kernels are chosen by the formats of the products, which tokens need not travel in
    layer = candidate.layer
    precision = replace(layer.precision, dispatch=trained.dispatch_format)
    return Priced.of_batches(
        replace(layer, precision=precision),
        experts.batches,
        exchange_kernel(experts.cluster, exchange),
        experts.cluster,
        exchange=exchange,
        num_experts=experts.batches[0].counts_DL.shape[1] * candidate.parallelism.ep,
    )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class MoEPasses:
    """The parts of a mixture of experts.

    Attributes:
        experts: The experts, with what every device sends them.
        passes: Prices of dense parts.
        around: Costs of packing tokens and of adding up what returns.
        routed: Pass -> the routed experts.
        rows: Rows that a device computes, the mean.
    """

    experts: Experts
    passes: DensePasses
    around: BatchCosts
    routed: dict[str, Part]
    rows: float

    @classmethod
    def of(
        cls, trained: TrainedModel, experts: Experts, priced: list[Priced], passes: DensePasses
    ) -> "MoEPasses":
        """Price the parts."""
        layer, tp = trained.layer(experts.moe), trained.layout.etp
        kernels = kernels_for(experts.cluster.profile)
        traffic = experts.batches[0]
        everywhere = ((kernels, slice(0, experts.cluster.num_devices)),)
        movements = [p.movement for p in priced]
        around = price_batches(layer, tp, everywhere, experts.batches, movements)[0]
        routed = expert_parts(
            kernels,
            layer,
            tp,
            traffic.counts_DL,
            np.asarray(traffic.tokens_D),
            passes.gradient_bytes,
        )
        rows = float(traffic.counts_DL.sum(axis=-1).mean())
        return cls(experts=experts, passes=passes, around=around, routed=routed, rows=rows)

    def forward(self) -> list[Item]:
        """Return the forward pass after the norm."""
        shared = self._shared("forward")
        return [
            *self._latent("forward"),
            self._gate("forward"),
            *self._packed(),
            Travel.DISPATCH,
            *shared,
            Travel.ARRIVE,
            self.routed["forward"],
            Travel.COMBINE,
            Travel.ARRIVE,
            *self._added(),
        ]

    def backward(self, *, weights: bool) -> list[Item]:
        """Return the backward pass, with that through weights or without."""
        also: list[Item] = [self.routed["wgrad"]] if weights else []
        shared = self._shared("dgrad") + (self._shared("wgrad") if weights else [])
        return [
            *self._packed(),
            Travel.DISPATCH,
            *shared,
            Travel.ARRIVE,
            self.routed["dgrad"],
            *also,
            Travel.COMBINE,
            Travel.ARRIVE,
            *self._added(),
            self._gate("dgrad"),
            *([self._gate("wgrad")] if weights else []),
            *self._latent("dgrad"),
            *(self._latent("wgrad") if weights else []),
        ]

    def weights(self) -> list[Item]:
        """Return the pass through weights alone."""
        return [
            self.routed["wgrad"],
            *self._shared("wgrad"),
            self._gate("wgrad"),
            *self._latent("wgrad"),
        ]

    def _packed(self) -> list[Item]:
        cost = self.around.permute
        return [Part(name="permute", cost=cost)] if cost is not None else []

    def _added(self) -> list[Item]:
        cost = self.around.reduce
        return [Part(name="reduce", cost=cost)] if cost is not None else []

    def _gate(self, which: Which) -> Part:
        moe, tokens = self.experts.moe, self.passes.own_tokens
        choices = moe.num_experts + moe.num_zero_experts
        hidden = self.passes.pricing.hidden_size
        scores = self.passes.gemms("gate", which, [Gemm(choices, hidden)], tokens, _BF16)
        if which == "wgrad":
            return scores
        # float32 scores are read and written by the kernel that picks
        return together("gate", scores, self.passes.moved("gate", 8.0 * tokens * choices))

    def _shared(self, which: Which) -> list[Item]:
        moe = self.experts.moe
        if not moe.num_shared_experts:
            return []
        size = (moe.num_shared_experts * float(moe.shared_width), self.passes.pricing.hidden_size)
        tokens = self.passes.own_tokens
        return [self.passes.feed_forward("shared", which, tokens, size, gated=moe.gated)]

    def _latent(self, which: Which) -> list[Item]:
        moe, hidden = self.experts.moe, self.passes.pricing.hidden_size
        if not moe.latent_size:
            return []
        products = [Gemm(moe.latent_size, hidden), Gemm(hidden, moe.latent_size)]
        return [self.passes.gemms("latent", which, products, self.passes.own_tokens)]
