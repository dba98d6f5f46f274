"""Place experts near related experts or tokens: near experts they are chosen with, near the sources
of their tokens, or near the experts of the layer before.

Attraction is counted in choices. Between two experts of a layer it is the number of tokens that
choose both (co-activation: one copy then serves two choices). Between an expert and a rank it is
the number of choices by sources of that rank (data domains), or the number of tokens that were on
that rank in the layer before (transitions, see ExFlow, arXiv:2401.08383). Slots are placed in order
of load, heaviest first. Each goes to the node, and within it to the rank, that attracts it most and
stays within the tolerance of its fair share of load; if none does, to the one with the least load.

Shape legend: T tokens, K choices, E experts, P slots, W ranks, N nodes, S sources.
"""

from collections.abc import Sequence

import numpy as np

from moesim.errors import ConfigError
from moesim.placement.eplb import limits
from moesim.placement.packing import pack, replicate, shared
from moesim.placement.setting import Setting
from moesim.placement.slots import Placement

Array = np.ndarray
#: largest number of tokens whose choices are compared; a longer list is thinned out evenly
_MOST_TOKENS = 1 << 14
#: largest number of experts whose pairs are counted, since their matrix takes 8 bytes per pair
MOST_EXPERTS = 1 << 12


def coactivation(expert_ids_TK: Array, num_experts: int) -> Array:
    """Count the tokens that choose both of two experts; the diagonal is 0.

    Raises:
        ConfigError: There are more experts than `MOST_EXPERTS`.

    Returns:
        ndarray of shape (E, E), symmetric.
    """
    return _pairs(expert_ids_TK, expert_ids_TK, num_experts, same=True)


def transitions(before_TK: Array, after_TK: Array, num_experts: int) -> Array:
    """Count pairs of a choice in one layer and a choice of the same token in the next layer.

    Args:
        before_TK: ndarray of shape (T, K): experts of the tokens in one layer.
        after_TK: ndarray of shape (T, K): experts of the same tokens in the next layer.
        num_experts: Number of experts E of both layers.

    Raises:
        ConfigError: The numbers of tokens differ, or there are more experts than `MOST_EXPERTS`.

    Returns:
        ndarray of shape (E, E): pairs by expert of the first and of the next layer.
    """
    if len(before_TK) != len(after_TK):
        raise ConfigError(
            f"placement: expected the same tokens in both layers, got {len(before_TK)} and "
            f"{len(after_TK)}"
        )
    return _pairs(before_TK, after_TK, num_experts, same=False)


