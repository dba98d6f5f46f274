"""What travels when experts are added.

Experts lie in order on the devices, before and after: expert e of E on device floor(e D / E). A new
expert stands beside the old one that it is a copy of, expert floor(e' E / E') of the old ones, so
that most copies are made where they stay.

Shape legend: E experts after, D devices after.
"""

import numpy as np

from moesim.engines.run import run
from moesim.hardware import Cluster
from moesim.lowering.alltoall import exchange_program

Array = np.ndarray
#: above this many devices the busiest port alone is looked at
_MOST_SIMULATED = 512


def growth_traffic(
    cluster: Cluster,
    *,
    experts: tuple[int, int],
    devices: tuple[int, int],
    expert_bytes: float,
    dense_bytes: float,
    upcycled: bool,
) -> tuple[float, float]:
    """Return the bytes that travel and the seconds in which they do.

    Args:
        cluster: The cluster after.
        experts: Experts of a layer before and after.
        devices: Devices before and after.
        expert_bytes: Bytes of the states of one expert, of all layers.
        dense_bytes: Bytes of dense weights, which new devices get.
        upcycled: Whether new experts are copies; otherwise only old ones move.
    """
    source_F, target_F, bytes_F = _flows(experts, devices, expert_bytes, upcycled=upcycled)
    fresh = np.arange(devices[0], devices[1])
    source_F = np.concatenate([source_F, fresh % devices[0]])
    target_F = np.concatenate([target_F, fresh])
    bytes_F = np.concatenate([bytes_F, np.full(len(fresh), dense_bytes)])
    moves = source_F != target_F
    source_F, target_F, bytes_F = source_F[moves], target_F[moves], bytes_F[moves]
    if not len(bytes_F):
        return 0.0, 0.0
    count = devices[1]
    if count <= _MOST_SIMULATED:
        bytes_SD = np.zeros((count, count))
        np.add.at(bytes_SD, (source_F, target_F), bytes_F)
        seconds = run(exchange_program(cluster, bytes_SD), "flow").makespan_s
    else:
        busiest = max(
            float(np.bincount(ends, weights=bytes_F, minlength=count).max())
            for ends in (source_F, target_F)
        )
        seconds = busiest / (cluster.nic_bytes_per_s or cluster.link_bytes_per_s)
    return float(bytes_F.sum()), float(seconds)


def _flows(
    experts: tuple[int, int], devices: tuple[int, int], expert_bytes: float, *, upcycled: bool
) -> tuple[Array, Array, Array]:
    """Return source, target and bytes of experts that are placed, those that stay included."""
    old, new = experts
    place_E = np.arange(new, dtype=np.int64)
    parent_E = place_E * old // new
    if not upcycled:
        # only the first of the experts beside an old one is that one
        first_E = np.append(True, np.diff(parent_E) > 0)
        place_E, parent_E = place_E[first_E], parent_E[first_E]
    source_E = parent_E * devices[0] // old
    target_E = place_E * devices[1] // new
    pairs, count_F = np.unique(source_E * devices[1] + target_E, return_counts=True)
    return pairs // devices[1], pairs % devices[1], count_F * expert_bytes
