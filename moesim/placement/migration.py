"""What it takes to go from one placement to another, and how well a placement serves loads it was
not planned on.

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
    """Bytes of weights each rank sends to each other, so that the new placement is in place.

    A rank fetches what it does not hold yet from a rank that did: of its own node if there is one,
    and of those from the one with the least to send so far. Moves inside a rank are free.

    Args:
        old: Where experts are.
        new: Where they shall be, on the same ranks.
        expert_bytes_E: ndarray of shape (E,).
        ranks_per_node: Consecutive ranks of a node; by default all.

    Returns:
        ndarray of shape (W, W): from, to.

    Raises:
        ConfigError: Other ranks or experts.
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
    """The new placement with its ranks, and its nodes as wholes, exchanged so that most experts
    stay where they are.

    Of no effect on balance or on what shares a rank or a node, so only for ranks that are alike and
    for plans that do not look at where tokens come from. Ranks are assigned inside every pair of
    nodes, then nodes (Hungarian method; Kuhn 1955).

    Args:
        old: Where experts are.
        new: Where they shall be; as many slots on every rank.
        ranks_per_node: Consecutive ranks of a node; by default all.
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
    """Time of the busiest rank over that of a perfect balance, when replicas share evenly."""
    speed = np.ones(placement.num_ranks) if speed_W is None else speed_W
    load_W = np.bincount(
        placement.rank_of_slot_P,
        weights=replica_loads(placement, load_E),
        minlength=placement.num_ranks,
    )
    return float((load_W / speed).max() * speed.sum() / load_W.sum())


def predict(past_NE: Array, window: int = 1, decay: float = 1.0) -> Array:
    """The next window's loads from those before.

    Args:
        past_NE: ndarray of shape (N, E), oldest first.
        window: Last windows that count.
        decay: Weight of a window over that of the one after it: 1 is their mean.

    Returns:
        ndarray of shape (E,).
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
    """Plan on the past, score on what follows.

    Args:
        load_NE: ndarray of shape (N, E): loads of consecutive windows, at least two.
        plan: Placement for loads, such as ``lambda load: place("eplb", load, 8, 8)``.
        every: Windows between new plans.
        window: Past windows a plan looks at.
        decay: See `predict`.

    Returns:
        A row for each window from the second: ``imbalance`` of the plan in force,
        ``imbalance_known`` of a plan on the window itself, ``imbalance_first`` of the first plan
        kept for ever, ``moved_experts`` when it was replaced.

    Raises:
        ConfigError: Fewer than two windows, or a number below 1.
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
