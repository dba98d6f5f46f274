"""Rank experts by the tokens they can expect, and decide which are pruned, cold and resident.

The ranking is that of the routing model, not of the batch at hand: it is drawn with
`_ROWS_PER_EXPERT` choices per expert of the same distribution, as if it had been observed before.

Shape legend: D devices, L slots of a device, E experts, G groups of the gate.
"""

from dataclasses import replace

import numpy as np

from moesim.costs.devices.primitives import kernels_for
from moesim.costs.libraries import running
from moesim.costs.phases.experts import slot_widths
from moesim.design.candidate import Candidate
from moesim.hardware import Cluster
from moesim.hardware.libraries import AUTO
from moesim.lowering.devices import Groups
from moesim.lowering.expert_groups import ExpertGroup
from moesim.lowering.fetches import Fetches
from moesim.lowering.stored import StoredExperts
from moesim.lowering.traffic import AnyTraffic
from moesim.placement import Placement
from moesim.simulation.kernels import choose_kernels

Array = np.ndarray
#: mean choices of an expert from which experts are ranked
_ROWS_PER_EXPERT = 64


def ranking_tokens(candidate: Candidate) -> int:
    """Return the number of tokens per device that experts are ranked by."""
    layer, devices = candidate.layer, candidate.parallelism.num_devices
    return -(-_ROWS_PER_EXPERT * layer.num_experts // (layer.top_k * devices))


def pruned(candidate: Candidate, load_E: Array) -> Candidate:
    """Return the design without the experts that are pruned, which get width 0.

    Every group of the gate loses as many, so that limits on groups can still be kept.

    Args:
        candidate: The design.
        load_E: ndarray of shape (E,): load by which experts are ranked.

    Raises:
        ConfigError: Too few experts are left.
    """
    layer = candidate.layer
    by_group = load_E.reshape(layer.gate.num_expert_groups, -1)
    count = int(candidate.compression.pruned_fraction * by_group.shape[1])
    ties = _scattered(layer.num_experts).reshape(by_group.shape)
    least_G = np.lexsort((ties, by_group), axis=1)[:, :count]
    left = np.ones(by_group.shape, dtype=bool)
    np.put_along_axis(left, least_G, False, axis=1)
    widths = np.where(left.ravel(), layer.width_E(), 0)
    return replace(candidate, layer=replace(layer, expert_intermediate_size=tuple(widths.tolist())))


def stored_experts(
    candidate: Candidate,
    placed: tuple[Placement, tuple[AnyTraffic, ...]],
    load_E: Array,
    kernels: tuple[Cluster, str, str],
    correlation: float = 0.0,
) -> StoredExperts:
    """Return the forms of the experts' weights, where they lie, and what is fetched.

    Args:
        candidate: The design, without its pruned experts.
        placed: The placement, and the traffic of every micro-batch.
        load_E: ndarray of shape (E,): load by which experts are ranked.
        kernels: The cluster, and the libraries that run hot and cold experts on it.
        correlation: Probability that two layers choose the same experts.
    """
    placement, batches = placed
    cluster, hot, cold = kernels
    layer, tp, form = candidate.layer, candidate.parallelism.tp, candidate.compression
    widths_DL = slot_widths(layer, placement, tp)
    there_DL = widths_DL > 0

    def on_slots(value_E: Array) -> Array:
        by_rank = placement.by_rank(value_E[placement.expert_of_slot_P])
        return np.repeat(by_rank, tp, axis=0)

    cold_DL = on_slots(_least(load_E, layer.width_E() > 0, form.cold_fraction)) & there_DL
    members = [
        (layer, running(cluster, hot), there_DL & ~cold_DL, None),
        (
            replace(layer, precision=form.cold_precision(layer.precision)),
            running(cluster, cold),
            cold_DL,
            form.cold_rank_fraction,
        ),
    ]
    groups = tuple(
        ExpertGroup(layer=own, groups=_kinds(cluster), members_DL=which, rank_fraction=rank)
        for own, cluster, which, rank in members
        if which.any()
    )
    bytes_DL = np.sum([group.bytes_DL(widths_DL) for group in groups], axis=0)
    resident_DL = _hottest(on_slots(load_E), there_DL, candidate.offload.resident_fraction)
    fetches = (
        None
        if candidate.offload.is_nothing
        else Fetches.of(
            candidate.offload,
            [float(np.asarray(traffic.num_tokens_S).sum()) for traffic in batches],
            on_slots(_chosen_E(candidate, placement, load_E)) * there_DL,
            resident_DL,
            bytes_DL,
            correlation,
        )
    )
    return StoredExperts(
        groups=groups,
        bytes_DL=bytes_DL,
        resident_DL=resident_DL,
        fetches=fetches,
        cold_kernels=cold if cold_DL.any() else "",
    )


def _chosen_E(candidate: Candidate, placement: Placement, load_E: Array) -> Array:
    """Return the probability that a token chooses a slot of each expert: ndarray of shape (E,)."""
    tokens = ranking_tokens(candidate) * candidate.parallelism.num_devices
    replicas_E = np.bincount(placement.expert_of_slot_P, minlength=len(load_E))
    return np.minimum(load_E / tokens, 1.0) / np.maximum(replicas_E, 1)


def _least(load_E: Array, left_E: Array, share: float) -> Array:
    """Return a mask of the least loaded share of the experts that are left: shape (E,)."""
    order = np.lexsort((_scattered(len(load_E)), np.where(left_E, load_E, np.inf)))
    chosen = np.zeros(len(load_E), dtype=bool)
    chosen[order[: round(share * int(left_E.sum()))]] = True
    return chosen


def _scattered(count: int) -> Array:
    """Return the order among experts of equal load: mixed, so that ties fall on all devices."""
    return np.random.default_rng(count).permutation(count)


def _hottest(load_DL: Array, there_DL: Array, share: float) -> Array:
    """Return a mask of the most loaded share of the slots of each device, rounded down."""
    rank_DL = np.argsort(
        np.argsort(np.where(there_DL, -load_DL, np.inf), axis=1, kind="stable"), axis=1
    )
    room_D = np.floor(share * there_DL.sum(axis=1) + 1e-9)
    return np.asarray((rank_DL < room_D[:, None]) & there_DL)


def _kinds(cluster: Cluster) -> Groups:
    """Return the kernels of each kind of device with the slice of its devices."""
    found, start = [], 0
    for profile, count in cluster.groups:
        found.append((kernels_for(profile), slice(start, start + count)))
        start += count
    return tuple(found)


def cold_kernels(
    candidate: Candidate,
    cluster: Cluster,
    traffic: AnyTraffic,
    widths: Array | None,
    *,
    exchanged: bool = True,
) -> str:
    """Return the library that runs cold experts: the one that a layer of their format alone would
    have.
    """
    layer, form = candidate.layer, candidate.compression
    cold = replace(layer, precision=form.cold_precision(layer.precision))
    alone = replace(candidate, layer=cold, kernels=AUTO)
    return choose_kernels([alone], cluster, traffic, widths, exchanged=exchanged)[0]
