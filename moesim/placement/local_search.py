"""Improve a placement by local search: swap, move or replicate experts of the costliest rank, with
the cost model of `moesim.placement.state`.

Each step takes the change that most lowers the cost of the costlier of the two ranks it touches. If
no change helps, the search restarts from the best placement so far after a few random swaps
(iterated local search; Lourenco, Martin and Stuetzle 2003).

Shape legend: P slots, E experts, W ranks.
"""

import numpy as np

from moesim.placement.affinity import MOST_EXPERTS, attracted, coactivation
from moesim.placement.eplb import eplb_slots
from moesim.placement.setting import Setting
from moesim.placement.state import LoadModel, State
from moesim.routing import Routing

Array = np.ndarray


def searched(
    load_E: Array,
    num_ranks: int,
    num_replicas: int,
    setting: Setting,
    routing: Routing | None = None,
    *,
    steps: int = 200,
    seed: int = 0,
) -> tuple[Array, Array]:
    """Search from the best planned placement.

    Args:
        load_E: ndarray of shape (E,): load of each expert.
        num_ranks: Number of ranks W.
        num_replicas: Number of slots beyond E.
        setting: Nodes, speeds and memory of the ranks, and the cost of a copy.
        routing: Tokens whose copies count; None to consider load alone.
        steps: Number of changes that are tried.
        seed: Seed of the random swaps.

    Returns:
        (expert_P, rank_P), ndarrays of shape (P,), in order of ranks.
    """
    model = LoadModel(load_E, num_ranks, setting, routing)
    states = [
        State(model, *start) for start in _starts(load_E, num_ranks, num_replicas, setting, routing)
    ]
    state = min(states, key=lambda s: s.score)
    best = state.copy()
    rng = np.random.default_rng([seed, num_ranks, len(load_E)])
    for _ in range(steps):
        if state.improve():
            if state.score < best.score:
                best = state.copy()
            continue
        if best.score[0] <= model.least * (1 + 1e-9) or num_ranks == 1:
            break
        state = best.copy()
        state.kick(rng)
    order = np.argsort(best.rank_P, kind="stable")
    return best.expert_P[order], best.rank_P[order]


def levelled(
    load_E: Array,
    expert_P: Array,
    rank_P: Array,
    setting: Setting,
    num_ranks: int,
    tolerance: float,
) -> tuple[Array, Array]:
    """Swap slots until no rank exceeds its fair share by more than the tolerance, or no swap helps.

    Returns:
        (expert_P, rank_P), ndarrays of shape (P,), in order of ranks.
    """
    model = LoadModel(load_E, num_ranks, setting, None)
    state = State(model, expert_P, rank_P)
    for _ in range(4 * len(rank_P)):
        if state.score[0] <= model.least * (1 + tolerance) or not state.improve(swaps_only=True):
            break
    order = np.argsort(state.rank_P, kind="stable")
    return state.expert_P[order], state.rank_P[order]


def _starts(
    load_E: Array, num_ranks: int, num_replicas: int, setting: Setting, routing: Routing | None
) -> list[tuple[Array, Array]]:
    """Return the planned placements, including expert order if it is allowed."""
    starts = [eplb_slots(load_E, num_ranks, num_replicas, setting.one_node(), 1)]
    nodes = setting.nodes(num_ranks)
    if nodes > 1 and num_replicas % nodes == 0 and len(load_E) % nodes == 0:
        groups = setting.num_expert_groups
        starts.append(
            eplb_slots(
                load_E,
                num_ranks,
                num_replicas,
                setting,
                groups if groups % nodes == 0 and len(load_E) % groups == 0 else len(load_E),
            )
        )
    if (
        routing is not None
        and len(load_E) <= MOST_EXPERTS
        and setting.copy_work + setting.node_copy_work > 0
    ):
        pair = coactivation(routing.expert_ids_TK, len(load_E))
        for tolerance in (0.02, 0.1):
            found = attracted(
                load_E, num_ranks, num_replicas, setting, tolerance=tolerance, pair_EE=pair
            )
            starts.append(levelled(load_E, *found, setting, num_ranks, tolerance))
    return starts