def _pairs(one_TK: Array, two_TK: Array, num_experts: int, *, same: bool) -> Array:
    if num_experts > MOST_EXPERTS:
        raise ConfigError(
            f"placement: affinity counts pairs of at most {MOST_EXPERTS} experts, got {num_experts}"
        )
    step = -(-len(one_TK) // _MOST_TOKENS)
    one, two = one_TK[::step].astype(np.int64), two_TK[::step].astype(np.int64)
    counts = np.zeros(num_experts * num_experts)
    for a in range(one.shape[1]):
        for b in range(two.shape[1]):
            if not (same and a == b):
                counts += np.bincount(one[:, a] * num_experts + two[:, b], minlength=len(counts))
    return counts.reshape(num_experts, num_experts) * step


def attracted(
    load_E: Array,
    num_ranks: int,
    num_replicas: int,
    setting: Setting,
    *,
    tolerance: float,
    pair_EE: Array | None = None,
    pull_EW: Array | None = None,
) -> tuple[Array, Array]:
    """Place experts by attraction within a tolerance of balance.

    Args:
        load_E: ndarray of shape (E,): load of each expert.
        num_ranks: Number of ranks W.
        num_replicas: Number of slots beyond E; copies of an expert share its attraction.
        setting: Nodes, speeds and memory of the ranks.
        tolerance: Share by which a rank's load may exceed its fair share.
        pair_EE: ndarray of shape (E, E): attraction between experts.
        pull_EW: ndarray of shape (E, W): attraction of experts to ranks.

    Returns:
        (expert_P, rank_P), ndarrays of shape (P,), in order of ranks.

    Raises:
        CapacityError: The experts do not fit in memory.
    """
    expert_P = replicate(load_E, num_replicas)
    load_P, bounds = shared(load_E, expert_P), limits(setting, expert_P)
    nodes = setting.nodes(num_ranks)
    room_W, speed_W = setting.rooms(len(expert_P), num_ranks), setting.speeds(num_ranks)
    fair_W = load_P.sum() * speed_W / speed_W.sum() * (1.0 + tolerance)
    size_P, free_W = bounds["bytes_P"], bounds["room_bytes_W"]
    node_W = np.arange(num_ranks) // (num_ranks // nodes)
    node_room = np.bincount(node_W, weights=room_W, minlength=nodes)
    node_fair = np.bincount(node_W, weights=fair_W, minlength=nodes)
    load_W, held_W = np.zeros(num_ranks), np.zeros(num_ranks, dtype=np.int64)
    left_W = np.full(num_ranks, np.inf) if free_W is None else free_W.copy()
    # share of the copies of each expert that each rank holds
    on_EW = np.zeros((len(load_E), num_ranks))
    rank_P = np.zeros(len(expert_P), dtype=np.int64)
    for p in np.argsort(-load_P, kind="stable"):
        e, load = expert_P[p], load_P[p]
        fits = (held_W < room_W) & (left_W >= (0.0 if size_P is None else size_P[p]))
        if not fits.any():
            # attraction led to a dead end: place by balance alone, which also reports if nothing
            # fits
            rank_P, _ = pack(load_P, room_W, **bounds)
            break
        pull_W = np.zeros(num_ranks) if pair_EE is None else pair_EE[e] @ on_EW
        if pull_EW is not None:
            pull_W = pull_W + pull_EW[e]
        # two copies of an expert on one rank save nothing
        pull_W = np.where(on_EW[e] > 0, -1.0, pull_W)
        node_load = np.bincount(node_W, weights=load_W, minlength=nodes)
        node_held = np.bincount(node_W, weights=held_W, minlength=nodes)
        open_N = np.bincount(node_W, weights=fits, minlength=nodes) > 0
        node = _choose(
            np.bincount(node_W, weights=pull_W, minlength=nodes),
            node_load + load,
            node_fair,
            open_N & (node_held < node_room),
        )
        rank = _choose(pull_W, load_W + load, fair_W, fits & (node_W == node))
        rank_P[p] = rank
        on_EW[e, rank] += 1.0 / np.count_nonzero(expert_P == e)
        load_W[rank] += load
        held_W[rank] += 1
        left_W[rank] -= 0.0 if size_P is None else size_P[p]
    order = np.argsort(rank_P, kind="stable")
    return expert_P[order], rank_P[order]


def _choose(pull_X: Array, load_X: Array, fair_X: Array, open_X: Array) -> int:
    """Return the index of the strongest pull among those within their fair share, ties by load; if
    there are none, that of the least load.
    """
    within = open_X & (load_X <= fair_X)
    if not within.any():
        return int(np.argmin(np.where(open_X, load_X / fair_X, np.inf)))
    best = pull_X[within].max()
    return int(np.argmin(np.where(within & (pull_X >= best), load_X / fair_X, np.inf)))


def source_pull(num_tokens_SE: Array, num_ranks: int, tp: int = 1) -> Array:
    """Count the choices that the sources of each rank make: ndarray of shape (E, W).

    Args:
        num_tokens_SE: ndarray of shape (S, E): choices of each source for each expert.
        num_ranks: Number of ranks W; the sources are the devices of all ranks, numbered
            consecutively.
        tp: Number of devices of a rank.
    """
    pull_EW = np.zeros((num_tokens_SE.shape[1], num_ranks))
    np.add.at(pull_EW.T, np.arange(len(num_tokens_SE)) // tp % num_ranks, num_tokens_SE)
    return pull_EW


def place_layers(
    expert_ids_LTK: Sequence[Array],
    num_experts: int,
    num_ranks: int,
    *,
    num_replicas: int = 0,
    setting: Setting | None = None,
    tolerance: float = 0.05,
) -> list[Placement]:
    """Place consecutive layers, each near the experts that its tokens come from.

    Args:
        expert_ids_LTK: Experts of the same tokens in every layer, each an array of shape (T, K).
        num_experts: Number of experts E.
        num_ranks: Number of ranks W.
        num_replicas: Number of slots beyond E in each layer.
        setting: Nodes, speeds and memory of the ranks.
        tolerance: Share by which a rank's load may exceed its fair share.

    Raises:
        ConfigError: The layers have different numbers of tokens.
    """
    setting = setting or Setting()
    found: list[Placement] = []
    for layer, ids in enumerate(expert_ids_LTK):
        load_E = np.bincount(ids.ravel(), minlength=num_experts).astype(float)
        pull = None
        if found:
            pull = transitions(expert_ids_LTK[layer - 1], ids, num_experts).T @ _share_EW(found[-1])
        expert_P, rank_P = attracted(
            load_E,
            num_ranks,
            num_replicas,
            setting,
            tolerance=tolerance,
            pull_EW=pull,
            pair_EE=None if found else coactivation(ids, num_experts),
        )
        found.append(
            Placement(
                rank_of_slot_P=rank_P,
                expert_of_slot_P=expert_P,
                num_ranks=num_ranks,
                num_experts=num_experts,
            )
        )
    return found


def stay_fraction(
    before: Placement, after: Placement, transition_EE: Array, ranks_per_node: int = 1
) -> float:
    """Return the share of transitions that stay on their rank, or within a node of several
    ranks.
    """
    nodes = -(-before.num_ranks // ranks_per_node)

    def by_node(placement: Placement) -> Array:
        share_NE = np.zeros((nodes, placement.num_experts))
        np.add.at(
            share_NE, np.arange(placement.num_ranks) // ranks_per_node, _share_EW(placement).T
        )
        return share_NE

    stay = np.einsum("nf,fe,ne->", by_node(before), transition_EE, by_node(after))
    return float(stay / transition_EE.sum())


def _share_EW(placement: Placement) -> Array:
    """Return the share of the tokens of each expert that each rank serves: ndarray of shape (E, W)
    whose rows sum to 1.
    """
    on_EW = np.zeros((placement.num_experts, placement.num_ranks))
    np.add.at(on_EW, (placement.expert_of_slot_P, placement.rank_of_slot_P), 1.0)
    return on_EW / on_EW.sum(axis=1, keepdims=True)
