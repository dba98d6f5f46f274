"""Lower a step of a whole model: its layers as pieces on the streams of every device.

The program is the one of a single layer with more around it: mixers before the gate, collectives
after what tensor parallelism divided, embedding, head and sampler at the ends. With two
micro-batches, the attention of one runs beside the exchange of the other (two-batch overlap) by
nothing but the order of pieces.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from moesim.costs.comm.choose import exchange_kernel
from moesim.costs.devices.primitives import kernels_for
from moesim.costs.phase import PhaseCost, beside
from moesim.costs.phases.experts import price_layer_experts, tiles_of
from moesim.costs.steps import around, mixers, rest
from moesim.costs.steps.collectives import Joint, price_collective
from moesim.costs.steps.mixers import DensePricing
from moesim.design.served import ServedModel
from moesim.design.step import Step
from moesim.hardware import Cluster
from moesim.hardware.serving_engines import serving_engine
from moesim.lowering.canvas import Canvas
from moesim.lowering.costs import price_batches
from moesim.lowering.expert_groups import price_expert_groups
from moesim.lowering.host_links import HostLinks
from moesim.lowering.layer import pieces_of
from moesim.lowering.orders import ordered, with_shared
from moesim.lowering.priced import Priced
from moesim.lowering.stored import StoredExperts
from moesim.lowering.streams import AwaitFetch, Collective, Fetch, Local, Mark, Piece
from moesim.lowering.traffic import AnyTraffic
from moesim.model import MoELayer
from moesim.model.feedforward import MoEFeedForward
from moesim.model.spec import LayerKind
from moesim.program import Program


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Experts:
    """The experts of one layer of a step.

    Attributes:
        moe: Their sizes.
        layer: The routed ones, with those that are pruned left out.
        cluster: The devices, with the calibration of the library that runs them.
        batches: Traffic of every micro-batch.
        travels: Whether tokens travel to them.
        stored: Forms and places of their weights; None if all have the layer's form and stay on
            their device.
    """

    moe: MoEFeedForward
    layer: MoELayer
    cluster: Cluster
    batches: Sequence[AnyTraffic]
    travels: bool
    stored: StoredExperts | None

    def fetches(self) -> Sequence[Fetch | None]:
        """Return what each micro-batch copies from the host."""
        if self.stored is None or self.stored.fetches is None:
            return [None] * len(self.batches)
        return self.stored.fetches.pieces()


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LoweredStep:
    """A program, and where its layers end.

    Attributes:
        program: The program.
        marks: For the begin of the layers and for the end of each marked repetition of the first
            micro-batch, the ops whose latest end is that time.
        layer_marks: For each micro-batch the same, at the begin of the layers and the end of each.
    """

    program: Program
    marks: list[np.ndarray]
    layer_marks: list[list[np.ndarray]]

    def layer_N(self) -> np.ndarray:
        """Return the index of the layer of each op: ndarray of shape (N,); -1 for what comes before
        the layers, their number for what comes after. Ops of a micro-batch are added in its order.
        """
        found, first = np.zeros(self.program.num_ops, dtype=np.int64), 0
        last_op = [[int(ops.max()) for ops in marks] for marks in self.layer_marks]
        for label, count in self.program.ops.kinds():
            batch = int(label.partition("@")[2].partition(".")[0] or 0)
            found[first : first + count] = np.searchsorted(last_op[batch], first) - 1
            first += count
        return found


def lower_step(
    served: ServedModel,
    cluster: Cluster,
    pricing: DensePricing,
    steps: Sequence[Step],
    layers: Sequence[tuple[LayerKind, Experts | None, bool]],
) -> LoweredStep:
    """Lower a step.

    Args:
        served: The model's design.
        cluster: The devices of one pipeline stage.
        pricing: What dense parts are priced with.
        steps: The step of each micro-batch.
        layers: The layers that are lowered: kind, experts, and whether a repetition ends.
    """
    return _Lowering(served, cluster, pricing, steps, layers).run()


@lru_cache(maxsize=8192)
def _on_all(devices: int, price: Callable[..., PhaseCost], *asked: object) -> PhaseCost:
    """Return the price of a piece on all devices, which the layers of a step share, and designs
    that differ elsewhere.
    """
    return rest.on_all(price(*asked), devices)


def _collective(
    pricing: DensePricing, cluster: Cluster, kind: Joint, size: int, tokens: float
) -> PhaseCost:
    return price_collective(pricing.prices, cluster, kind, size, tokens, pricing.hidden_size)


class _Lowering:
    def __init__(
        self,
        served: ServedModel,
        cluster: Cluster,
        pricing: DensePricing,
        steps: Sequence[Step],
        layers: Sequence[tuple[LayerKind, Experts | None, bool]],
    ) -> None:
        self.served, self.cluster, self.pricing = served, cluster, pricing
        self.steps, self.layers, self.layout = steps, layers, served.layout
        self.hidden = served.spec.hidden_size
        self.priced = [self._exchange(experts) for _, experts, _ in layers]
        self.canvas = Canvas.of(
            cluster,
            served.precision.activations,
            overlapped=served.schedule.num_micro_batches > 1,
            priced=[p for layer in self.priced for p in layer],
        )
        if any(experts and any(experts.fetches()) for _, experts, _ in layers):
            self.canvas.streams.host = HostLinks.of(cluster, self.canvas.devices)

    def run(self) -> LoweredStep:
        spec, batches = self.served.spec, []
        block_costs = [
            self._moe(experts, priced) if experts is not None else None
            for (_, experts, _), priced in zip(self.layers, self.priced, strict=True)
        ]
        for m, step in enumerate(self.steps):
            pieces: list[Piece] = [
                self._local("embedding", rest.embedding, self.pricing, step),
                Mark(),
            ]
            for (kind, _, _), moe in zip(self.layers, block_costs, strict=True):
                pieces += self._mixer(kind, step)
                pieces += self._feed_forward(kind, step, moe[m] if moe else [])
                pieces.append(Mark())
            pieces += [
                self._local("head", rest.head, self.pricing, spec.vocab_size, step),
                self._local("sampler", rest.sampler, self.pricing, spec.vocab_size, step),
            ]
            batches.append(pieces)
        marks = self.canvas.streams.run(batches)
        # a micro-batch is as long in each repetition as any other
        begin, *ends = marks[0]
        marked = [ops for ops, (_, _, counts) in zip(ends, self.layers, strict=True) if counts]
        return LoweredStep(
            program=self.canvas.builder.build(), marks=[begin, *marked], layer_marks=marks
        )

    def _local(self, name: str, price: Callable[..., PhaseCost], *asked: object) -> Local:
        return Local(name=name, cost=_on_all(self.cluster.num_devices, price, *asked))

    def _joined(self, kind: Joint, tokens: float, size: int) -> list[Piece]:
        """Return a collective over the devices of an attention rank or of all; nothing for one."""
        if size == 1:
            return []
        asked = (self.pricing, self.cluster, kind, size, tokens)
        cost = _on_all(self.cluster.num_devices, _collective, *asked)
        return [Collective(name=kind, cost=cost, size=size)]

    def _mixer(self, kind: LayerKind, step: Step) -> list[Piece]:
        if kind.mixer is None:
            return []
        pricing, mixer = self.pricing, kind.mixer
        return [
            self._local("norm", rest.norm, pricing, step.tokens),
            self._local("projections", around.projected, pricing, mixer, step),
            self._local("attention", mixers.core, mixer, pricing, step),
            *self._after_attention(kind, step),
        ]

    def _after_attention(self, kind: LayerKind, step: Step) -> list[Piece]:
        # what travels to experts next is only needed in parts, one on each device of the rank
        scattered = kind.moe is not None and kind.dense is None and self.layout.exchanges_tokens
        word: Joint = "reduce_scatter" if scattered else "all_reduce"
        return self._joined(word, step.tokens, self.layout.tp)

    def _feed_forward(self, kind: LayerKind, step: Step, moe: list[Piece]) -> list[Piece]:
        pieces: list[Piece] = []
        if kind.dense is not None or kind.moe is not None:
            pieces.append(self._local("norm", rest.norm, self.pricing, step.tokens))
        if kind.dense is not None:
            pieces.append(self._local("dense", rest.dense, self.pricing, kind.dense, step))
            if kind.moe is None or self.layout.exchanges_tokens:
                pieces += self._joined("all_reduce", step.tokens, self.layout.tp)
        if kind.moe is not None:
            pieces += moe
            if self.layout.exchanges_tokens:
                pieces += self._joined("all_gather", step.tokens, self.layout.tp)
            else:
                pieces += self._joined("all_reduce", step.tokens, self.layout.tp)
        return pieces

    # --- experts ---

    def _exchange(self, experts: Experts | None) -> list[Priced]:
        if experts is None or not experts.travels or self.cluster.num_devices == 1:
            return []
        candidate, schedule = self.served.candidate(experts.moe), self.served.schedule
        exchange = experts.cluster.exchange(schedule)
        return Priced.of_batches(
            experts.layer,
            experts.batches,
            exchange_kernel(experts.cluster, exchange, schedule.num_comm_sms),
            experts.cluster,
            exchange=exchange,
            num_experts=experts.batches[0].counts_DL.shape[1] * candidate.parallelism.ep,
        )

    def _moe(self, experts: Experts, priced: list[Priced]) -> list[list[Piece]]:
        """Return the MoE block of every micro-batch as pieces."""
        if not experts.travels:
            return [self._present(experts, step) for step in self.steps]
        groups = [
            (kernels_for(p), which)
            for (p, _), (_, which) in zip(
                experts.cluster.groups, self.canvas.devices.groups, strict=True
            )
        ]
        costs = price_batches(
            experts.layer,
            self.layout.moe_tp,
            tuple(groups),
            experts.batches,
            [p.movement for p in priced],
            members=experts.stored.groups if experts.stored is not None else (),
        )
        fetches = experts.fetches()
        chunked = self.served.step_order == "chunked"
        blocks, tokens = [], 0.0
        for m, cost in enumerate(costs):
            exchange = self.canvas.exchange(priced[m], self.served.schedule) if priced else None
            # the gate is priced for the step
            blocks.append(pieces_of(cost, exchange, fetches[m])[1:])
            tokens += float(np.asarray(experts.batches[m].num_tokens_S).mean())
        tokens /= 1 if chunked else len(costs)
        gate = self._local("gate", rest.gate, self.pricing, experts.layer, tokens)
        shared = self._shared(experts.moe, tokens, 1)
        found = ordered(self.served.step_order, blocks, gate, shared)
        return [[*self._latent(experts.moe, tokens), *block] for block in found]

    def _present(self, experts: Experts, step: Step) -> list[Piece]:
        """Return the MoE block of tokens that every device has."""
        cost = self._present_cost(experts)
        gate = self._local("gate", rest.gate, self.pricing, experts.layer, step.tokens)
        pieces: list[Piece] = [gate, Local(name="experts", cost=cost)]
        fetch = experts.fetches()[0]
        if fetch is not None:
            pieces[1:1] = [fetch, AwaitFetch()]
        assert self.cluster.num_devices == len(cost.latency_s_D), "one price for each device"
        shared = self._shared(experts.moe, step.tokens, self.layout.tp)
        if shared is not None and self._beside(step):
            pieces[-1] = Local(name="experts", cost=beside(cost, shared.cost))
        elif shared is not None:
            pieces = with_shared(pieces, shared)
        return [*self._latent(experts.moe, step.tokens), *pieces]

    def _present_cost(self, experts: Experts) -> PhaseCost:
        """Price the routed experts of tokens that every device has."""
        traffic, tp = experts.batches[0], self.layout.moe_tp
        if experts.stored is not None:
            return price_expert_groups(experts.stored.groups, tp, traffic, None)
        kernels = kernels_for(experts.cluster.profile)
        return price_layer_experts(
            kernels,
            experts.layer,
            tp,
            traffic.counts_DL,
            None,
            np.asarray(traffic.tokens_D),
            tiles=tiles_of(kernels, experts.layer, tp, traffic.counts_DL),
        )

    def _beside(self, step: Step) -> bool:
        """Return whether the engine runs shared experts beside routed ones in a step."""
        if step.prefill_tokens or self.served.step_order == "serial":
            return False
        return step.tokens <= serving_engine(self.served.engine).shared_beside

    def _latent(self, moe: MoEFeedForward, tokens: float) -> list[Piece]:
        """Return the projections around latent experts; nothing for others."""
        if not moe.latent_size:
            return []
        return [self._local("latent", rest.latent, self.pricing, moe, tokens)]

    def _shared(self, moe: MoEFeedForward, tokens: float, tp: int) -> Local | None:
        """Return the shared experts; None if there are none."""
        if not moe.num_shared_experts:
            return None
        return self._local("shared", rest.shared, self.pricing, moe, tokens, tp)
