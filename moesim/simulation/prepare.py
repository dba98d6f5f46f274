"""Prepare a design on a workload once: where its experts are, and what every micro-batch moves and
computes.

The whole pipeline is on this page, each step fed by the one before::

    routing    tokens choose experts                                      moesim.routing
    re-routing choices of full experts go to the next best                moesim.routing.capacity
    placement  experts take slots on ranks                                moesim.placement
    slots      choices take slots, replicas in turn or the nearest        moesim.placement.slots
    traffic    who sends how many tokens where, and every slot's rows     moesim.lowering.traffic
    padding    slots of a fixed capacity are filled with rows of zeros    moesim.lowering.traffic
    kernels    the library that is named, or the fastest, runs the rows   moesim.simulation.kernels

`prepare` is called once for a design, and its result is handed on: to
`moesim.simulation.run.lower`, to memory, to screening, and to sources that measure the same
choices. A search asks for the same routing and the same placement many times, so both are cached.
Their keys are in `moesim.simulation.cache_keys`.

Shape legend: D devices, E experts.
"""

from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from moesim.costs.libraries import running
from moesim.costs.phases.experts import slot_widths
from moesim.design.candidate import Candidate, Workload
from moesim.errors import ConfigError
from moesim.hardware import Cluster, check_devices
from moesim.lowering.expected import (
    ExpectedTraffic,
    expected_traffic,
    loads_like,
    loads_of_parts,
    sampled_tokens,
)
from moesim.lowering.stored import StoredExperts
from moesim.lowering.traffic import AnyTraffic, padded, settled, spread_tokens
from moesim.model import MoELayer
from moesim.placement import Placement, Setting, check_plan, place
from moesim.routing import Routing, RoutingSpec, route
from moesim.routing.capacity import places, rerouted
from moesim.routing.sampler import tokens_of_sources
from moesim.simulation.cache_keys import for_capacity, for_routing_work, for_traffic
from moesim.simulation.drawing import check_batches, check_room, is_expected
from moesim.simulation.kernels import choose_kernels
from moesim.simulation.setting import setting_of
from moesim.simulation.stored import cold_kernels, pruned, ranking_tokens, stored_experts


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Prepared:
    """A design with everything that follows from it and its workload before anything takes time.

    Attributes:
        candidate: The design.
        cluster: The hardware it runs on, with the kernels of the library that runs the experts.
        kernels: Name of that library, or of one for each kind of device joined by ``+``; empty if
            no device is a GPU.
        workload: The tokens it is given.
        placement: The slots of its experts.
        traffic: What the whole batch moves and computes.
        batches: What every micro-batch moves and computes; the whole batch if there is only one.
        built: The design with the experts that its compression prunes left out; otherwise the
            design itself.
        stored: Forms and places of the experts' weights; None if all have the layer's form and stay
            on their device.
    """

    candidate: Candidate
    cluster: Cluster
    kernels: str
    workload: Workload
    placement: Placement
    traffic: AnyTraffic
    batches: tuple[AnyTraffic, ...]
    built: Candidate
    stored: StoredExperts | None = None

    @property
    def is_expected(self) -> bool:
        """Whether the traffic is expected from a sample instead of drawn token by token."""
        return isinstance(self.traffic, ExpectedTraffic)

    @property
    def choices(self) -> Routing:
        """The experts of every token of the whole batch, with those of full experts rerouted; of a
        sample where the traffic is expected. They are drawn again if others were since: few ask.
        """
        layer, devices = self.built.layer, self.cluster.num_devices
        work = for_routing_work(self.workload)
        if self.is_expected:
            return _sample(layer, work, devices)
        return _choices(for_capacity(layer), work, devices, 1)[0]


