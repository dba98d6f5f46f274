"""Simulate a training step of one MoE layer: forward, backward and optimizer on a cluster.

The passes are programs of the same pieces as those of whole models (`moesim.lowering.training`);
they follow one another, since the loss stands between them. Every part is priced by the devices'
own primitives (`moesim.costs.training.layer`), so that a measured CPU can be trained on.

Ranks of one host also pay for what their framework does around an exchange: they tell each other
how many rows come, in an exchange of its own, and pack, unpack and record with many small calls
(`RANK_CALLS`). Neither depends on the size of the layer, and both decide the time of a small one.
"""

from dataclasses import dataclass

import numpy as np

from moesim.costs.comm.choose import exchange_kernel
from moesim.costs.devices.primitives import kernels_for
from moesim.costs.phase import PhaseCost, sequence
from moesim.costs.training.layer import TrainingLayerCosts, price_training_layer
from moesim.costs.training.parts import Part
from moesim.design.candidate import Candidate, Workload
from moesim.engines.run import run
from moesim.errors import require
from moesim.hardware import Cluster
from moesim.lowering.costs import price_batches
from moesim.lowering.priced import Priced
from moesim.lowering.training.layers import Item, LayerPasses, Travel
from moesim.model.precision import BYTES_PER_ELEMENT
from moesim.simulation.prepare import Prepared, prepare

#: pass -> calls of torch in it by `moesim_kernels.ranks.train`, beyond exchanges, the calls of one
#: process (`moesim_kernels.cpu.train`) and `PRICED_CALLS`, as counted by a test
#: (tests/kernels_cpu/test_rank_calls.py). With cold code a view takes as long as any small call.
RANK_CALLS = {"forward": 58, "backward": 33}
#: calls that packing and adding up are priced with, see `moesim.costs.phases.tokens`
PRICED_CALLS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainedLayer:
    """The time of a training step of a layer.

    Attributes:
        forward_s: Seconds of the forward pass.
        backward_s: Seconds of the backward pass through activations and weights.
        reduction_s: Seconds of the all-reduce of the gate's gradient between the ranks.
        optimizer_s: Seconds of AdamW on the device that takes longest.
    """

    forward_s: float
    backward_s: float
    reduction_s: float
    optimizer_s: float

    @property
    def step_s(self) -> float:
        """The seconds of the whole step."""
        return self.forward_s + self.backward_s + self.reduction_s + self.optimizer_s


def simulate_training_layer(
    candidate: Candidate, cluster: Cluster, workload: Workload, *, engine: str = "flow"
) -> TrainedLayer:
    """Simulate a training step of a layer.

    Args:
        candidate: The design; its experts all have one width, and one device holds each.
        cluster: The hardware, with devices of one kind.
        workload: The tokens of a micro-batch.
        engine: Name of the engine.

    Raises:
        ConfigError: Experts differ or are divided, devices are of several kinds, or `prepare`
            refuses the design.
    """
    require(not candidate.layer.uneven, "layer.expert_intermediate_size", "one width", "several")
    require(candidate.parallelism.tp == 1, "parallelism.tp", "1", candidate.parallelism.tp)
    require(len(cluster.groups) == 1, "cluster", "devices of one kind", cluster.name)
    prepared = prepare(candidate, cluster, workload)
    profile = prepared.cluster.profile
    traffic = prepared.traffic
    costs = price_training_layer(
        kernels_for(profile),
        profile,
        candidate.layer,
        traffic.counts_DL,
        (np.asarray(traffic.num_tokens_S), np.asarray(traffic.tokens_D)),
    )
    passes = _passes(prepared, costs)
    return TrainedLayer(
        forward_s=run(passes.lower("forward"), engine).makespan_s,
        backward_s=run(passes.lower("backward"), engine).makespan_s,
        reduction_s=_reduction_s(prepared),
        optimizer_s=float(costs.optimizer.solo_s_D().max()),
    )


def _passes(prepared: Prepared, costs: TrainingLayerCosts) -> LayerPasses:
    candidate, cluster, layer = prepared.candidate, prepared.cluster, prepared.candidate.layer
    priced: list[Priced] = []
    if cluster.num_devices > 1:
        exchange = cluster.exchange(candidate.schedule)
        priced = Priced.of_batches(
            layer,
            [prepared.traffic],
            exchange_kernel(cluster, exchange),
            cluster,
            exchange=exchange,
            num_experts=layer.num_experts,
        )
    everywhere = ((kernels_for(cluster.profile), slice(0, cluster.num_devices)),)
    movements = [p.movement for p in priced]
    around = price_batches(layer, 1, everywhere, [prepared.traffic], movements)[0]

    def part(name: str, cost: PhaseCost | None) -> list[Item]:
        return [] if cost is None else [Part(name=name, cost=cost)]

    def there_and_back(*inside: str) -> list[Item]:
        return [
            *part("permute", around.permute),
            Travel.DISPATCH,
            Travel.ARRIVE,
            *(one for which in inside for one in part("experts", costs.experts[which])),
            Travel.COMBINE,
            Travel.ARRIVE,
            *part("reduce", around.reduce),
        ]

    backward = [
        *there_and_back("dgrad", "wgrad"),
        *part("gate", costs.gate["dgrad"]),
        *part("gate", costs.gate["wgrad"]),
    ]
    return LayerPasses(
        forward=[
            *part("gate", costs.gate["forward"]),
            *part("permute", _beside(prepared, "forward")),
            *there_and_back("forward"),
        ],
        backward=[*part("permute", _beside(prepared, "backward")), *backward],
        dgrad=[],
        wgrad=[],
        cluster=cluster,
        schedule=candidate.schedule,
        priced=priced,
        fmt=layer.precision.activations,
    )


def _beside(prepared: Prepared, which: str) -> PhaseCost | None:
    """Return what ranks of one measured host do around the exchanges of a pass; None elsewhere."""
    profile, ranks = prepared.cluster.profile, prepared.cluster.num_devices
    if profile.host_fabric is None or ranks == 1:
        return None
    calls = kernels_for(profile).launches(np.full(ranks, float(RANK_CALLS[which])))
    if which == "backward":
        # the numbers of rows are known
        return calls
    zero_D = np.zeros(ranks)
    counts_D = np.full(ranks, profile.host_fabric.start_s)
    return sequence(calls, PhaseCost(compute_s_D=zero_D, memory_s_D=zero_D, latency_s_D=counts_D))


def _reduction_s(prepared: Prepared) -> float:
    """Return the seconds of the gate's all-reduce, a ring of 2 (R - 1) rounds, in each of which
    every rank sends 1 / R of the gradient; only ranks of one measured host are priced.
    """
    fabric, ranks = prepared.cluster.profile.host_fabric, prepared.cluster.num_devices
    if fabric is None or ranks == 1:
        return 0.0
    layer = prepared.candidate.layer
    moved = layer.gate_params * BYTES_PER_ELEMENT[layer.precision.activations]
    rate = fabric.port_bytes_per_s
    return 2.0 * (ranks - 1) * (fabric.start_s + moved / ranks / rate)
