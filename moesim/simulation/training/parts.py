"""Add up layers to the parts of a pipeline, and the stages' parameters and groups of devices."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import gcd

from moesim.costs.training.ends import embedding, head
from moesim.costs.training.memory import Params, activation_bytes_of, params_of
from moesim.costs.training.passes import DensePasses
from moesim.costs.training.reduction import Sharing
from moesim.design.training.model import TrainedModel
from moesim.hardware import Profile
from moesim.lowering.host_links import EFFICIENCY
from moesim.model.spec import LayerKind
from moesim.simulation.training.kinds import NOTHING, KindTimes, TimedPass, added, timed

#: rate of a device's link to its host where its profile states none: PCIe 5.0 x16 (assumed)
_HOST_BYTES_PER_S = 64e9


@dataclass(frozen=True, slots=True, kw_only=True)
class PartSizes:
    """What a device holds of a part of the pipeline.

    Attributes:
        layers: Its layers.
        kept_bytes: Bytes that a micro-batch keeps of it.
        params: Its parameters on a device.
    """

    layers: tuple[LayerKind, ...]
    kept_bytes: float
    params: Params


@dataclass(frozen=True, slots=True, kw_only=True)
class PartTimes(PartSizes):
    """A part of the pipeline.

    Attributes:
        forward: Its forward pass.
        backward: Its backward pass through activations and weights.
        dgrad: Its backward pass through activations.
        wgrad: Its backward pass through weights.
        saved_s: What forward and backward passes save side by side.
    """

    forward: TimedPass
    backward: TimedPass
    dgrad: TimedPass
    wgrad: TimedPass
    saved_s: float


def sizes_of(trained: TrainedModel) -> list[PartSizes]:
    """Return the sizes of the parts of the pipeline in order."""
    stages = trained.stages
    kept = {kind: activation_bytes_of(trained, kind) for kind in trained.spec.kinds}
    return [
        PartSizes(
            layers=layers,
            kept_bytes=sum(kept[kind] for kind in layers),
            params=params_of(trained, layers, first=at == 0, last=at == len(stages) - 1),
        )
        for at, layers in enumerate(stages)
    ]


def parts_of(
    trained: TrainedModel,
    passes: DensePasses,
    kinds: dict[LayerKind, KindTimes],
    sizes: Sequence[PartSizes],
) -> list[PartTimes]:
    """Return the parts of the pipeline in order, with their times."""
    found = []
    vocab = trained.spec.vocab_size
    for at, size in enumerate(sizes):
        layers = size.layers
        first, last = at == 0, at == len(sizes) - 1
        ends = {
            which: [
                *([timed(embedding(passes, which))] if first else []),
                *([timed(head(passes, vocab, which))] if last else []),
            ]
            for which in ("forward", "dgrad", "wgrad")
        }
        whole = [added(*ends["dgrad"], *ends["wgrad"])] if first or last else []
        hosted_s = _offloaded_s(trained, size.kept_bytes, passes.pricing.prices.profile)
        found.append(
            PartTimes(
                layers=layers,
                forward=_beside(_sum(kinds, layers, "forward", ends["forward"]), hosted_s),
                backward=_beside(_sum(kinds, layers, "backward", whole), hosted_s),
                dgrad=_beside(_sum(kinds, layers, "dgrad", ends["dgrad"]), hosted_s),
                wgrad=_sum(kinds, layers, "wgrad", ends["wgrad"]),
                saved_s=sum(kinds[kind].saved_s for kind in layers),
                kept_bytes=size.kept_bytes,
                params=size.params,
            )
        )
    return found


def _sum(
    kinds: dict[LayerKind, KindTimes],
    layers: Sequence[LayerKind],
    which: str,
    ends: list[TimedPass],
) -> TimedPass:
    return added(*(getattr(kinds[kind], which) for kind in layers), *ends) if layers else NOTHING


def _offloaded_s(trained: TrainedModel, kept: float, profile: Profile) -> float:
    """Return the seconds that the activations in the host's memory take on the link."""
    share = trained.plan.offload
    rate = (profile.host_link_bytes_per_s or _HOST_BYTES_PER_S) * EFFICIENCY
    return kept * share / (1.0 - share) / rate


def _beside(one: TimedPass, hosted_s: float) -> TimedPass:
    """Add what activations take to the host and back beyond the pass that they travel under."""
    exposed = max(hosted_s - one.time_s, 0.0)
    return added(one, TimedPass(time_s=exposed, phases={"offload": exposed}, flops=0.0))


def parts_on(trained: TrainedModel, stage: int) -> list[int]:
    """Return the parts that a stage holds."""
    pp, vp = trained.layout.pp, trained.layout.vp
    if trained.plan.pipeline == "dualpipe":
        return [stage, pp - 1 - stage]
    return [stage + pp * chunk for chunk in range(vp)]


def sharing_of(trained: TrainedModel) -> tuple[Sharing, Sharing]:
    """Return the devices that share dense parameters, and those that share experts. In DualPipe
    each part is on two stages.
    """
    layout, plan = trained.layout, trained.plan
    twice = 2 if plan.pipeline == "dualpipe" else 1
    found = []
    for copies, stride in (
        (layout.dense_copies, layout.tp),
        (layout.expert_copies, layout.devices_per_exchange),
    ):
        group = copies if plan.shard_group is None else gcd(plan.shard_group, copies)
        found.append(
            Sharing(copies=copies * twice, stride=stride, group=group * twice, zero=plan.zero)
        )
    return found[0], found[1]


def params_on(parts: Sequence[PartSizes], which: Sequence[int]) -> Params:
    """Return the parameters of several parts together."""
    return Params(
        sum(parts[c].params.dense for c in which),
        sum(parts[c].params.experts for c in which),
        sum(parts[c].params.tables for c in which),
    )
