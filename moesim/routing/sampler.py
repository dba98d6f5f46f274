"""Turn loads into choices: every token gets top_k different experts, and the loads are met exactly.

`moesim.routing.systematic` draws the choices, and `moesim.routing.selection` applies the selection
rule of a gate to the loads. A gate that shares decisions between tokens draws one decision for each
run of ``share_tokens`` tokens of a source. A trace is not drawn: its tokens are taken in order,
from a position that the seed determines.

Shape legend: S sources (devices), T tokens of all sources, K choices, E experts, N domains.
"""

from dataclasses import dataclass

import numpy as np

from moesim.errors import ConfigError
from moesim.limits import check_request
from moesim.model.gate import Gate
from moesim.routing.apportion import apportion
from moesim.routing.distributions import RoutingSpec
from moesim.routing.selection import selected_weights
from moesim.routing.systematic import limited, systematic
from moesim.routing.trace import open_trace
from moesim.routing.workloads import source_weights

#: largest number of tokens over all sources, since the choices of each are drawn; more are refused
MAX_SAMPLED_TOKENS = 1 << 22
#: bytes of a token's choice while it is drawn and counted, as measured
CHOICE_BYTES = 24.0
_COUNT_BYTES = 8.0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Routing:
    """The experts that every token chooses, before experts are placed.

    Attributes:
        expert_ids_TK: ndarray of shape (T, K), int32: experts of every token, source by source.
        num_tokens_S: ndarray of shape (S,): number of tokens of each source.
        num_experts: Number of experts E.
        num_rerouted: Number of choices that went to another expert because theirs was full; see
            `moesim.routing.capacity`.
        domain_S: ndarray of shape (S,): data domain that each source serves; None if there is only
            one.
    """

    expert_ids_TK: np.ndarray
    num_tokens_S: np.ndarray
    num_experts: int
    num_rerouted: int = 0
    domain_S: np.ndarray | None = None

    def part(self, number: int, parts: int) -> "Routing":
        """Return one of ``parts`` equal shares of the tokens of each source: a micro-batch.

        Args:
            number: Index of the micro-batch, from 0.
            parts: Number of micro-batches; a source whose tokens do not divide gives more to the
                first ones.
        """
        if parts == 1:
            return self
        ends = np.cumsum(self.num_tokens_S)
        first_S = ends - self.num_tokens_S
        begin_S = first_S + self.num_tokens_S * number // parts
        end_S = first_S + self.num_tokens_S * (number + 1) // parts
        rows = np.concatenate([np.arange(b, e) for b, e in zip(begin_S, end_S, strict=True)])
        return Routing(
            expert_ids_TK=self.expert_ids_TK[rows],
            num_tokens_S=end_S - begin_S,
            num_experts=self.num_experts,
            domain_S=self.domain_S,
        )

    def source_T(self) -> np.ndarray:
        """Return the source of each token: ndarray of shape (T,)."""
        return np.repeat(np.arange(len(self.num_tokens_S)), self.num_tokens_S)

    def num_tokens_SE(self) -> np.ndarray:
        """Return the number of choices of each source for each expert: ndarray of shape (S, E),
        int64.
        """
        sources = len(self.num_tokens_S)
        check_request(
            f"counts of {sources} sources and {self.num_experts} experts",
            memory_bytes=2.0 * _COUNT_BYTES * sources * self.num_experts,
            advice="fewer experts or devices",
        )
        key = self.source_T()[:, None] * self.num_experts + self.expert_ids_TK
        counts = np.bincount(key.ravel(), minlength=sources * self.num_experts)
        return counts.reshape(sources, self.num_experts)

    def num_tokens_E(self) -> np.ndarray:
        """Return the number of choices of each expert over all sources: ndarray of shape (E,),
        int64.
        """
        return np.bincount(self.expert_ids_TK.ravel(), minlength=self.num_experts)


