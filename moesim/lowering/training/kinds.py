"""Put the parts of a kind of layer in order, forward and backward.

The backward pass goes through the forward's parts in reverse; a pass through weights follows the
pass through activations of the same matrices, and needs no exchange.
"""

from dataclasses import dataclass

from moesim.costs.steps.collectives import Joint
from moesim.costs.training.context import joined, ring
from moesim.costs.training.passes import DensePasses, Which
from moesim.costs.training.recompute import again
from moesim.design.schedule import Schedule
from moesim.design.training.model import TrainedModel
from moesim.hardware import Cluster
from moesim.lowering.steps import Experts
from moesim.lowering.training.layers import Item, LayerPasses
from moesim.lowering.training.moe import MoEPasses, exchange_of
from moesim.model.mixers import Mixer
from moesim.model.spec import LayerKind


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class KindBuilder:
    """What the passes of a model's layers are made with.

    Attributes:
        trained: The design.
        fabric: The cluster, for exchanges among tensor- and context-parallel devices.
        alone: One of its devices.
        passes: Prices of dense parts.
    """

    trained: TrainedModel
    fabric: Cluster
    alone: Cluster
    passes: DensePasses

    def layer(self, kind: LayerKind, experts: Experts | None) -> LayerPasses:
        """Return the passes of a kind of layer.

        Args:
            kind: The kind.
            experts: The experts that its tokens go to; None for a layer without experts.
        """
        block, priced, schedule = None, [], Schedule()
        if experts is not None:
            priced = exchange_of(self.trained, experts)
            schedule = self.trained.candidate(experts.moe).schedule
            block = MoEPasses.of(self.trained, experts, priced, self.passes)
        forward = [
            *self._mixers(kind, "forward"),
            *self._dense(kind, "forward"),
            *(block.forward() if block else []),
        ]
        before = self._again(kind, block, forward)
        return LayerPasses(
            forward=forward,
            backward=[*before, *self._backward(kind, block, weights=True)],
            dgrad=[*before, *self._backward(kind, block, weights=False)],
            wgrad=[
                *(block.weights() if block else []),
                *self._dense(kind, "wgrad"),
                *self._mixers(kind, "wgrad"),
            ],
            cluster=self.alone if experts is None else experts.cluster,
            schedule=schedule,
            priced=priced,
            fmt=self.trained.precision.activations,
        )

    def _again(self, kind: LayerKind, block: MoEPasses | None, forward: list[Item]) -> list[Item]:
        recompute = self.trained.plan.recompute
        if recompute == "none":
            return []
        if recompute == "full":
            return list(forward)
        rows = block.rows if block else 0.0
        width = kind.moe.width / self.trained.layout.etp if kind.moe else 0.0
        return list(again(self.passes, kind, rows, width))

    def _backward(self, kind: LayerKind, block: MoEPasses | None, *, weights: bool) -> list[Item]:
        return [
            *(block.backward(weights=weights) if block else []),
            *self._dense(kind, "dgrad"),
            *(self._dense(kind, "wgrad") if weights else []),
            *self._mixers(kind, "dgrad"),
            *(self._mixers(kind, "wgrad") if weights else []),
        ]

    def _joined(self, kind: Joint) -> list[Item]:
        return list(joined(self.passes, self.fabric, kind))

    def _mixers(self, kind: LayerKind, which: Which) -> list[Item]:
        """Return the attention of a layer, and that over an encoder's output if there is one."""
        found = [self._mixer(part, which) for part in kind.mixers]
        return [item for items in (found if which == "forward" else found[::-1]) for item in items]

    def _mixer(self, mixer: Mixer, which: Which) -> list[Item]:
        projections = self.passes.projections(mixer, which)
        if which == "wgrad":
            return [projections]
        attention = self.passes.attention(mixer, which)
        exposed = ring(self.passes, self.fabric, mixer, which, attention)
        core: list[Item] = [projections, attention, *exposed]
        if which == "dgrad":
            core = [attention, *exposed, projections]
        gathered, scattered = self._joined("all_gather"), self._joined("reduce_scatter")
        norm: list[Item] = [self.passes.norm(which)]
        if which == "forward":
            return [*norm, *gathered, *core, *scattered]
        return [*gathered, *core, *scattered, *norm]

    def _dense(self, kind: LayerKind, which: Which) -> list[Item]:
        """Return the norm before a feed-forward, and the dense one if there is one."""
        found: list[Item] = []
        if kind.dense is not None:
            size = (kind.dense.width / self.passes.pricing.tp, self.passes.pricing.hidden_size)
            found = [
                self.passes.feed_forward(
                    "dense", which, self.passes.tokens, size, gated=kind.dense.gated
                )
            ]
            if which != "wgrad":
                gathered, scattered = self._joined("all_gather"), self._joined("reduce_scatter")
                found = [*gathered, *found, *scattered]
        if which == "wgrad" or (kind.dense is None and kind.moe is None):
            return found
        norm: list[Item] = [self.passes.norm(which)]
        return [*norm, *found] if which == "forward" else [*found, *norm]
