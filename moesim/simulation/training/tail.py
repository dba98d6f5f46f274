"""Time what a step does beside its passes: reduce gradients, run the optimizer, gather parameters.

Gradients of a layer can be reduced as soon as its last backward pass is done: what a device reduces
travels under its last backward pass, except for that of the layer that ends last. Likewise
parameters are gathered under the first forward pass (Rajbhandari et al. 2019, arXiv 1910.02054;
Li et al. 2020, arXiv 2006.15704). ZeRO-2 reduces, and ZeRO-3 also gathers, under every micro-batch.
"""

from dataclasses import dataclass

from moesim.costs.training.memory import Params
from moesim.costs.training.optimizer import muon_s, optimizer_s
from moesim.costs.training.reduction import Sharing, Volume, collective_s, volume_of
from moesim.design.training.model import TrainedModel
from moesim.hardware import Cluster
from moesim.simulation.training.kinds import GRADIENT_BYTES, PassTimer
from moesim.simulation.training.parts import PartTimes, params_on, parts_on, sharing_of

_WEIGHT_BYTES = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Tail:
    """What a stage does after its last pass.

    Attributes:
        reduce_s: Exposed reduction of gradients.
        optimizer_s: Optimizer.
        gather_s: Exposed gathering of parameters.
        sent: Bytes that a device sends for both in a step.
    """

    reduce_s: float
    optimizer_s: float
    gather_s: float
    sent: Volume

    @property
    def total_s(self) -> float:
        """The seconds of all of them."""
        return self.reduce_s + self.optimizer_s + self.gather_s


def exposed_s(travel_s: float, under_s: float, layers: int, overlaps: bool) -> float:
    """Return what shows of an exchange that travels under passes.

    Args:
        travel_s: Seconds of the exchange.
        under_s: Seconds of the passes.
        layers: Layers whose exchanges follow one another; one of them has nothing to hide under.
        overlaps: Whether it travels under passes at all.
    """
    if not overlaps:
        return travel_s
    return max(travel_s - under_s * (layers - 1) / layers, travel_s / layers)


def reduction_s(trained: TrainedModel, cluster: Cluster, params: Params) -> tuple[float, float]:
    """Return the seconds in which a stage's gradients are reduced, and its parameters gathered,
    once each.
    """
    gradient = GRADIENT_BYTES[trained.plan.gradient_format]
    reduced = gathered = 0.0
    for sharing, count in zip(sharing_of(trained), (params.dense, params.experts), strict=True):
        reduced += _reduced_s(cluster, sharing, count * gradient)
        if sharing.zero:
            gathered += collective_s(
                cluster, "all_gather", sharing.group, sharing.stride, count * _WEIGHT_BYTES
            )
    return reduced, gathered


def _sent(trained: TrainedModel, params: Params) -> Volume:
    """Return what a device sends for gradients and parameters in a step."""
    parts = [
        volume_of(
            sharing,
            count,
            gradient_bytes=GRADIENT_BYTES[trained.plan.gradient_format],
            weight_bytes=_WEIGHT_BYTES,
            micro_batches=trained.num_micro_batches,
        )
        for sharing, count in zip(sharing_of(trained), (params.dense, params.experts), strict=True)
    ]
    return parts[0].plus(parts[1])


def _reduced_s(cluster: Cluster, sharing: Sharing, num_bytes: float) -> float:
    if not sharing.zero:
        return collective_s(cluster, "all_reduce", sharing.copies, sharing.stride, num_bytes)
    within = collective_s(cluster, "reduce_scatter", sharing.group, sharing.stride, num_bytes)
    replicas, apart = sharing.copies // sharing.group, sharing.stride * sharing.group
    return within + collective_s(cluster, "all_reduce", replicas, apart, num_bytes / sharing.group)


def tails_of(setting: PassTimer, parts: list[PartTimes]) -> list[Tail]:
    """Return what every stage does after its last pass."""
    trained, cluster = setting.trained, setting.cluster
    plan, pricing = trained.plan, setting.passes.pricing
    dense, experts = sharing_of(trained)
    groups = (dense.divided, experts.divided)
    found = []
    for stage in range(trained.layout.pp):
        held = parts_on(trained, stage)
        params = params_on(parts, held)
        reduced, gathered = reduction_s(trained, cluster, params)
        layers = [kind for c in held for kind in parts[c].layers]
        count = max(len(layers), 1)
        back = sum(parts[c].backward.time_s for c in held)
        ahead = sum(parts[c].forward.time_s for c in held)
        # later stages of ZeRO do it in every micro-batch, which passes count
        last = 0.0 if plan.zero >= 2 else exposed_s(reduced, back, count, plan.overlap_reduce)
        first = 0.0 if plan.zero == 3 else exposed_s(gathered, ahead, count, plan.overlap_reduce)
        found.append(
            Tail(
                reduce_s=last,
                optimizer_s=optimizer_s(trained, pricing, params, groups)
                + muon_s(trained, pricing, layers, groups),
                gather_s=first,
                sent=_sent(trained, params),
            )
        )
    return found


def in_passes(setting: PassTimer, part: PartTimes) -> tuple[float, float]:
    """Return what ZeRO-2 and ZeRO-3 add to every forward, and to every backward pass of a part."""
    plan = setting.trained.plan
    if plan.zero < 2:
        return 0.0, 0.0
    reduced, gathered = reduction_s(setting.trained, setting.cluster, part.params)
    count, hides = max(len(part.layers), 1), plan.overlap_reduce
    gathered = gathered if plan.zero == 3 else 0.0
    return (
        exposed_s(gathered, part.forward.time_s, count, hides),
        exposed_s(reduced + gathered, part.backward.time_s, count, hides),
    )
