"""Local search: swaps, moves and other replicas for the busiest rank, on a model of load and traffic.

A rank's cost is its load over its speed, plus the copies of tokens it receives and its part of those its node
receives, in the same unit (`Setting.copy_work`, `Setting.node_copy_work`); without a routing it is the load alone.
Each step takes the exchange that most lowers the costlier of the two ranks it touches; where none helps, a few random
exchanges start again from the best so far (iterated local search; Lourenco, Martin and Stuetzle 2003).

Shape legend: P slots, E experts, W ranks, N nodes, T sampled tokens, I slots of the busiest rank.
"""


import numpy as np

from moesim.placement.affinity import MOST_EXPERTS, attracted, coactivation
from moesim.placement.eplb import eplb_slots, limits
from moesim.placement.packing import shared
from moesim.placement.setting import Setting
from moesim.placement.slots import Placement
from moesim.routing import Routing

Array = np.ndarray
_SAMPLE, _KICKS, _TRIES = 512, 3, 4


def searched(load_E: Array, num_ranks: int, num_replicas: int, setting: Setting, routing: Routing | None = None, *,
             steps: int = 200, seed: int = 0) -> tuple[Array, Array]:
    """Search from the best of the planned placements.

    Args:
        load_E: ndarray of shape (E,).
        num_ranks: W.
        num_replicas: Slots beyond E.
        setting: Nodes, speeds, memory, and what a copy costs.
        routing: Tokens whose copies count; None: load alone.
        steps: Exchanges that are tried.
        seed: Of the random exchanges.

    Returns:
        (expert_P, rank_P), ndarrays of shape (P,), in order of ranks.
    """
    model = _Model(load_E, num_ranks, setting, routing)
    states = [_State(model, *start) for start in _starts(load_E, num_ranks, num_replicas, setting, routing)]
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


def _starts(load_E: Array, num_ranks: int, num_replicas: int, setting: Setting,
            routing: Routing | None) -> list[tuple[Array, Array]]:
    """The planned placements; expert order, too, where it may be used."""
    starts = [eplb_slots(load_E, num_ranks, num_replicas, setting.one_node(), 1)]
    nodes = setting.nodes(num_ranks)
    if nodes > 1 and num_replicas % nodes == 0 and len(load_E) % nodes == 0:
        groups = setting.num_expert_groups
        starts.append(eplb_slots(load_E, num_ranks, num_replicas, setting,
                                 groups if groups % nodes == 0 and len(load_E) % groups == 0 else len(load_E)))
    if routing is not None and len(load_E) <= MOST_EXPERTS and setting.copy_work + setting.node_copy_work > 0:
        pair = coactivation(routing.expert_ids_TK, len(load_E))
        starts += [attracted(load_E, num_ranks, num_replicas, setting, tolerance=t, pair_EE=pair) for t in (0.02, 0.1)]
    return starts


