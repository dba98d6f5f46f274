"""Compute the cost of a change from one placement to another, and how well a placement serves loads
that it was not planned on.

Shape legend: W ranks, E experts, N windows.
"""

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from moesim.errors import ConfigError
from moesim.placement.slots import Placement, replica_loads

Array = np.ndarray


def migration_bytes(
    old: Placement, new: Placement, expert_bytes_E: Array, ranks_per_node: int | None = None
) -> Array:
    """Return the bytes of weights that each rank sends to each other rank to reach the new
    placement.

    A rank fetches an expert that it does not hold from a rank that held it, in its own node if
    possible; among several it takes the one with the least to send so far. Moves inside a rank are
    free.

    Args:
        old: The present placement.
        new: The new placement on the same ranks.
        expert_bytes_E: ndarray of shape (E,): bytes of the weights of each expert.
        ranks_per_node: Number of consecutive ranks of a node; by default all ranks.

    Returns:
        ndarray of shape (W, W): bytes by sending and receiving rank.

    Raises:
        ConfigError: The placements differ in ranks or experts.
    """
    if (old.num_ranks, old.num_experts) != (new.num_ranks, new.num_experts):
        raise ConfigError(
            f"placement: expected {old.num_experts} experts on {old.num_ranks} ranks as before, "
            f"got {new.num_experts} on {new.num_ranks}"
        )
    per_node = ranks_per_node or old.num_ranks
    bytes_WW = np.zeros((old.num_ranks, old.num_ranks))
    has_EW = np.zeros((old.num_experts, old.num_ranks), dtype=bool)
    has_EW[old.expert_of_slot_P, old.rank_of_slot_P] = True
    wants_EW = np.zeros_like(has_EW)
    wants_EW[new.expert_of_slot_P, new.rank_of_slot_P] = True
    for e, rank in np.argwhere(wants_EW & ~has_EW):
        sources = np.flatnonzero(has_EW[e])
        near = sources[sources // per_node == rank // per_node]
        among = near if len(near) else sources
        source = among[np.argmin(bytes_WW[among].sum(axis=1))]
        bytes_WW[source, rank] += expert_bytes_E[e]
    return bytes_WW


def renamed(old: Placement, new: Placement, ranks_per_node: int | None = None) -> Placement:
    """Return the new placement with its ranks, and whole nodes, renamed so that most experts stay
    where they are.

    Renaming changes neither the balance nor which experts share a rank or a node. It is valid only
    for identical ranks and for plans that ignore the sources of tokens. Ranks are assigned within
    every pair of nodes first, then nodes are assigned (Hungarian method; Kuhn 1955).

    Args:
        old: The present placement.
        new: The new placement, with the same number of slots on every rank.
        ranks_per_node: Number of consecutive ranks of a node; by default all ranks.
    """
    from scipy.optimize import linear_sum_assignment

    ranks, per_node = new.num_ranks, ranks_per_node or new.num_ranks
    held = new.slots_of_rank()
    if held.min() != held.max() or ranks % per_node:
        return new
    at_WE = np.zeros((2, ranks, new.num_experts))
    for side, placement in enumerate((old, new)):
        at_WE[side, placement.rank_of_slot_P, placement.expert_of_slot_P] = 1.0
    nodes = ranks // per_node
    # experts that stay if new rank (node a, r) takes the name of old rank (node b, s)
    stay_NRNR = (at_WE[1] @ at_WE[0].T).reshape(nodes, per_node, nodes, per_node)
    inner = {
        (a, b): linear_sum_assignment(stay_NRNR[a, :, b], maximize=True)[1]
        for a in range(nodes)
        for b in range(nodes)
    }
    stay_NN = np.array(
        [
            [stay_NRNR[a, np.arange(per_node), b, inner[a, b]].sum() for b in range(nodes)]
            for a in range(nodes)
        ]
    )
    node_of = linear_sum_assignment(stay_NN, maximize=True)[1]
    rank_of = np.concatenate([b * per_node + inner[a, b] for a, b in enumerate(node_of)])
    rank_P = rank_of[new.rank_of_slot_P]
    order = np.argsort(rank_P, kind="stable")
    return replace(new, rank_of_slot_P=rank_P[order], expert_of_slot_P=new.expert_of_slot_P[order])


def imbalance(placement: Placement, load_E: Array, speed_W: Array | None = None) -> float:
    """Return the time of the busiest rank over that of a perfect balance, if replicas share
    evenly.
    """
    speed = np.ones(placement.num_ranks) if speed_W is None else speed_W
    load_W = np.bincount(
        placement.rank_of_slot_P,
        weights=replica_loads(placement, load_E),
        minlength=placement.num_ranks,
    )
    return float((load_W / speed).max() * speed.sum() / load_W.sum())


def predict(past_NE: Array, window: int = 1, decay: float = 1.0) -> Array:
    """Predict the loads of the next window from those of earlier windows.

    Args:
        past_NE: ndarray of shape (N, E): loads of the windows, oldest first.
        window: Number of last windows that count.
        decay: Weight of a window over the weight of the window after it; 1 gives their mean.

    Returns:
        ndarray of shape (E,): predicted loads.
    """
    last = past_NE[-window:].astype(np.float64)
    weight_N = decay ** np.arange(len(last) - 1, -1, -1.0)
    return weight_N @ last / weight_N.sum()


def forecast(
    load_NE: Array,
    plan: Callable[[Array], Placement],
    *,
    every: int = 1,
    window: int = 1,
    decay: float = 1.0,
) -> list[dict[str, float]]:
    """Plan on past windows and score the plan on later ones.

    Args:
        load_NE: ndarray of shape (N, E): loads of consecutive windows, at least two.
        plan: Function that returns a placement for loads, such as
            ``lambda load: place("eplb", load, 8, 8)``.
        every: Number of windows between new plans.
        window: Number of past windows that a plan uses.
        decay: Decay of the weights of past windows, passed to `predict`.

    Returns:
        One row per window from the second on: ``imbalance`` of the plan in force,
        ``imbalance_known`` of a plan made on the window itself, ``imbalance_first`` of the first
        plan if it is kept forever, and ``moved_experts`` when the plan is replaced.

    Raises:
        ConfigError: There are fewer than two windows, or a number is below 1.
    """
    if len(load_NE) < 2 or min(every, window) < 1:
        raise ConfigError(
            "placement.forecast: expected two windows, every >= 1 and window >= 1, got "
            f"{len(load_NE)}, {every}, {window}"
        )
    first = current = plan(predict(load_NE[:1]))
    rows: list[dict[str, float]] = []
    for n in range(1, len(load_NE)):
        moved = 0.0
        if n > 1 and (n - 1) % every == 0:
            planned = renamed(current, plan(predict(load_NE[:n], window, decay)))
            moved = float(migration_bytes(current, planned, np.ones(planned.num_experts)).sum())
            current = planned
        load_E = load_NE[n]
        rows.append(
            {
                "window": n,
                "imbalance": imbalance(current, load_E),
                "imbalance_known": imbalance(plan(load_E.astype(np.float64)), load_E),
                "imbalance_first": imbalance(first, load_E),
                "moved_experts": moved,
            }
        )
    return rows
