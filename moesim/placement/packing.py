"""Replicate hot experts and pack slots onto ranks: the two steps that planned placements share.

`replicate` and `pack` reimplement ``replicate_experts`` and ``balanced_packing`` of
deepseek-ai/EPLB (MIT license), including ties, which go to the lowest expert and the lowest rank.

Shape legend: P slots, E experts, W ranks.
"""

import heapq

import numpy as np

from moesim.errors import CapacityError
from moesim.units import GIB

Array = np.ndarray


def replicate(load_E: Array, num_replicas: int) -> Array:
    """Return the experts of E + num_replicas slots; each further copy goes to the expert with the
    highest load per replica.

    Returns:
        ndarray of shape (P,): every expert once, then the copies in the order they were added.
    """
    copies = [1] * len(load_E)
    heap = [(-load, e) for e, load in enumerate(load_E.tolist())]
    heapq.heapify(heap)
    added = []
    for _ in range(num_replicas):
        _, e = heap[0]
        copies[e] += 1
        added.append(e)
        # the heap holds negative loads per replica, so its top is the expert that gains most
        heapq.heapreplace(heap, (-float(load_E[e]) / copies[e], e))
    return np.concatenate([np.arange(len(load_E)), np.array(added, dtype=np.int64)])


def shared(load_E: Array, expert_P: Array) -> Array:
    """Return the load of each slot if the slots of an expert share its load evenly: ndarray of
    shape (P,).
    """
    return (load_E / np.bincount(expert_P, minlength=len(load_E)))[expert_P]


def pack(
    load_P: Array,
    room_W: Array,
    *,
    speed_W: Array | None = None,
    bytes_P: Array | None = None,
    room_bytes_W: Array | None = None,
) -> tuple[Array, Array]:
    """Pack slots, heaviest first, onto the rank with room that finishes the slot first.

    The method is longest processing time (Graham 1969); for ranks that differ, it is its variant
    for uniform machines (Gonzalez, Ibarra and Sahni 1977).

    Args:
        load_P: ndarray of shape (P,): load of each slot.
        room_W: ndarray of shape (W,): maximum number of slots of each rank.
        speed_W: ndarray of shape (W,): speed of each rank; None if all are equal.
        bytes_P: ndarray of shape (P,): memory of each slot.
        room_bytes_W: ndarray of shape (W,): memory of each rank; None if it is unlimited.

    Returns:
        The rank of each slot, and its index within the rank in the order of packing: ndarrays of
        shape (P,).

    Raises:
        CapacityError: A slot fits on no rank.
    """
    if speed_W is None and room_bytes_W is None:
        return _pack_alike(load_P, room_W)
    speed = np.ones(len(room_W)) if speed_W is None else speed_W
    size_P = np.zeros(len(load_P)) if bytes_P is None else bytes_P
    free_W = (
        np.full(len(room_W), np.inf)
        if room_bytes_W is None
        else np.asarray(room_bytes_W, dtype=float)
    )
    by_load = np.argsort(-load_P, kind="stable")
    stuck = _pack_unlike(by_load, load_P, size_P, room_W, free_W, speed)
    if isinstance(stuck, tuple):
        return stuck
    # packing by load does not fit: pack the largest first, which leaves the smallest gaps
    by_size = np.lexsort((-load_P, -size_P))
    found = _pack_unlike(by_size, load_P, size_P, room_W, free_W, speed)
    if isinstance(found, tuple):
        return found
    raise CapacityError(
        f"placement: a slot of {size_P[found] / GIB:.2f} GiB fits on no rank: {len(load_P)} slots "
        f"need {size_P.sum() / GIB:.2f} GiB, the {len(room_W)} ranks have "
        f"{np.maximum(free_W, 0).sum() / GIB:.2f}, none more than {free_W.max() / GIB:.2f}"
    )


def _pack_alike(load_P: Array, room_W: Array) -> tuple[Array, Array]:
    if (room_W == 1).all():
        return np.arange(len(load_P)), np.zeros(len(load_P), dtype=np.int64)
    room, held = room_W.tolist(), [0] * len(room_W)
    rank_P, place_P = [0] * len(load_P), [0] * len(load_P)
    heap = [(0.0, r) for r in range(len(room)) if room[r] > 0]
    loads = load_P.tolist()
    for p in np.argsort(-load_P, kind="stable").tolist():
        load, rank = heap[0]
        rank_P[p], place_P[p] = rank, held[rank]
        held[rank] += 1
        if held[rank] == room[rank]:
            heapq.heappop(heap)
        else:
            heapq.heapreplace(heap, (load + loads[p], rank))
    return np.array(rank_P), np.array(place_P)


def _pack_unlike(
    order: Array, load_P: Array, size_P: Array, room_W: Array, free_W: Array, speed_W: Array
) -> tuple[Array, Array] | int:
    """Return ranks and indices within ranks, or the slot that fits on no rank."""
    rank_P, place_P = np.zeros(len(load_P), dtype=np.int64), np.zeros(len(load_P), dtype=np.int64)
    load_W, held_W, left_W = (
        np.zeros(len(room_W)),
        np.zeros(len(room_W), dtype=np.int64),
        free_W.copy(),
    )
    for p in order:
        fits = (held_W < room_W) & (size_P[p] <= left_W)
        if not fits.any():
            return int(p)
        done = np.where(fits, (load_W + load_P[p]) / speed_W, np.inf)
        least = done.min()
        # break ties, such as experts without load, in favor of the rank with the fewest slots
        rank = int(np.argmin(np.where(done <= least, held_W, len(load_P) + 1)))
        rank_P[p], place_P[p] = rank, held_W[rank]
        load_W[rank] += load_P[p]
        held_W[rank] += 1
        left_W[rank] -= size_P[p]
    return rank_P, place_P
