"""From loads to choices: every token gets top_k different experts, and the loads are met exactly.

Choices are drawn by systematic sampling (Madow 1949): experts in random order, each repeated load times, form a line
of T * k places; token t takes the places t, t + T, t + 2T, ... Since no load exceeds T, no token meets an expert
twice, and the loads hold exactly. Exchanges between tokens then make it chance which experts meet in one. A gate that
limits a token to some groups is sampled in two stages the same way: first which groups, then which experts inside
them. Its loads are those of the distribution as far as the limit allows: a group is never used by more than T tokens.

Shape legend: S sources (devices), T tokens of all sources, K choices, E experts.
"""

from dataclasses import dataclass

import numpy as np

from moesim.errors import ConfigError
from moesim.model import Gate
from moesim.routing.distributions import RoutingSpec, apportion

#: tokens of all sources whose choices are drawn, one by one; more are refused
MAX_SAMPLED_TOKENS = 1 << 20
#: exchanges per choice and token
_SWEEPS = 3


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Routing:
    """Who sends what to whom, before experts have a place.

    Attributes:
        expert_ids_TK: ndarray of shape (T, K), int32: the experts of every token, all sources one after another.
        num_tokens_S: ndarray of shape (S,): tokens of each source.
        num_experts: E.
    """

    expert_ids_TK: np.ndarray
    num_tokens_S: np.ndarray
    num_experts: int

    def part(self, number: int, parts: int) -> "Routing":
        """Every ``parts``-th share of each source's tokens: a micro-batch.

        Args:
            number: Which, from 0.
            parts: How many there are; sources whose tokens do not divide give the first ones more.
        """
        if parts == 1:
            return self
        ends = np.cumsum(self.num_tokens_S)
        first_S = ends - self.num_tokens_S
        begin_S = first_S + self.num_tokens_S * number // parts
        end_S = first_S + self.num_tokens_S * (number + 1) // parts
        rows = np.concatenate([np.arange(b, e) for b, e in zip(begin_S, end_S, strict=True)])
        return Routing(expert_ids_TK=self.expert_ids_TK[rows], num_tokens_S=end_S - begin_S,
                       num_experts=self.num_experts)

    def source_T(self) -> np.ndarray:
        """Source of each token: ndarray of shape (T,)."""
        return np.repeat(np.arange(len(self.num_tokens_S)), self.num_tokens_S)

    def num_tokens_SE(self) -> np.ndarray:
        """Choices of each source for each expert: ndarray of shape (S, E), int64."""
        key = self.source_T()[:, None] * self.num_experts + self.expert_ids_TK
        counts = np.bincount(key.ravel(), minlength=len(self.num_tokens_S) * self.num_experts)
        return counts.reshape(len(self.num_tokens_S), self.num_experts)

    def num_tokens_E(self) -> np.ndarray:
        """Choices of each expert over all sources: ndarray of shape (E,), int64."""
        return np.bincount(self.expert_ids_TK.ravel(), minlength=self.num_experts)


def _systematic(counts_E: np.ndarray, num_tokens: int, rng: np.random.Generator) -> np.ndarray:
    """Choices of shape (num_tokens, k) with these counts; k = counts.sum() / num_tokens, no expert twice a token."""
    order = rng.permutation(len(counts_E))
    line = np.repeat(order, counts_E[order]).astype(np.int32)
    return _mix(np.ascontiguousarray(line.reshape(-1, num_tokens).T), rng)


