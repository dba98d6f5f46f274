"""Price what a layer's experts demand at many widths at once, for a screening.

The cost model is the same as in lowering one layer.

Shape legend: B widths, D devices, L local experts; M = 2 demands, compute and memory.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from moesim.costs.devices.primitives import Kernels, kernels_for
from moesim.costs.load import Load
from moesim.costs.phase import PhaseCost
from moesim.costs.phases.experts import price_layer_experts, price_routed, tiles_of
from moesim.costs.shape import ExpertShape
from moesim.design.candidate import Candidate
from moesim.hardware import Cluster, Profile
from moesim.lowering.costs import price_shared, priced_experts
from moesim.lowering.devices import Devices
from moesim.lowering.traffic import AnyTraffic
from moesim.program.builder import ProgramBuilder

Array = np.ndarray
Demands = tuple[Array, Array]


def demands_of_widths(
    members: Sequence[Candidate], cluster: Cluster, batches: Sequence[AnyTraffic]
) -> dict[str, list[Demands]]:
    """Price the phases that depend on the width of experts.

    Args:
        members: B candidates that differ only in that width.
        cluster: The cluster of D devices.
        batches: Traffic of every micro-batch, which is equal for all members.

    Returns:
        Phase -> for each micro-batch its demands, ndarray of shape (B, D, 2) in FLOPs and bytes,
        see `Devices.phase`, and its latencies, ndarray of shape (B, D).
    """
    first = members[0].layer
    devices = Devices.of(cluster, first.precision.activations, ProgramBuilder())
    found = {"experts": [_experts(members, devices, traffic) for traffic in batches]}
    if first.num_shared_experts:
        found["shared"] = [_shared(members, devices, traffic) for traffic in batches]
    return found


def price_widths(
    members: Sequence[Candidate],
    profile: Profile,
    traffic: AnyTraffic,
    which: slice,
    widths_DL: Array | None = None,
) -> Array:
    """Return the seconds of the experts alone, by member and device.

    Args:
        members: B candidates that differ only in the width of their experts.
        profile: Kind of the devices, with the calibration of the library that runs them.
        traffic: AnyTraffic of the batch, which is equal for all members.
        which: The devices of this kind.
        widths_DL: ndarray of shape (D, L): width of the expert in every slot, of a single member
            whose experts differ; None if all have the same width.

    Returns:
        ndarray of shape (B, devices of this kind).
    """
    kernels, first = kernels_for(profile), members[0]
    if len(members) == 1 and widths_DL is None:
        tp = first.parallelism.tp
        cost = priced_experts(kernels, first.layer, tp, traffic, which.start, which.stop)
        return cost.solo_s_D()[None]
    compute, memory, latency = _priced(members, kernels, traffic, which, widths_DL)
    return latency + np.maximum(compute, memory)


def _experts(members: Sequence[Candidate], devices: Devices, traffic: AnyTraffic) -> Demands:
    return _demands(
        devices, [_priced(members, kernels, traffic, which) for kernels, which in devices.groups]
    )


def _priced(
    members: Sequence[Candidate],
    kernels: Kernels,
    traffic: AnyTraffic,
    which: slice,
    widths_DL: Array | None = None,
) -> tuple[Array, Array, Array]:
    """Return compute, memory and latency seconds of one kind of device, each of shape (B, D)."""
    tp, layer = members[0].parallelism.tp, members[0].layer
    counts_DL = traffic.counts_DL[which]
    tokens_D = np.asarray(traffic.tokens_D)[which]
    if not kernels.rows_may_differ or widths_DL is not None:
        return _stacked(
            [
                price_layer_experts(
                    kernels,
                    c.layer,
                    tp,
                    counts_DL,
                    None if widths_DL is None else widths_DL[which],
                    tokens_D,
                    tiles=tiles_of(kernels, c.layer, tp, traffic.counts_DL),
                )
                for c in members
            ]
        )
    # all members in one call: every member's devices become rows of a table, and tiles do not
    # depend on the width
    tiles = tiles_of(kernels, layer, tp, traffic.counts_DL)
    count, size = len(members), len(counts_DL)
    load = Load.of(counts_DL, tokens_D * layer.top_k, tiles[0].block_m)
    load = _repeated(load, count) if count > 1 else load
    width = np.repeat([-(-c.layer.widest // tp) for c in members], size)
    cost = price_routed(
        kernels,
        replace(ExpertShape.of(layer, tp), width=width),
        load,
        np.tile(tokens_D, count),
        tiles=tiles,
    )
    return _by_member(cost, count)


def _shared(members: Sequence[Candidate], devices: Devices, traffic: AnyTraffic) -> Demands:
    tokens_S = np.asarray(traffic.num_tokens_S)
    return _demands(
        devices,
        [
            _stacked([price_shared(c.layer, kernels, tokens_S[which]) for c in members])
            for kernels, which in devices.groups
        ],
    )


def _repeated(load: Load, count: int) -> Load:
    """Repeat the histograms of one member for every member."""
    assert load.counts_DL is not None
    return Load(
        rows_D=np.tile(load.rows_D, count),
        active_D=np.tile(load.active_D, count),
        blocks_D=np.tile(load.blocks_D, count),
        masked_rows_D=np.tile(load.masked_rows_D, count),
        idle_blocks_D=np.tile(load.idle_blocks_D, count),
        counts_DL=np.tile(load.counts_DL, (count, 1)),
    )


def _by_member(cost: PhaseCost, count: int) -> tuple[Array, Array, Array]:
    return tuple(
        np.asarray(a).reshape(count, -1)  # type: ignore[return-value]
        for a in (cost.compute_s_D, cost.memory_s_D, cost.latency_s_D)
    )


def _stacked(costs: list[PhaseCost]) -> tuple[Array, Array, Array]:
    return tuple(
        np.stack([np.asarray(getattr(c, name)) for c in costs])  # type: ignore[return-value]
        for name in ("compute_s_D", "memory_s_D", "latency_s_D")
    )


def _demands(devices: Devices, parts: list[tuple[Array, Array, Array]]) -> Demands:
    compute, memory, latency = (
        np.concatenate(column, axis=1) for column in zip(*parts, strict=True)
    )
    return np.stack(
        [compute * devices.flops_per_s_D, memory * devices.bytes_per_s_D], axis=2
    ), latency
