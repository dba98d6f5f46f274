"""Prepare the experts of a step: where tokens go, and which library computes them.

Attention ranks with tokens of their own send them to their experts (`moesim.simulation.prepare`).
Devices that share the heads of one rank all have its tokens: each computes its own experts, or its
share of each, and an all-reduce adds up; nothing is sent. Experts that are compressed, or lie in
the memory of the host, are ranked as `moesim.simulation.stored` says.
"""

from dataclasses import dataclass, replace
from functools import lru_cache
from math import ceil

import numpy as np

from moesim.costs.libraries import able, has_own_kernels, running
from moesim.design.candidate import Candidate, Workload
from moesim.design.step import ExpertLoad
from moesim.errors import ConfigError
from moesim.hardware import Cluster
from moesim.hardware.libraries import AUTO
from moesim.lowering.stored import StoredExperts
from moesim.lowering.traffic import Traffic, spread_tokens
from moesim.model import MoELayer
from moesim.placement import place
from moesim.routing import RoutingSpec, route
from moesim.simulation.kernels import choose_kernels, exchange_before
from moesim.simulation.prepare import Prepared, left_E, prepare, ranking_E
from moesim.simulation.stored import cold_kernels, pruned, stored_experts


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Present:
    """The experts of tokens that every device has.

    Attributes:
        traffic: The rows that each device computes.
        cluster: The devices, with the calibration of the library that runs the experts.
        kernels: Name of that library.
        layer: The layer, with the experts that are pruned left out.
        stored: Forms and places of the experts' weights; None if all have the layer's form and stay
            on their device.
    """

    traffic: Traffic
    cluster: Cluster
    kernels: str
    layer: MoELayer
    stored: StoredExperts | None


def launched(candidate: Candidate, cluster: Cluster, exchanged: bool) -> Candidate:
    """Return the design with any engine's kernels where the engine asked for has none for it."""
    profile = cluster.profile
    if not candidate.kernels.startswith(f"{AUTO}:") or has_own_kernels(profile):
        return candidate
    try:
        able(profile, candidate, exchange_before(candidate, cluster, exchanged))
    except ConfigError:
        return replace(candidate, kernels=AUTO)
    return candidate


def sent(
    candidate: Candidate, cluster: Cluster, tokens_per_device: float, load: ExpertLoad
) -> Prepared:
    """Prepare experts whose tokens travel."""
    candidate = launched(candidate, cluster, True)
    tokens = max(ceil(tokens_per_device), candidate.schedule.num_micro_batches)
    work = Workload(num_tokens_per_device=tokens, routing=load.routing, seed=load.seed)
    return prepare(candidate, cluster, work, correlation=load.correlation)


@lru_cache(maxsize=1024)
def present(candidate: Candidate, cluster: Cluster, tokens: int, load: ExpertLoad) -> Present:
    """Prepare experts whose tokens are on every device."""
    candidate = launched(candidate, cluster, False)
    work = Workload(num_tokens_per_device=tokens, routing=load.routing, seed=load.seed)
    if candidate.compression.pruned_fraction:
        candidate = pruned(candidate, ranking_E(candidate, work, tokens))
    layer, spread = candidate.layer, candidate.parallelism
    drawn = route(
        RoutingSpec.parse(load.routing),
        layer.gate,
        num_experts=layer.num_experts,
        top_k=layer.top_k,
        num_tokens_S=np.array([tokens]),
        seed=load.seed,
        left_E=left_E(layer),
    )
    placement = place(candidate.placement, drawn.num_tokens_E(), spread.ep, candidate.num_replicas)
    traffic = spread_tokens(drawn, placement, spread)
    kernels = choose_kernels([candidate], cluster, traffic, exchanged=False)[0]
    stored = None
    if candidate.compression.cold_fraction or not candidate.offload.is_nothing:
        cold = cold_kernels(candidate, cluster, traffic, None, exchanged=False)
        stored = stored_experts(
            candidate,
            (placement, (traffic,)),
            ranking_E(candidate, work, tokens),
            (cluster, kernels, cold),
            load.correlation,
        )
    return Present(
        traffic=traffic,
        cluster=running(cluster, kernels),
        kernels=kernels,
        layer=layer,
        stored=stored,
    )
