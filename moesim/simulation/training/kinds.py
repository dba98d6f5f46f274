"""Time the passes of every kind of layer: each alone, and a forward beside a backward.

Every pass of a kind is a program of its own on the devices among which its tokens travel; all
devices begin together, as they do after the exchange of the layer before.
"""

from dataclasses import dataclass, replace
from functools import lru_cache
from math import gcd

from moesim.costs.dense.prices import dense_prices
from moesim.costs.steps.mixers import DensePricing
from moesim.costs.training.parts import Part
from moesim.costs.training.passes import DensePasses
from moesim.design.step import ExpertLoad
from moesim.design.training.model import TrainedModel
from moesim.engines.run import run
from moesim.hardware import Cluster
from moesim.lowering.steps import Experts
from moesim.lowering.training.kinds import KindBuilder
from moesim.lowering.training.layers import LayerPasses
from moesim.model.spec import LayerKind
from moesim.simulation.phases import critical_segments
from moesim.simulation.steps.experts import sent
from moesim.simulation.steps.simulate import stage_of

#: serving engine whose dense kernels, those of cuBLAS and FlashAttention, are priced
_DENSE_KERNELS = "sglang"
#: pipelines whose passes through activations and weights are apart
SPLIT = ("zero_bubble", "dualpipe")
GRADIENT_BYTES = {"float32": 4.0, "bfloat16": 2.0}


@dataclass(frozen=True, slots=True, kw_only=True)
class TimedPass:
    """A pass with its time and FLOPs.

    Attributes:
        time_s: Seconds.
        phases: Seconds of each phase on the critical path.
        flops: FLOPs of a device.
    """

    time_s: float
    phases: dict[str, float]
    flops: float

    def repeated(self, times: int) -> "TimedPass":
        """Return so many passes that follow one another as one."""
        return TimedPass(
            time_s=times * self.time_s,
            phases={name: times * seconds for name, seconds in self.phases.items()},
            flops=times * self.flops,
        )


#: a pass that takes no time
NOTHING = TimedPass(time_s=0.0, phases={}, flops=0.0)