def route(
    spec: RoutingSpec,
    gate: Gate,
    *,
    num_experts: int,
    top_k: int,
    num_tokens_S: np.ndarray,
    seed: int,
    left_E: np.ndarray | None = None,
    batch_tokens: int | None = None,
) -> Routing:
    """Draw the experts of every token.

    A product-key gate finds the best k of all experts, so its tokens choose as with a flat gate:
    any top_k experts may occur together.

    Args:
        spec: The distribution of load.
        gate: The gate; its groups limit which experts a token may combine, and its selection and
            balancing shape the loads.
        num_experts: Number of experts E.
        top_k: Number of choices per token K.
        num_tokens_S: ndarray of shape (S,): number of tokens of each source, at least one over all
            sources.
        seed: Seed of the choices; the same seed gives the same choices.
        left_E: ndarray of shape (E,), bool: whether an expert is not pruned; None if no expert is
            pruned. Pruned experts get no token.
        batch_tokens: Number of tokens of the batch of which these are a sample, since the skew of
            some distributions depends on it; by default they are the batch.

    Raises:
        ConfigError: There are no tokens, there are more than one call samples
            (`MAX_SAMPLED_TOKENS`), or the trace belongs to another model.
    """
    num_tokens_S = np.asarray(num_tokens_S, dtype=np.int64)
    total = int(num_tokens_S.sum())
    if not 1 <= total <= MAX_SAMPLED_TOKENS:
        raise ConfigError(
            f"workload: expected 1 to {MAX_SAMPLED_TOKENS} tokens over all devices, got {total}"
        )
    check_request(
        f"workload: {total} tokens of {top_k} choices",
        memory_bytes=CHOICE_BYTES * total * top_k,
        advice="fewer tokens or a smaller top_k",
    )
    rng = np.random.default_rng([seed, num_experts, top_k])
    left = np.ones(num_experts, dtype=bool) if left_E is None else left_E
    num_tokens_S = tokens_of_sources(spec, num_tokens_S)
    trace = open_trace(spec.path) if spec.kind == "trace" else None
    if trace is not None and trace.kind == "ids":
        ids = trace.window(spec.layer, total, seed)
        _check_trace(spec, ids, num_experts, top_k, gate, left)
        return Routing(expert_ids_TK=ids, num_tokens_S=num_tokens_S, num_experts=num_experts)
    weight_NE = (
        spec.weights_NE(num_experts, top_k, batch_tokens or total, rng)
        if trace is None
        else trace.weights_NE(spec.layer, num_experts)
    )
    weight_NE = selected_weights(weight_NE, gate, rng)
    decisions_S = -(-num_tokens_S // gate.share_tokens)
    domain_S = np.arange(len(num_tokens_S)) % len(weight_NE)
    domain_T = np.repeat(domain_S, decisions_S)
    ids = np.empty((len(domain_T), top_k), dtype=np.int32)
    for domain, weight_E in enumerate(weight_NE):
        rows = np.flatnonzero(domain_T == domain) if len(weight_NE) > 1 else slice(None)
        count = len(domain_T[rows])
        if count:
            loads = spec.spread(weight_E, top_k, count, left_E)
            ids[rows] = (
                limited(loads, left, top_k, count, gate, rng)
                if gate.num_expert_groups > 1
                else systematic(loads, count, rng)
            )
    if gate.share_tokens > 1:
        ids = np.repeat(ids, _run_lengths(num_tokens_S, decisions_S, gate.share_tokens), axis=0)
    return Routing(
        expert_ids_TK=ids,
        num_tokens_S=num_tokens_S,
        num_experts=num_experts,
        domain_S=domain_S if len(weight_NE) > 1 else None,
    )


def sample_counts(
    spec: RoutingSpec,
    gate: Gate,
    *,
    num_experts: int,
    top_k: int,
    num_tokens: int,
    seed: int,
    left_E: np.ndarray | None = None,
) -> np.ndarray:
    """Return the number of choices of each expert without drawing which tokens make them, for a
    gate whose groups and sharing do not change the counts.

    The arguments are those of `route`, for ``num_tokens`` tokens.

    Returns:
        ndarray of shape (E,), int64: counts that sum to T x K; for one source without groups they
        equal the counts of `route`.
    """
    if spec.kind == "trace" or gate.num_expert_groups > 1 or spec.num_domains > 1:
        return route(
            spec,
            gate,
            num_experts=num_experts,
            top_k=top_k,
            num_tokens_S=np.array([num_tokens]),
            seed=seed,
            left_E=left_E,
        ).num_tokens_E()
    rng = np.random.default_rng([seed, num_experts, top_k])
    weight_NE = selected_weights(spec.weights_NE(num_experts, top_k, num_tokens, rng), gate, rng)
    return spec.spread(weight_NE[0], top_k, num_tokens, left_E)


def tokens_of_sources(spec: RoutingSpec, num_tokens_S: np.ndarray) -> np.ndarray:
    """Return the number of tokens of each source: unchanged, except for a workload whose sources
    differ.
    """
    if spec.kind != "w4" or len(num_tokens_S) == 1:
        return num_tokens_S
    total = int(num_tokens_S.sum())
    return apportion(source_weights(spec.kind, len(num_tokens_S)), total, total)


def _run_lengths(num_tokens_S: np.ndarray, decisions_S: np.ndarray, share: int) -> np.ndarray:
    """Return the number of tokens that share each decision: ``share``, and the remainder for the
    last decision of a source.
    """
    lengths = np.full(int(decisions_S.sum()), share, dtype=np.int64)
    last = np.cumsum(decisions_S)[decisions_S > 0] - 1
    lengths[last] -= (decisions_S * share - num_tokens_S)[decisions_S > 0]
    return lengths


def _check_trace(
    spec: RoutingSpec,
    ids_TK: np.ndarray,
    num_experts: int,
    top_k: int,
    gate: Gate,
    left_E: np.ndarray,
) -> None:
    """Raise an error if the trace belongs to a different layer."""
    if ids_TK.shape[1] != top_k:
        raise ConfigError(
            f"routing: {spec}: expected {top_k} experts a token (layer.top_k), got "
            f"{ids_TK.shape[1]}"
        )
    if ids_TK.max() >= num_experts:
        raise ConfigError(
            f"routing: {spec}: expected expert ids below layer.num_experts = {num_experts}, "
            f"got {ids_TK.max()}"
        )
    if not left_E[ids_TK].all():
        raise ConfigError(
            f"routing: {spec}: expected experts that are not pruned, got "
            f"{ids_TK[~left_E[ids_TK]][0]}"
        )
    if gate.num_limited_groups < gate.num_expert_groups:
        groups = np.sort(ids_TK // (num_experts // gate.num_expert_groups), axis=1)
        used = 1 + (np.diff(groups, axis=1) > 0).sum(axis=1)
        if used.max() > gate.num_limited_groups:
            raise ConfigError(
                f"routing: {spec}: expected tokens in at most {gate.num_limited_groups} groups "
                f"(layer.gate), token {used.argmax()} uses {used.max()}"
            )