def _mix(ids_TK: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Let chance decide which experts meet in a token: pairs of tokens exchange a choice where neither meets it twice.

    Exchanges keep every load and every token's number of choices (the swap chain on bipartite graphs with given
    degrees; Rao, Jana and Bandyopadhyay 1996). Without it equal loads leave only E / k different sets of experts.
    """
    tokens, top_k = ids_TK.shape
    ids_TK = ids_TK[rng.permutation(tokens)]
    half = tokens // 2
    one, two = ids_TK[:half], ids_TK[tokens - half :]
    for sweep in range(_SWEEPS * top_k):
        # the first half meets the second at a random distance: every pair may meet, and rows stay in memory order
        if half > 1:
            two[:] = np.roll(two, int(rng.integers(1, half)), axis=0)
        give, take = sweep % top_k, int(rng.integers(top_k))
        mine, theirs = one[:, give].copy(), two[:, take].copy()
        swap = ~((one == theirs[:, None]).any(axis=1) | (two == mine[:, None]).any(axis=1))
        one[:, give] = np.where(swap, theirs, mine)
        two[:, take] = np.where(swap, mine, theirs)
    return ids_TK[rng.permutation(tokens)]


def _limited(loads_E: np.ndarray, left_E: np.ndarray, top_k: int, num_tokens: int, gate: Gate,
             rng: np.random.Generator) -> np.ndarray:
    groups, kept = gate.num_expert_groups, min(gate.num_limited_groups, top_k)
    loads_GP, left_GP = loads_E.reshape(groups, -1), left_E.reshape(groups, -1)
    per_group = loads_GP.shape[1]
    slots_G = _apportion_left(loads_GP.sum(axis=1), np.asarray(left_GP.any(axis=1)), num_tokens * kept, num_tokens)
    # in random order, since the first groups of a token may give it one expert more than the last
    group_ids_TM = rng.permuted(_systematic(slots_G, num_tokens, rng), axis=1)
    ids_TK = np.empty((num_tokens, top_k), dtype=np.int64)
    # a token takes top_k // kept experts of each of its groups, and one more of its first groups
    share = [top_k // kept + (m < top_k % kept) for m in range(kept)]
    column = np.concatenate([[0], np.cumsum(share)])
    for size in set(share):
        slots = [m for m in range(kept) if share[m] == size]
        for g in range(groups):
            rows, which = np.nonzero(group_ids_TM[:, slots] == g)
            if not len(rows):
                continue
            counts_P = _apportion_left(loads_GP[g], left_GP[g], len(rows) * size, len(rows))
            chosen = _systematic(counts_P, len(rows), rng) + g * per_group
            first = column[np.array(slots)[which]]
            ids_TK[rows[:, None], first[:, None] + np.arange(size)] = chosen
    return ids_TK


def _apportion_left(load_X: np.ndarray, left_X: np.ndarray, total: int, cap: int) -> np.ndarray:
    """`apportion` among those that are left."""
    counts = np.zeros(len(load_X), dtype=np.int64)
    counts[left_X] = apportion(load_X[left_X] + 1e-9, total, cap)
    return counts


def route(
    spec: RoutingSpec,
    gate: Gate,
    *,
    num_experts: int,
    top_k: int,
    num_tokens_S: np.ndarray,
    seed: int,
    left_E: np.ndarray | None = None,
) -> Routing:
    """Draw the experts of every token.

    A product-key gate finds the best k of all experts, so its tokens choose like a flat gate's: any top_k may meet.

    Args:
        spec: Distribution of load.
        gate: Its groups limit which experts a token may combine.
        num_experts: E.
        top_k: K.
        num_tokens_S: ndarray of shape (S,): tokens of each source, at least one in all.
        seed: Same seed, same choices.
        left_E: ndarray of shape (E,), bool: experts that are not pruned; None for all. The others get no token.

    Raises:
        ConfigError: No tokens, or more tokens than are sampled in one call (`MAX_SAMPLED_TOKENS`).
    """
    num_tokens_S = np.asarray(num_tokens_S, dtype=np.int64)
    total = int(num_tokens_S.sum())
    if not 1 <= total <= MAX_SAMPLED_TOKENS:
        raise ConfigError(f"workload: expected 1 to {MAX_SAMPLED_TOKENS} tokens over all devices, got {total}")
    rng = np.random.default_rng([seed, num_experts, top_k])
    loads = spec.loads(num_experts, top_k, total, rng, left_E)
    limited = gate.num_expert_groups > 1
    left = np.ones(num_experts, dtype=bool) if left_E is None else left_E
    ids = _limited(loads, left, top_k, total, gate, rng) if limited else _systematic(loads, total, rng)
    return Routing(expert_ids_TK=ids.astype(np.int32), num_tokens_S=num_tokens_S, num_experts=num_experts)