class _Model:
    """What a placement costs."""

    def __init__(self, load_E: Array, num_ranks: int, setting: Setting, routing: Routing | None) -> None:
        self.load_E, self.num_ranks, self.setting = load_E, num_ranks, setting
        self.speed_W = setting.speeds(num_ranks)
        self.node_W = np.arange(num_ranks) // (setting.ranks_per_node or num_ranks)
        self.least = load_E.sum() / self.speed_W.sum()
        self.ids_TK: Array | None = None
        if routing is not None and setting.copy_work + setting.node_copy_work > 0:
            step = -(-len(routing.expert_ids_TK) // _SAMPLE)
            self.ids_TK = routing.expert_ids_TK[step // 2 :: step]
            # a sampled token stands for so many
            scale = len(routing.expert_ids_TK) / len(self.ids_TK)
            self.copy, self.node_copy = setting.copy_work * scale, setting.node_copy_work * scale


class _State:
    """A placement under change: slots in any order."""

    def __init__(self, model: _Model, expert_P: Array, rank_P: Array) -> None:
        self.model, self.expert_P, self.rank_P = model, expert_P.copy(), rank_P.copy()
        self.refresh()

    def copy(self) -> "_State":
        return _State(self.model, self.expert_P, self.rank_P)

    def refresh(self) -> None:
        """Loads, copies and costs from the slots alone."""
        model = self.model
        self.load_P = shared(model.load_E, self.expert_P)
        self.load_W = np.bincount(self.rank_P, weights=self.load_P, minlength=model.num_ranks)
        self.uses_TP: Array | None = None
        if model.ids_TK is not None:
            placed = Placement(device_of_slot_P=np.zeros_like(self.rank_P), expert_of_slot_P=self.expert_P,
                               num_ranks=1, num_experts=len(model.load_E))
            slot_TK = placed.slot_of_choice(model.ids_TK)
            self.uses_TP = np.zeros((len(slot_TK), len(self.rank_P)), dtype=np.float32)
            np.put_along_axis(self.uses_TP, slot_TK, 1.0, axis=1)
        self.recount()

    def recount(self) -> None:
        """Costs after slots changed ranks."""
        model = self.model
        cost = self.load_W / model.speed_W
        if self.uses_TP is not None:
            on_PW = np.zeros((len(self.rank_P), model.num_ranks), dtype=np.float32)
            on_PW[np.arange(len(self.rank_P)), self.rank_P] = 1.0
            self.held_TW = self.uses_TP @ on_PW
            node_TN = np.add.reduceat(self.held_TW, np.flatnonzero(np.diff(model.node_W, prepend=-1)), axis=1)
            self.node_TN = node_TN
            cost = cost + model.copy * (self.held_TW > 0).sum(axis=0)
            cost = cost + model.node_copy * (node_TN > 0).sum(axis=0)[model.node_W]
        self.cost_W = cost
        self.score = (float(cost.max()), float((cost**2).sum()))

    def improve(self) -> bool:
        """Take the best exchange of the busiest rank; False, and nothing changed, if none lowers the score."""
        before, busiest = self.score, int(self.cost_W.argmax())
        own = np.flatnonzero(self.rank_P == busiest)
        for i, j in self._swaps(own, busiest):
            self._swap(i, j)
            if self.score < before:
                return True
            self._swap(i, j)
        return self._move(own, busiest, before) or self._replicate(own, before)

    def _swap(self, i: int, j: int) -> None:
        one, two = self.rank_P[i], self.rank_P[j]
        self.rank_P[i], self.rank_P[j] = two, one
        difference = self.load_P[j] - self.load_P[i]
        self.load_W[one] += difference
        self.load_W[two] -= difference
        self.recount()

    def _swaps(self, own: Array, busiest: int) -> list[tuple[int, int]]:
        """The most promising pairs of a slot of the busiest rank and one elsewhere, by estimated cost."""
        model, others = self.model, np.flatnonzero(self.rank_P != busiest)
        if not len(own) or not len(others):
            return []
        rank_Q = self.rank_P[others]
        change = self.load_P[others][None] - self.load_P[own][:, None]
        here = self.cost_W[busiest] + change / model.speed_W[busiest]
        there = self.cost_W[rank_Q] - change / model.speed_W[rank_Q]
        if self.uses_TP is not None:
            # tokens that a slot alone brings to its rank, and those it would bring to another
            alone_P = np.einsum("tp,tp->p", self.uses_TP, (self.held_TW == 1)[:, self.rank_P])
            gain_Q = self.uses_TP[:, others].T @ (self.held_TW[:, busiest] == 0)
            gain_IW = self.uses_TP[:, own].T @ (self.held_TW == 0).astype(np.float32)
            here = here + model.copy * (gain_Q[None] - alone_P[own][:, None])
            there = there + model.copy * (gain_IW[:, rank_Q] - alone_P[others][None])
        worse = np.maximum(here, there)
        if model.setting.room_bytes is not None:
            worse = np.where(self._fits(own, others, busiest, rank_Q), worse, np.inf)
        few = min(_TRIES if self.uses_TP is not None else 2, worse.size)
        first = np.argpartition(worse, few - 1, axis=None)[:few]
        first = first[np.argsort(worse.ravel()[first], kind="stable")]
        return [(int(own[k // len(others)]), int(others[k % len(others)])) for k in first
                if np.isfinite(worse.ravel()[k])]

    def _fits(self, own: Array, others: Array, busiest: int, rank_Q: Array) -> Array:
        size_P, free_W = self._memory()
        more = size_P[others][None] - size_P[own][:, None]
        return (more <= free_W[busiest]) & (-more <= free_W[rank_Q])

    def _memory(self) -> tuple[Array, Array]:
        """Bytes of each slot, and what each rank has left."""
        bounds = limits(self.model.setting, self.expert_P)
        size_P, room_W = bounds["bytes_P"], bounds["room_bytes_W"]
        if size_P is None or room_W is None:
            return np.zeros(len(self.rank_P)), np.full(self.model.num_ranks, np.inf)
        return size_P, room_W - np.bincount(self.rank_P, weights=size_P, minlength=self.model.num_ranks)

    def _move(self, own: Array, busiest: int, before: tuple[float, float]) -> bool:
        """Where ranks may hold unequally many: the best slot of the busiest to another rank."""
        if not self.model.setting.unequal or not len(own):
            return False
        size_P, free_W = self._memory()
        there = self.cost_W + self.load_P[own][:, None] / self.model.speed_W
        there[:, busiest] = np.inf
        there[size_P[own][:, None] > free_W] = np.inf
        here = self.cost_W[busiest] - self.load_P[own] / self.model.speed_W[busiest]
        worse = np.maximum(there, here[:, None])
        i, rank = np.unravel_index(int(worse.argmin()), worse.shape)
        if not np.isfinite(worse[i, rank]):
            return False
        slot = own[i]
        self.rank_P[slot] = rank
        self.refresh()
        if self.score < before:
            return True
        self.rank_P[slot] = busiest
        self.refresh()
        return False

    def _replicate(self, own: Array, before: tuple[float, float]) -> bool:
        """A redundant slot elsewhere takes over an expert of the busiest rank: the best such change by load."""
        copies_E = np.bincount(self.expert_P, minlength=len(self.model.load_E))
        spare = np.flatnonzero((copies_E[self.expert_P] > 1) & ~np.isin(np.arange(len(self.expert_P)), own))
        if not len(spare):
            return False
        load_E, speed_W, num_ranks = self.model.load_E, self.model.speed_W, self.model.num_ranks
        on_EW = np.zeros((len(load_E), num_ranks))
        np.add.at(on_EW, (self.expert_P, self.rank_P), 1.0)
        best, found = before[0], None
        for e in np.unique(self.expert_P[own]):
            f_Q, rank_Q = self.expert_P[spare], self.rank_P[spare]
            step_e = load_E[e] / (copies_E[e] + 1) - load_E[e] / copies_E[e]
            step_Q = load_E[f_Q] / np.maximum(copies_E[f_Q] - 1, 1) - load_E[f_Q] / copies_E[f_Q]
            load_QW = self.load_W + on_EW[e] * step_e + on_EW[f_Q] * step_Q[:, None]
            load_QW[np.arange(len(spare)), rank_Q] += (load_E[e] / (copies_E[e] + 1)
                                                       - load_E[f_Q] / np.maximum(copies_E[f_Q] - 1, 1))
            worst_Q = np.where(f_Q == e, np.inf, (load_QW / speed_W).max(axis=1))
            if worst_Q.min() < best:
                best, found = float(worst_Q.min()), (int(spare[worst_Q.argmin()]), int(e))
        if found is None:
            return False
        slot, old = found[0], int(self.expert_P[found[0]])
        self.expert_P[slot] = found[1]
        self.refresh()
        if self.score < before and (self._memory()[1] >= 0).all():
            return True
        self.expert_P[slot] = old
        self.refresh()
        return False

    def kick(self, rng: np.random.Generator) -> None:
        """A few random swaps that fit, one of them of the busiest rank."""
        busiest = int(self.cost_W.argmax())
        for number in range(_KICKS):
            i = int(rng.choice(np.flatnonzero(self.rank_P == busiest))) if not number else int(
                rng.integers(len(self.rank_P)))
            j = int(rng.integers(len(self.rank_P)))
            if self.rank_P[i] == self.rank_P[j]:
                continue
            self._swap(i, j)
            if (self._memory()[1] < 0).any():
                self._swap(i, j)


__all__ = ["searched"]