def prepare(
    candidate: Candidate,
    cluster: Cluster,
    workload: Workload,
    *,
    placement: Placement | None = None,
    correlation: float = 0.0,
) -> Prepared:
    """Route a design's tokens, place its experts and count the traffic.

    Args:
        candidate: The design; its strategy plans the placement.
        cluster: The hardware it runs on.
        workload: The tokens it is given.
        placement: Slots to use instead of the planned ones.
        correlation: Probability that two layers of the model choose the same experts.

    Raises:
        CapacityError: The traffic would not fit in this machine's memory.
        ConfigError: The parallelism does not use the cluster's devices, the slots do not divide
            over the ranks, there are more micro-batches than tokens, a given placement has other
            ranks or experts, or the kernel library named does not run the design.
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
    work, plain = for_routing_work(workload), candidate
    batch_tokens = workload.num_tokens_per_device * cluster.num_devices
    if candidate.compression.pruned_fraction:
        candidate = pruned(candidate, ranking_E(candidate, work, batch_tokens))
        layer = candidate.layer
    setting = setting_of(candidate, cluster, workload)
    key = for_traffic(candidate)
    where = _Where(cluster.num_devices, cluster.devices_per_domain, setting)
    if placement is None:
        check_plan(
            candidate.placement,
            layer.num_experts,
            candidate.parallelism.ep,
            candidate.num_replicas,
            setting,
        )
    expected = is_expected(candidate, cluster, work)
    check_batches(candidate, cluster, expected=expected)
    if expected:
        spread = _expected
    else:
        check_room(candidate, cluster, work)
        spread = _spread
    placed, traffic = spread(key, work, where, placement, 1)
    batches = traffic if parts == 1 else spread(key, work, where, placement, parts)[1]
    widths = slot_widths(layer, placed, candidate.parallelism.tp) if layer.widths_differ else None
    kernels = choose_kernels([candidate], cluster, traffic[0], widths)[0]
    stored = None
    if candidate.compression.cold_fraction or not candidate.offload.is_nothing:
        stored = stored_experts(
            candidate,
            (placed, batches),
            ranking_E(candidate, work, batch_tokens),
            (cluster, kernels, cold_kernels(candidate, cluster, traffic[0], widths)),
            correlation,
        )
    return Prepared(
        candidate=plain,
        built=candidate,
        stored=stored,
        cluster=running(cluster, kernels),
        kernels=kernels,
        workload=workload,
        placement=placed,
        traffic=traffic[0],
        batches=batches,
    )


def draw(candidate: Candidate, cluster: Cluster, workload: Workload) -> None:
    """Draw the tokens of a workload ahead, for a design that will be prepared with it.

    Raises:
        CapacityError: They would not fit in this machine's memory.
    """
    work = for_routing_work(workload)
    if not is_expected(candidate, cluster, work):
        check_room(candidate, cluster, work)
        parts = candidate.schedule.num_micro_batches
        _choices(for_capacity(candidate.layer), work, cluster.num_devices, parts)


# --- the steps ---


def left_E(layer: MoELayer) -> np.ndarray | None:
    """Return which experts are not pruned: ndarray of shape (E,), bool; None where all are left."""
    return layer.width_E() > 0 if layer.has_pruned else None


@lru_cache(maxsize=64)
def _routing(
    layer: MoELayer, work: Workload, num_devices: int, batch_tokens: int | None = None
) -> Routing:
    return route(
        RoutingSpec.parse(work.routing),
        layer.gate,
        num_experts=layer.num_experts,
        top_k=layer.top_k,
        num_tokens_S=np.full(num_devices, work.num_tokens_per_device),
        seed=work.seed,
        left_E=left_E(layer),
        batch_tokens=batch_tokens,
    )


def _sample(layer: MoELayer, work: Workload, num_devices: int) -> Routing:
    """Return the choices of as many tokens as are drawn where traffic is expected."""
    tokens = work.num_tokens_per_device
    fewer = replace(work, num_tokens_per_device=sampled_tokens(tokens, num_devices))
    return _routing(for_capacity(layer), fewer, num_devices, tokens * num_devices)


def ranking_E(candidate: Candidate, work: Workload, batch_tokens: int) -> np.ndarray:
    """Return the load by which experts are ranked: ndarray of shape (E,).

    Args:
        candidate: The design.
        work: The workload that `for_routing_work` returned.
        batch_tokens: Tokens of the batch at hand, of all devices together.
    """
    devices = candidate.parallelism.num_devices
    fewer = replace(work, num_tokens_per_device=ranking_tokens(candidate))
    return _routing(for_capacity(candidate.layer), fewer, devices, batch_tokens).num_tokens_E()


@lru_cache(maxsize=64)
def _load_E(layer: MoELayer, work: Workload, num_devices: int) -> np.ndarray:
    """Return the choices of each expert before any are rerouted: ndarray of shape (E,)."""
    return _routing(layer, work, num_devices).num_tokens_E()


@lru_cache(maxsize=64)
def _choices(layer: MoELayer, work: Workload, num_devices: int, parts: int) -> tuple[Routing, ...]:
    """Return the choices of every micro-batch, with those of full experts rerouted where the layer
    does so.
    """
    routing = _routing(replace(layer, capacity_factor=None, overflow="drop"), work, num_devices)
    found = tuple(routing.part(m, parts) for m in range(parts))
    if layer.capacity_factor is None:
        return found
    return tuple(rerouted(part, layer.capacity_factor, layer.gate, left_E(layer)) for part in found)


class _Where(NamedTuple):
    """The properties of a cluster on which traffic depends."""

    num_devices: int
    devices_per_domain: int
    setting: Setting


@lru_cache(maxsize=256)
def _expected(
    candidate: Candidate, work: Workload, where: _Where, given: Placement | None, parts: int
) -> tuple[Placement, tuple[AnyTraffic, ...]]:
    """Return what `_spread` returns, with traffic expected from a sample."""
    layer, spread = candidate.layer, candidate.parallelism
    devices, per_domain, setting = where
    tokens = work.num_tokens_per_device
    sample = _sample(layer, work, devices)
    spec = RoutingSpec.parse(work.routing)
    load_E = loads_like(sample, devices * tokens)
    placement = given or place(
        candidate.placement,
        spec.planned_E(load_E, work.seed) * (layer.width_E() if layer.uneven else 1),
        spread.ep,
        candidate.num_replicas,
        setting=setting,
        routing=sample,
    )
    sources = [
        tokens_of_sources(spec, np.full(devices, end - begin))
        for begin, end in pairwise(tokens * m // parts for m in range(parts + 1))
    ]
    rng = np.random.default_rng([work.seed, layer.num_experts, layer.top_k, parts])
    loads = loads_of_parts(load_E, [int(num_tokens_S.sum()) for num_tokens_S in sources], rng)
    return placement, tuple(
        expected_traffic(sample, part_E, placement, num_tokens_S, spread.tp, per_domain, rng)
        for part_E, num_tokens_S in zip(loads, sources, strict=True)
    )


@lru_cache(maxsize=4096)
def _placed(candidate: Candidate, work: Workload, where: _Where) -> Placement:
    """Return the planned placement, which is the same for any number of micro-batches."""
    layer = candidate.layer
    # the plan sees the load that the gate chooses, before any capacity
    plain = replace(for_capacity(layer), capacity_factor=None, overflow="drop")
    # the load that placement balances is work, which is rows x width
    load_E = RoutingSpec.parse(work.routing).planned_E(
        _load_E(plain, work, where.num_devices), work.seed
    ) * (layer.width_E() if layer.uneven else 1)
    return place(
        candidate.placement,
        load_E,
        candidate.parallelism.ep,
        candidate.num_replicas,
        setting=where.setting,
        routing=_routing(plain, work, where.num_devices),
    )


@lru_cache(maxsize=4096)
def _spread(
    candidate: Candidate, work: Workload, where: _Where, given: Placement | None, parts: int
) -> tuple[Placement, tuple[AnyTraffic, ...]]:
    """Return the placement, and the traffic of every micro-batch.

    Args:
        candidate: The design that `for_traffic` returned.
        work: The workload that `for_routing_work` returned.
        where: The devices, and what placement must respect about them.
        given: Placement to use instead of a planned one.
        parts: Number of micro-batches.
    """
    layer, spread = candidate.layer, candidate.parallelism
    num_devices, per_domain, _ = where
    placement = given or _placed(candidate, work, where)
    batches = []
    for part in _choices(for_capacity(layer), work, num_devices, parts):
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
