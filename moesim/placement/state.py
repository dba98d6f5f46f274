"""A placement that changes during a search, its cost in a model of load and traffic, and the
changes that lower this cost.

The cost of a rank is its load over its speed, plus the copies of tokens that it receives and its
part of the copies that its node receives, in the same unit (`Setting.copy_work`,
`Setting.node_copy_work`). Without a routing it is the load alone. The number of copies is estimated
as rows times the copies per choice among sampled tokens, a ratio that does not depend on the size
of the sample.

Shape legend: P slots, E experts, W ranks, N nodes, T sampled tokens, I slots of the busiest rank, Q
the others.
"""

from copy import copy

import numpy as np

from moesim.placement.eplb import limits
from moesim.placement.packing import shared
from moesim.placement.setting import Setting
from moesim.placement.slots import Placement
from moesim.routing import Routing

Array = np.ndarray
_SAMPLE, _KICKS, _TRIES = 1024, 3, 4
#: number of pairs, the best by load, whose copies are counted
_PAIRS = 64


class LoadModel:
    """The cost model of a placement."""

    def __init__(
        self, load_E: Array, num_ranks: int, setting: Setting, routing: Routing | None
    ) -> None:
        self.load_E, self.num_ranks, self.setting = load_E, num_ranks, setting
        self.speed_W = setting.speeds(num_ranks)
        self.node_W = np.arange(num_ranks) // (setting.ranks_per_node or num_ranks)
        self.least = load_E.sum() / self.speed_W.sum()
        self.ids_TK: Array | None = None
        if routing is not None and setting.copy_work + setting.node_copy_work > 0:
            # an even sample of tokens; its ratio of copies to choices scales up to all rows
            step = -(-len(routing.expert_ids_TK) // _SAMPLE)
            self.ids_TK = routing.expert_ids_TK[step // 2 :: step]
            self.rows_E = routing.num_tokens_E().astype(float)
            self.copy, self.node_copy = setting.copy_work, setting.node_copy_work


class State:
    """A placement that changes, with its slots in any order."""

    def __init__(self, model: LoadModel, expert_P: Array, rank_P: Array) -> None:
        self.model, self.expert_P, self.rank_P = model, expert_P.copy(), rank_P.copy()
        self.refresh()

    def copy(self) -> "State":
        """Return a copy of the state with its own arrays for all that a swap changes in place."""
        other = copy(self)
        for name in ("expert_P", "rank_P", "load_W", "held_WT", "copies_W", "rows_W", "chosen_W"):
            if hasattr(self, name):
                setattr(other, name, getattr(self, name).copy())
        return other

    def refresh(self) -> None:
        """Compute loads, copies and costs from the slots alone."""
        model = self.model
        self.load_P = shared(model.load_E, self.expert_P)
        self.load_W = np.bincount(self.rank_P, weights=self.load_P, minlength=model.num_ranks)
        self.uses_PT: Array | None = None
        if model.ids_TK is not None:
            placed = Placement(
                rank_of_slot_P=np.zeros_like(self.rank_P),
                expert_of_slot_P=self.expert_P,
                num_ranks=1,
                num_experts=len(model.load_E),
            )
            slot_TK = placed.slot_of_choice(model.ids_TK)
            self.uses_PT = np.zeros((len(self.rank_P), len(slot_TK)), dtype=np.int16)
            self.uses_PT[slot_TK, np.arange(len(slot_TK))[:, None]] = 1
            self.held_WT = np.zeros((model.num_ranks, len(slot_TK)), dtype=np.int16)
            for slot, rank in enumerate(self.rank_P.tolist()):
                self.held_WT[rank] += self.uses_PT[slot]
            self.copies_W = np.count_nonzero(self.held_WT, axis=1)
            self.rows_P, self.chosen_P = (
                shared(model.rows_E, self.expert_P),
                self.uses_PT.sum(axis=1),
            )
            self.rows_W = np.bincount(self.rank_P, weights=self.rows_P, minlength=model.num_ranks)
            self.chosen_W = np.bincount(
                self.rank_P, weights=self.chosen_P, minlength=model.num_ranks
            )
        self.recount()

    def recount(self) -> None:
        """Compute costs from loads and copies."""
        model = self.model
        cost = self.load_W / model.speed_W
        if self.uses_PT is not None:
            cost = cost + model.copy * self.rows_W * self.copies_W / np.maximum(self.chosen_W, 1)
            if model.node_copy > 0:
                first = np.flatnonzero(np.diff(model.node_W, prepend=-1))
                rows_N, chosen_N = (
                    np.add.reduceat(self.rows_W, first),
                    np.add.reduceat(self.chosen_W, first),
                )
                copies_N = np.count_nonzero(np.add.reduceat(self.held_WT, first, axis=0), axis=1)
                cost = (
                    cost
                    + (model.node_copy * rows_N * copies_N / np.maximum(chosen_N, 1))[model.node_W]
                )
        self.cost_W = cost
        self.score = (float(cost.max()), float((cost**2).sum()))

    def improve(self, *, swaps_only: bool = False) -> bool:
        """Make the best change of the busiest rank; return False and change nothing if none lowers
        the score.
        """
        before, busiest = self.score, int(self.cost_W.argmax())
        own = np.flatnonzero(self.rank_P == busiest)
        for i, j in self._swaps(own, busiest):
            self._swap(i, j)
            # keep a swap only if the score falls; otherwise swap back
            if self.score < before:
                return True
            self._swap(i, j)
        return not swaps_only and (self._move(own, busiest, before) or self._replicate(own, before))

    def _swap(self, i: int, j: int) -> None:
        one, two = self.rank_P[i], self.rank_P[j]
        self.rank_P[i], self.rank_P[j] = two, one
        difference = self.load_P[j] - self.load_P[i]
        self.load_W[one] += difference
        self.load_W[two] -= difference
        if self.uses_PT is not None:
            change_T = self.uses_PT[j] - self.uses_PT[i]
            self.held_WT[one] += change_T
            self.held_WT[two] -= change_T
            for value_W, value_P in ((self.rows_W, self.rows_P), (self.chosen_W, self.chosen_P)):
                value_W[one] += value_P[j] - value_P[i]
                value_W[two] -= value_P[j] - value_P[i]
            for rank in (one, two):
                self.copies_W[rank] = np.count_nonzero(self.held_WT[rank])
        self.recount()

    def _swaps(self, own: Array, busiest: int) -> list[tuple[int, int]]:
        """Return the most promising pairs of a slot on the busiest rank and a slot on another, by
        estimated cost.
        """
        model, others = self.model, np.flatnonzero(self.rank_P != busiest)
        if not len(own) or not len(others):
            return []
        rank_Q = self.rank_P[others]
        change = self.load_P[others][None] - self.load_P[own][:, None]
        # estimate the cost of both ranks from the change in load alone, a cheap way to rank all
        # pairs
        worse = np.maximum(
            self.cost_W[busiest] + change / model.speed_W[busiest],
            self.cost_W[rank_Q] - change / model.speed_W[rank_Q],
        )
        if model.setting.room_bytes is not None:
            worse = np.where(self._fits(own, others, busiest, rank_Q), worse, np.inf)
        if self.uses_PT is None:
            pairs = _least(worse, 2)
        else:
            pairs = _least(worse, _PAIRS)
            i_X, j_X = own[pairs // len(others)], others[pairs % len(others)]
            pairs = pairs[_least(self._cost_of_swaps(i_X, j_X), _TRIES)]
        return [(int(own[k // len(others)]), int(others[k % len(others)])) for k in pairs]

    def _cost_of_swaps(self, i_X: Array, j_X: Array) -> Array:
        """Return the cost of the costlier rank after each of X swaps, ignoring nodes: ndarray of
        shape (X,).
        """
        model, uses_PT, held_WT = self.model, self.uses_PT, self.held_WT
        assert uses_PT is not None
        cost_X = np.zeros(len(i_X))
        for leaves, comes in ((i_X, j_X), (j_X, i_X)):
            rank = self.rank_P[leaves]
            held, out, into = held_WT[rank], uses_PT[leaves], uses_PT[comes]
            copies = np.count_nonzero(held - out + into, axis=1)
            rows = self.rows_W[rank] + self.rows_P[comes] - self.rows_P[leaves]
            chosen = self.chosen_W[rank] + self.chosen_P[comes] - self.chosen_P[leaves]
            load = (self.load_W[rank] + self.load_P[comes] - self.load_P[leaves]) / model.speed_W[
                rank
            ]
            now = self.rows_W[rank] * self.copies_W[rank] / np.maximum(self.chosen_W[rank], 1)
            # the part of the cost that a swap leaves unchanged: the copies into the node
            rest = self.cost_W[rank] - self.load_W[rank] / model.speed_W[rank] - model.copy * now
            cost_X = np.maximum(
                cost_X, rest + load + model.copy * rows * copies / np.maximum(chosen, 1)
            )
        return cost_X

    def _fits(self, own: Array, others: Array, busiest: int, rank_Q: Array) -> Array:
        size_P, free_W = self._memory()
        more = size_P[others][None] - size_P[own][:, None]
        return (more <= free_W[busiest]) & (-more <= free_W[rank_Q])

    def _memory(self) -> tuple[Array, Array]:
        """Return the bytes of each slot, and the bytes that each rank has left."""
        bounds = limits(self.model.setting, self.expert_P)
        size_P, room_W = bounds["bytes_P"], bounds["room_bytes_W"]
        if size_P is None or room_W is None:
            return np.zeros(len(self.rank_P)), np.full(self.model.num_ranks, np.inf)
        return size_P, room_W - np.bincount(
            self.rank_P, weights=size_P, minlength=self.model.num_ranks
        )

    def _move(self, own: Array, busiest: int, before: tuple[float, float]) -> bool:
        """Move the best slot of the busiest rank to another rank, if ranks may hold different
        numbers of slots.
        """
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
        """Let a redundant slot on another rank take over an expert of the busiest rank, the best
        such change by load.
        """
        copies_E = np.bincount(self.expert_P, minlength=len(self.model.load_E))
        spare = np.flatnonzero(
            (copies_E[self.expert_P] > 1) & ~np.isin(np.arange(len(self.expert_P)), own)
        )
        if not len(spare):
            return False
        load_E, speed_W, num_ranks = self.model.load_E, self.model.speed_W, self.model.num_ranks
        on_EW = np.zeros((len(load_E), num_ranks))
        np.add.at(on_EW, (self.expert_P, self.rank_P), 1.0)
        best, found = before[0], None
        for e in np.unique(self.expert_P[own]):
            f_Q, rank_Q = self.expert_P[spare], self.rank_P[spare]
            # one more copy lowers the load of every copy of e; one copy less raises that of every
            # copy of f
            step_e = load_E[e] / (copies_E[e] + 1) - load_E[e] / copies_E[e]
            step_Q = load_E[f_Q] / np.maximum(copies_E[f_Q] - 1, 1) - load_E[f_Q] / copies_E[f_Q]
            load_QW = self.load_W + on_EW[e] * step_e + on_EW[f_Q] * step_Q[:, None]
            load_QW[np.arange(len(spare)), rank_Q] += load_E[e] / (copies_E[e] + 1) - load_E[
                f_Q
            ] / np.maximum(copies_E[f_Q] - 1, 1)
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
        """Make a few random swaps that fit, one of them from the busiest rank."""
        busiest = int(self.cost_W.argmax())
        for number in range(_KICKS):
            i = (
                int(rng.choice(np.flatnonzero(self.rank_P == busiest)))
                if not number
                else int(rng.integers(len(self.rank_P)))
            )
            j = int(rng.integers(len(self.rank_P)))
            if self.rank_P[i] == self.rank_P[j]:
                continue
            self._swap(i, j)
            if (self._memory()[1] < 0).any():
                self._swap(i, j)


def _least(value: Array, count: int) -> Array:
    """Return the indices of the smallest finite values of a flattened array, in ascending order of
    value.
    """
    flat = value.ravel()
    few = min(count, len(flat))
    first = np.argpartition(flat, few - 1)[:few]
    first = first[np.isfinite(flat[first])]
    return first[np.argsort(flat[first], kind="stable")]