def added(*parts: TimedPass) -> TimedPass:
    """Return passes that follow one another as one."""
    phases: dict[str, float] = {}
    for part in parts:
        for name, seconds in part.phases.items():
            phases[name] = phases.get(name, 0.0) + seconds
    return TimedPass(
        time_s=sum(part.time_s for part in parts),
        phases=phases,
        flops=sum(part.flops for part in parts),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class KindTimes:
    """The passes of a kind of layer.

    Attributes:
        forward: The forward pass.
        backward: The backward pass through activations and weights.
        dgrad: The backward pass through activations.
        wgrad: The backward pass through weights.
        saved_s: What a forward and a backward pass save side by side; 0 where they never are.
        kernels: Name of the library that runs the experts; empty for none.
        dropped_fraction: Share of choices that were dropped over capacity.
    """

    forward: TimedPass
    backward: TimedPass
    dgrad: TimedPass
    wgrad: TimedPass
    saved_s: float
    kernels: str = ""
    dropped_fraction: float = 0.0


@dataclass(frozen=True, slots=True)
class BuiltLayer:
    """The passes of a kind of layer before they are timed.

    Attributes:
        passes: The passes.
        kernels: Name of the library that runs the experts; empty for none.
        dropped_fraction: Share of choices that were dropped over capacity.
    """

    passes: LayerPasses
    kernels: str
    dropped_fraction: float


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PassTimer:
    """A design on a cluster, with what its passes are priced with.

    Attributes:
        trained: The design.
        cluster: The cluster.
        load: How tokens choose experts.
        engine: Name of the engine that runs the programs of layers.
    """

    trained: TrainedModel
    cluster: Cluster
    load: ExpertLoad
    engine: str

    @property
    def passes(self) -> DensePasses:
        """The prices of dense parts on one device."""
        trained = self.trained
        return DensePasses(
            pricing=DensePricing(
                prices=dense_prices(self.cluster.profile, _DENSE_KERNELS),
                hidden_size=trained.spec.hidden_size,
                tp=trained.layout.tp,
                fmt=trained.dense_format,
            ),
            gradient_bytes=GRADIENT_BYTES[trained.plan.gradient_format],
            sequences=trained.plan.micro_batch,
            length=trained.plan.sequence,
            cp=trained.layout.cp,
        )

    def kinds(self) -> dict[LayerKind, KindTimes]:
        """Return the times of every kind of layer, which designs share that differ in what layers
        do not depend on.
        """
        return _timed_kinds(_of_layers(self.trained), self.cluster, self.load, self.engine)

    def timed_kinds(self) -> dict[LayerKind, KindTimes]:
        """Return the same, computed again."""
        return {kind: self._timed(one) for kind, one in self.layers().items()}

    def layers(self) -> "dict[LayerKind, BuiltLayer]":
        """Return the passes of every kind of layer, which can be lowered."""
        alone = stage_of(self.cluster, 1)
        builder = KindBuilder(
            trained=self.trained, fabric=self.cluster, alone=alone, passes=self.passes
        )
        return {kind: self._built(builder, kind) for kind in self.trained.spec.kinds}

    def of_layers(self) -> "PassTimer":
        """Return the same on as few devices as exchange the tokens of a micro-batch."""
        return replace(self, trained=_of_layers(self.trained))

    def _built(self, builder: KindBuilder, kind: LayerKind) -> "BuiltLayer":
        if kind.moe is None:
            return BuiltLayer(builder.layer(kind, None), "", 0.0)
        stage = stage_of(self.cluster, self.trained.layout.devices_per_exchange)
        prepared = sent(
            self.trained.candidate(kind.moe), stage, self.trained.tokens_per_device, self.load
        )
        experts = Experts(
            moe=kind.moe,
            layer=prepared.built.layer,
            cluster=prepared.cluster,
            batches=prepared.batches,
            travels=True,
            stored=None,
        )
        dropped = prepared.traffic.dropped_fraction
        return BuiltLayer(builder.layer(kind, experts), prepared.kernels, dropped)

    def _timed(self, built: "BuiltLayer") -> KindTimes:
        passes, name, dropped = built.passes, built.kernels, built.dropped_fraction
        plan = self.trained.plan
        forward, wgrad = (self._run(passes, which) for which in ("forward", "wgrad"))
        split = plan.pipeline in SPLIT
        backward = self._run(passes, "backward")
        saved = 0.0
        if plan.overlaps and passes.priced:
            # gradients leave first and travel under the forward's attention, as in DualPipe
            beside = run(passes.lower("backward", "forward"), self.engine).makespan_s
            saved = max(forward.time_s + backward.time_s - beside, 0.0)
        return KindTimes(
            forward=forward,
            backward=backward,
            dgrad=self._run(passes, "dgrad") if split else backward,
            wgrad=wgrad,
            saved_s=saved,
            kernels=name,
            dropped_fraction=dropped,
        )

    def _run(self, passes: LayerPasses, which: str) -> TimedPass:
        if not getattr(passes, which):
            return NOTHING
        program = passes.lower(which)
        timeline = run(program, self.engine)
        phases: dict[str, float] = {}
        for phase, begin, end in critical_segments(program, timeline):
            phases[phase] = phases.get(phase, 0.0) + end - begin
        return TimedPass(time_s=timeline.makespan_s, phases=phases, flops=passes.flops(which))


def _of_layers(trained: TrainedModel) -> TrainedModel:
    """Return the design of one micro-batch on as few devices as exchange its tokens, without a
    pipeline or an optimizer. Layers take as long in it.
    """
    layout, plan = trained.layout, trained.plan
    dp = layout.devices_per_exchange // gcd(layout.devices_per_exchange, layout.tp * layout.cp)
    return replace(
        trained,
        layout=replace(layout, dp=dp, pp=1, vp=1),
        plan=replace(
            plan,
            global_batch=dp * plan.micro_batch,
            pipeline="zero_bubble" if plan.pipeline in SPLIT else "1f1b",
            overlap_exchange=plan.overlaps,
            overlap_reduce=True,
            zero=1,
            shard_group=None,
            optimizer="adamw",
            state_format="float32",
            offload=0.0,
        ),
        uneven_stages=True,
    )


@lru_cache(maxsize=1024)
def _timed_kinds(
    trained: TrainedModel, cluster: Cluster, load: ExpertLoad, engine: str
) -> dict[LayerKind, KindTimes]:
    timer = PassTimer(trained=trained, cluster=cluster, load=load, engine=engine)
    return timer.timed_kinds()


def timed(*parts: Part) -> TimedPass:
    """Return parts of one device that follow one another as a pass."""
    phases: dict[str, float] = {}
    for part in parts:
        seconds = float(part.cost.solo_s_D().max())
        phases[part.name] = phases.get(part.name, 0.0) + seconds
    return TimedPass(
        time_s=sum(phases.values()), phases=phases, flops=sum(part.flops for part in parts)
    )
