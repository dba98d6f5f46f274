"""A design on a workload, prepared once: where its experts sit, and what every micro-batch moves
and computes.

The whole pipeline is on this page, each step fed by the one before::

    routing    tokens choose experts                                      moesim.routing
    re-routing choices of full experts go to the next best                moesim.routing.capacity
    placement  experts take slots on ranks                                moesim.placement
    slots      choices take slots, replicas in turn or the nearest        moesim.placement.slots
    traffic    who sends how many tokens where, and every slot's rows     moesim.lowering.traffic
    padding    slots of a fixed capacity are filled with rows of zeros    moesim.lowering.traffic

`prepare` is called once for a design, at the top, and what it returns is handed on: to
`moesim.simulation.run.lower`, to memory, to screening, to what measures the same choices. A search
asks for the same routing and the same plan of placement many times, so both are cached. Their keys
are designs: the design with what cannot matter set to a fixed value. A field that is added matters
until somebody says otherwise here, so that a forgotten one costs time but never returns the traffic
of another design.

Shape legend: D devices, E experts.
"""

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from moesim.design.candidate import Candidate, Workload
from moesim.design.schedule import Schedule
from moesim.errors import ConfigError
from moesim.hardware import Cluster, check_devices
from moesim.model import MoELayer, Precision
from moesim.placement import Placement, Setting, place
from moesim.routing import Routing, RoutingSpec, route
from moesim.routing.capacity import places, rerouted
from moesim.simulation.setting import setting_of

if TYPE_CHECKING:
    from moesim.lowering.traffic import Traffic


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Prepared:
    """A design with everything that follows from it and its work before anything takes time.

    Attributes:
        candidate: The design.
        cluster: The hardware it runs on.
        workload: The tokens it is given.
        placement: Slots of its experts.
        choices: Experts of every token of the whole batch, those of full experts re-routed.
        traffic: What the whole batch moves and computes.
        batches: The same of every micro-batch; the whole batch where there is one.
    """

    candidate: Candidate
    cluster: Cluster
    workload: Workload
    placement: Placement
    choices: Routing
    traffic: "Traffic"
    batches: "tuple[Traffic, ...]"


def prepare(
    candidate: Candidate,
    cluster: Cluster,
    workload: Workload,
    *,
    placement: Placement | None = None,
) -> Prepared:
    """Route, place and spread a design's tokens.

    Args:
        candidate: The design; its strategy plans the placement.
        cluster: The hardware it runs on.
        workload: The tokens it is given.
        placement: Slots to use instead of the planned ones.

    Raises:
        ConfigError: Parallelism that does not use the cluster's devices, slots that do not divide
            over the ranks, more micro-batches than tokens, or a given placement of other ranks or
            experts.
    """
    layer, parts = candidate.layer, candidate.schedule.num_micro_batches
    check_devices(cluster, candidate.parallelism.num_devices, "parallelism: ep x tp")
    if parts > workload.num_tokens_per_device:
        raise ConfigError(
            f"schedule.num_micro_batches: expected at most the {workload.num_tokens_per_device} "
            f"tokens of a device, got {parts}"
        )
    if placement is not None and (placement.num_ranks, placement.num_experts) != (
        candidate.parallelism.ep,
        layer.num_experts,
    ):
        raise ConfigError(
            f"placement: expected {layer.num_experts} experts on {candidate.parallelism.ep} "
            f"ranks, got {placement.num_experts} on {placement.num_ranks}"
        )
    setting = setting_of(candidate, cluster, workload)
    key, work = _for_traffic(candidate), _for_routing_work(workload)
    where = _Where(cluster.num_devices, cluster.devices_per_domain, setting)
    placed, traffic = _spread(key, work, where, placement, 1)
    batches = traffic if parts == 1 else _spread(key, work, where, placement, parts)[1]
    return Prepared(
        candidate=candidate,
        cluster=cluster,
        workload=workload,
        placement=placed,
        choices=_choices(_for_capacity(layer), work, cluster.num_devices, 1)[0],
        traffic=traffic[0],
        batches=batches,
    )


# --- what matters to each step: designs with the rest set to a fixed
# value -------------------------------------------


def _for_traffic(candidate: Candidate) -> Candidate:
    """The design as traffic knows it: sizes, formats, shared experts and the exchange move no token
    elsewhere.

    What placement has of them (memory, speeds, the price of a copy) is in its `Setting`.
    """
    layer = candidate.layer
    return replace(
        candidate,
        layer=replace(
            layer,
            hidden_size=1,
            num_shared_experts=0,
            gated=True,
            precision=Precision(),
            expert_intermediate_size=layer.expert_intermediate_size if layer.uneven else 1,
        ),
        dense_part=None,
        schedule=Schedule(),
    )


