"""Describe a candidate's ranks to the placement strategies: their nodes, speeds, memory, and what a
copy costs in units of work.

Work is rows x width of an expert, the unit in which `moesim.simulate` places experts.

Shape legend: D devices, W ranks, T tokens, K choices.
"""

from dataclasses import replace

import numpy as np

from moesim.costs.phases.memory import memory_need
from moesim.design.candidate import Candidate, Workload
from moesim.hardware import Cluster, Profile
from moesim.placement import PlacementSpec, Setting

Array = np.ndarray


def setting_of(candidate: Candidate, cluster: Cluster, workload: Workload) -> Setting:
    """Return the setting in which a candidate's experts are placed.

    Speeds and memory are given only where they matter: speeds where devices differ, memory where
    devices or experts differ. Otherwise every plan needs the same memory, and `moesim.simulate`
    checks it.
    """
    tp, ranks = candidate.parallelism.tp, candidate.parallelism.ep
    strategy = PlacementSpec.parse(candidate.placement).strategy
    per_node = max(cluster.devices_per_domain // tp, 1)
    layer, mixed = candidate.layer, len(cluster.groups) > 1
    setting = Setting(
        ranks_per_node=per_node if per_node < ranks and ranks % per_node == 0 else None,
        num_expert_groups=layer.gate.num_expert_groups,
        tp=tp,
    )
    sizes = [count for _, count in cluster.groups]
    if mixed:
        speed_D = np.repeat(
            [_work_per_s(candidate, workload, profile) for profile, _ in cluster.groups], sizes
        )
        # devices of a rank end together, so its slowest device counts
        setting = replace(setting, speed=_of_ranks(speed_D / speed_D.max(), tp))
    # experts that are pruned by load leave all ranks with about as many
    uneven = layer.uneven and not candidate.compression.pruned_fraction
    if candidate.dense_part is not None and (mixed or uneven):
        rest = memory_need(
            layer,
            candidate.dense_part,
            held_width=0,
            kv_tokens=workload.kv_tokens,
            rows=0,
            row_widths=0,
            tokens=0,
        ).total_bytes
        usable_D = np.repeat([profile.usable_bytes for profile, _ in cluster.groups], sizes)
        size_E = layer.width_E() * layer.bytes_per_width * candidate.dense_part.num_moe_layers
        size_E = size_E * candidate.offload.resident_fraction
        setting = replace(
            setting,
            room_bytes=tuple(tp * np.array(_of_ranks(usable_D - rest, tp))),
            expert_bytes=tuple(size_E.tolist()),
        )
    if strategy == "local_search" and cluster.num_devices > 1:
        copy_s, node_copy_s = _copy_s(candidate, cluster)
        work_per_s = _work_per_s(candidate, workload, cluster.profile) * tp
        setting = replace(
            setting, copy_work=copy_s * work_per_s, node_copy_work=node_copy_s * work_per_s
        )
    return setting


def _copy_s(candidate: Candidate, cluster: Cluster) -> tuple[float, float]:
    """Return the seconds that a copy of a token takes there and back, at the ports of its rank and
    at the ports of its node together.

    Where a copy travels straight to its rank, copies from other nodes arrive over the rank's NIC;
    with two hops a node receives one copy, spread over its NICs. If every choice has its own copy,
    copies are part of the load, and an all-gather does not depend on where experts are: both cost
    nothing here.
    """
    layer, schedule = candidate.layer, candidate.schedule
    exchange = cluster.exchange(schedule)
    if not exchange.follows_placement:
        return 0.0, 0.0
    size = sum(
        layer.precision.token_bytes(way, layer.hidden_size) for way in ("dispatch", "combine")
    )
    near, far = cluster.link_bytes_per_s, cluster.nic_bytes_per_s
    copy_s = size / near if near else 0.0
    if not far:
        return copy_s, 0.0
    if not exchange.hops_across:
        far_share = 1.0 - cluster.devices_per_domain / cluster.num_devices
        return max(copy_s * (1.0 - far_share), far_share * size / far), 0.0
    return copy_s, size / (far * cluster.devices_per_domain)


def _work_per_s(candidate: Candidate, workload: Workload, profile: Profile) -> float:
    """Return the rows x width per second of one device at the mean load of an expert: the roofline
    of its GEMMs.
    """
    layer = candidate.layer
    rows = max(
        workload.num_tokens_per_device
        * candidate.parallelism.num_devices
        * layer.top_k
        / layer.num_left,
        1.0,
    )
    flops_s = 2.0 * layer.params_per_width / profile.peak(layer.precision.activations)
    weights_s = layer.bytes_per_width / profile.hbm_bandwidth_bytes_per_s / rows
    return 1.0 / max(flops_s, weights_s)


def _of_ranks(value_D: Array, tp: int) -> tuple[float, ...]:
    """Return the least value of each rank's devices."""
    return tuple(value_D.reshape(-1, tp).min(axis=1).tolist())
