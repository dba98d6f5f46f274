"""The policies of EPLB: replicate experts, then pack them, node by node if the groups of the gate
divide over the nodes.

The module reimplements ``rebalance_experts`` of deepseek-ai/EPLB (MIT license) and reproduces the
example of its README exactly. The hierarchical policy packs groups onto nodes, replicates experts
inside their node, and packs slots onto the ranks of the node.

Shape legend: E experts, P slots, W ranks.
"""

import numpy as np

from moesim.errors import ConfigError
from moesim.placement.packing import pack, replicate, shared
from moesim.placement.setting import Setting

Array = np.ndarray


def eplb_slots(
    load_E: Array, num_ranks: int, num_replicas: int, setting: Setting, num_groups: int
) -> tuple[Array, Array]:
    """Return the expert and the rank of each slot, in order of ranks.

    Args:
        load_E: ndarray of shape (E,): load of each expert.
        num_ranks: Number of ranks W.
        num_replicas: Number of slots beyond E.
        setting: Nodes, speeds and memory of the ranks.
        num_groups: Number of groups of consecutive experts that stay together in a node; nodes are
            ignored if they do not divide the groups.

    Returns:
        (expert_P, rank_P), ndarrays of shape (P,).

    Raises:
        ConfigError: The experts do not divide into groups, or the slots do not divide over nodes.
        CapacityError: The experts do not fit in memory.
    """
    num_experts = len(load_E)
    if num_experts % num_groups:
        raise ConfigError(
            f"placement: expected experts divisible into {num_groups} groups, got {num_experts}"
        )
    nodes = setting.nodes(num_ranks)
    if num_groups % nodes:
        nodes, num_groups = 1, 1
    if num_replicas % nodes:
        raise ConfigError(
            f"placement: expected replicas divisible by the {nodes} nodes, got {num_replicas}"
        )
    members = _by_node(load_E, nodes, num_groups, setting, num_ranks)
    per_node = num_ranks // nodes
    experts, ranks = [], []
    for node, expert_X in enumerate(members):
        which = slice(node * per_node, (node + 1) * per_node)
        expert_P = replicate(load_E[expert_X], num_replicas // nodes)
        load_P = shared(load_E[expert_X], expert_P)
        expert_P = expert_X[expert_P]
        rank_P, place_P = pack(
            load_P, setting.rooms(len(expert_P), per_node), **limits(setting, expert_P, which)
        )
        order = np.lexsort((place_P, rank_P))
        experts.append(expert_P[order])
        ranks.append(rank_P[order] + node * per_node)
    return np.concatenate(experts), np.concatenate(ranks)


def limits(
    setting: Setting, expert_P: Array, ranks: slice = slice(None)
) -> dict[str, Array | None]:
    """Return the limits that `pack` must respect for these slots and ranks."""
    bounded = setting.room_bytes is not None
    return {
        "speed_W": np.array(setting.speed)[ranks] if setting.unequal else None,
        "bytes_P": np.array(setting.expert_bytes)[expert_P] if bounded else None,
        "room_bytes_W": np.array(setting.room_bytes)[ranks] if bounded else None,
    }


def _by_node(
    load_E: Array, nodes: int, num_groups: int, setting: Setting, num_ranks: int
) -> list[Array]:
    """Return the experts of each node: whole groups, the same number for every node."""
    load_G = load_E.reshape(num_groups, -1).sum(axis=1)
    expert_GX = np.arange(len(load_E)).reshape(num_groups, -1)
    speed = setting.speeds(num_ranks).reshape(nodes, -1).sum(axis=1) if setting.unequal else None
    room_N = np.full(nodes, num_groups if setting.unequal else num_groups // nodes)
    sizes, room = None, None
    if setting.room_bytes is not None:
        sizes = np.array(setting.expert_bytes).reshape(num_groups, -1).sum(axis=1)
        room = np.array(setting.room_bytes).reshape(nodes, -1).sum(axis=1)
    node_G, place_G = pack(load_G, room_N, speed_W=speed, bytes_P=sizes, room_bytes_W=room)
    return [
        expert_GX[np.flatnonzero(node_G == n)[np.argsort(place_G[node_G == n])]].ravel()
        for n in range(nodes)
    ]