def _for_capacity(layer: MoELayer) -> MoELayer:
    """The layer as re-routing knows it; of the widths only which experts are pruned."""
    left = tuple((layer.width_E() > 0).astype(int).tolist()) if layer.has_pruned else 1
    plain = replace(
        layer,
        hidden_size=1,
        num_shared_experts=0,
        gated=True,
        precision=Precision(),
        padded=False,
        expert_intermediate_size=left,
    )
    # without re-routing, choices are the gate's
    return plain if layer.overflow == "reroute" else replace(plain, capacity_factor=None)


def _for_routing_work(workload: Workload) -> Workload:
    """The work as routing knows it: neither the phase nor the KV cache moves a token."""
    return replace(workload, phase="prefill", kv_tokens_per_device=None)


# --- the
# steps -------------------------------------------------------------------------------------------------------


def _left_E(layer: MoELayer) -> np.ndarray | None:
    """Experts that are not pruned, ndarray of shape (E,), bool; None where all are left."""
    return layer.width_E() > 0 if layer.has_pruned else None


@lru_cache(maxsize=64)
def _routing(layer: MoELayer, work: Workload, num_devices: int) -> Routing:
    return route(
        RoutingSpec.parse(work.routing),
        layer.gate,
        num_experts=layer.num_experts,
        top_k=layer.top_k,
        num_tokens_S=np.full(num_devices, work.num_tokens_per_device),
        seed=work.seed,
        left_E=_left_E(layer),
    )


@lru_cache(maxsize=64)
def _load_E(layer: MoELayer, work: Workload, num_devices: int) -> np.ndarray:
    """Choices of each expert, before any are re-routed: ndarray of shape (E,)."""
    return _routing(layer, work, num_devices).num_tokens_E()


@lru_cache(maxsize=64)
def _choices(layer: MoELayer, work: Workload, num_devices: int, parts: int) -> tuple[Routing, ...]:
    """Choices of every micro-batch, those of full experts re-routed where the layer does so."""
    routing = _routing(replace(layer, capacity_factor=None, overflow="drop"), work, num_devices)
    found = tuple(routing.part(m, parts) for m in range(parts))
    if layer.capacity_factor is None:
        return found
    return tuple(
        rerouted(part, layer.capacity_factor, layer.gate, _left_E(layer)) for part in found
    )


class _Where(NamedTuple):
    """What traffic knows of a cluster."""

    num_devices: int
    devices_per_domain: int
    setting: Setting


@lru_cache(maxsize=4096)
def _spread(
    candidate: Candidate, work: Workload, where: _Where, given: Placement | None, parts: int
) -> "tuple[Placement, tuple[Traffic, ...]]":
    """Placement, and the traffic of every micro-batch.

    Args:
        candidate: The design as `_for_traffic` leaves it.
        work: The work as `_for_routing_work` leaves it.
        where: The devices, and what placement must respect of them.
        given: Slots to use instead of planned ones.
        parts: Micro-batches.
    """
    # numba is loaded when used: `import moesim` stays light
    from moesim.lowering.traffic import padded, settled, spread_tokens

    layer, spread = candidate.layer, candidate.parallelism
    num_devices, per_domain, setting = where
    plain = replace(_for_capacity(layer), capacity_factor=None, overflow="drop")
    # work is rows x width
    load_E = _load_E(plain, work, num_devices) * (layer.width_E() if layer.uneven else 1)
    placement = given or place(
        candidate.placement,
        load_E,
        spread.ep,
        candidate.num_replicas,
        setting=setting,
        routing=_routing(plain, work, num_devices),
    )
    batches = []
    for part in _choices(_for_capacity(layer), work, num_devices, parts):
        routing, slots = settled(part, placement, spread.tp, layer.capacity_factor)
        traffic = spread_tokens(
            routing,
            slots,
            spread,
            layer.capacity_factor,
            devices_per_domain=per_domain,
            num_left=layer.num_left,
        )
        if layer.padded and layer.capacity_factor is not None:
            capacity = places(layer.capacity_factor, part.expert_ids_TK.size, layer.num_left)
            traffic = padded(
                traffic,
                placement,
                spread.tp,
                capacity,
                per_domain,
                layer.width_E() > 0 if layer.uneven else None,
            )
        batches.append(traffic)
    return placement, tuple(batches)
