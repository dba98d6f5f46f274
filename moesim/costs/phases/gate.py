"""Price the gate: the pipeline that decides where tokens go, before any of them leaves.

FLOPs per token are 2 H E for flat and group-limited gates, and 2 H (G + M E / G) for a two-level
gate with G groups of which M are kept (Shazeer et al. 2017, arXiv 1701.06538, appendix B). A batch
of T tokens reads H E weights of a flat gate and H (G + E / G x groups touched) of a two-level gate,
so a batch that touches all groups saves no weight bytes, only FLOPs and logits. A product-key gate
with n queries of width Q takes 2 n Q sqrt(E) FLOPs for both sets of half-width keys and 2 H n Q for
the queries; it reads Q sqrt(E) and H n Q weights, moves 8 n sqrt(E) bytes of float32 logits each
way, and sums k'^2 pairs, k' = top_k / n (Lample et al. 2019, arXiv 1907.05242, section 3.1; PEER,
He 2024, arXiv 2407.04153). A low-rank gate of rank R takes 2 R (H + E) FLOPs and reads R (H + E)
weights.

Shape legend: D devices.
"""

import math
from functools import lru_cache

import numpy as np

from moesim.costs.devices.primitives import Kernels
from moesim.costs.load import Load
from moesim.costs.phase import PhaseCost, joined, sequence
from moesim.costs.tiles import heuristic_tile
from moesim.costs.work import GemmSpec
from moesim.errors import UnknownNameError
from moesim.model import MoELayer
from moesim.model.gate_kinds import gate_kind
from moesim.model.precision import BYTES_PER_ELEMENT

Array = np.ndarray
_LOGIT_BYTES = 4.0
#: passes over the logits that draw noise and add it, and rounds of Sinkhorn, each over rows and
#: columns (assumed)
_NOISE_PASSES, _SINKHORN_ROUNDS = 2.0, 8


def price_gate(kernels: Kernels, layer: MoELayer, num_tokens_D: Array) -> PhaseCost:
    """Price the gate on every device.

    ``flat`` runs a score GEMM, then a fused softmax and top-k.

    ``group_limited`` computes the same logits, then group scores (the two best of each group), the
    best groups, and top-k with the others masked: one more kernel over all logits.

    ``two_level`` runs a GEMM over groups, picks the top groups, sorts tokens by group, runs a
    grouped GEMM over the kept groups' experts (tokens gathered, logits scattered back), and picks
    the top-k of the kept logits. Which groups a batch touches is random. With local routers the
    fine level runs on the groups' devices, each with its share of the groups and of all devices'
    tokens.

    ``product_key`` runs a GEMM to queries, a GEMM of all heads' half queries with each set of keys,
    top-k of both, and top-k of the pairs' sums; where top_k is not a multiple of the heads, it then
    picks the best of what all heads found.

    ``low_rank`` runs a GEMM to queries and a GEMM of queries with all keys, then what ``flat``
    does.

    Other selections than plain top-k: noise is drawn and added in two passes over the logits, with
    one scale per expert; ``sinkhorn`` normalizes rows and columns eight times (assumed);
    ``expert_choice`` is a top-k of tokens for each expert; ``hash`` looks up each token's experts.
    A bias or a temperature is part of the kernels. A gate that shares decisions runs on the first
    token of each run, and its time is spread over the layers that share it.

    Args:
        kernels: Primitives of the device.
        layer: The layer, for its sizes and its gate.
        num_tokens_D: ndarray of shape (D,): tokens each device scores.

    Returns:
        PhaseCost of shape (D,).
    """
    gate, tokens = layer.gate, np.asarray(num_tokens_D, dtype=np.int64)
    if gate.share_tokens == gate.share_layers == 1:
        return _decide(kernels, layer, tokens)
    # the first token of each run decides: the mean of a run would read every token, which is most
    # of what a small gate costs
    cost = _decide(kernels, layer, -(-tokens // gate.share_tokens))
    return PhaseCost(
        compute_s_D=cost.compute_s_D / gate.share_layers,
        memory_s_D=cost.memory_s_D / gate.share_layers,
        latency_s_D=cost.latency_s_D / gate.share_layers,
    )


def _decide(kernels: Kernels, layer: MoELayer, tokens: Array) -> PhaseCost:
    """Price one decision for each of ``tokens``."""
    price = gate_kind(layer.gate.kind).price
    if isinstance(price, str):
        if price not in PRICES:
            raise UnknownNameError(f"price of gate {layer.gate.kind}", price, PRICES)
        price = PRICES[price]
    return price(kernels, layer, tokens)


def _all_logits(kernels: Kernels, layer: MoELayer, tokens: Array) -> PhaseCost:
    """Price every expert's score, then a selection; with groups, among the experts of
    those kept.
    """
    gate, experts = layer.gate, layer.num_experts
    if gate.selection == "hash":
        return sequence(
            kernels.gather(tokens * (4.0 * layer.top_k), 4.0 * layer.top_k),
            kernels.launches(1.0 * (tokens > 0)),
        )
    if gate.kind == "low_rank":
        element = BYTES_PER_ELEMENT[gate.precision]
        phases = [
            _scores(kernels, layer, tokens[:, None], gate.query_size, output_bytes=element),
            _scores(kernels, layer, tokens[:, None], experts, depth=gate.query_size),
            kernels.launches(1.0 * (tokens > 0)),
        ]
    else:
        phases = [_scores(kernels, layer, tokens[:, None], experts)]
    if gate.selection == "expert_choice":
        phases += _expert_choice(kernels, layer, tokens)
    else:
        phases += [
            *_beside(kernels, layer, tokens * float(experts)),
            kernels.top_k(tokens, experts, layer.top_k),
        ]
    phases.append(kernels.launches(2.0 * (tokens > 0)))
    if gate_kind(gate.kind).grouped:
        groups = gate.num_expert_groups
        phases.append(
            kernels.limit_groups(tokens, groups, experts // groups, gate.num_limited_groups)
        )
    return sequence(*phases)


def _beside(kernels: Kernels, layer: MoELayer, elements_D: Array) -> list[PhaseCost]:
    """Price what a selection does with the logits before their top-k."""
    passes = {"noisy_top_k": _NOISE_PASSES, "sinkhorn": 2.0 * _SINKHORN_ROUNDS}.get(
        layer.gate.selection, 0.0
    )
    return [kernels.weighted_logits(elements_D, passes)] if passes else []


def _expert_choice(kernels: Kernels, layer: MoELayer, tokens_D: Array) -> list[PhaseCost]:
    """Price a softmax over experts, then each expert's best tokens: as many as give a token top_k
    experts on average.
    """
    takes_D = -(-tokens_D * layer.top_k // layer.num_experts)
    experts_D = np.full(len(tokens_D), layer.num_experts)
    each = [
        kernels.top_k(
            experts_D[d : d + 1] * (tokens > 0),
            max(int(tokens), 1),
            max(int(takes), 1),
            scored=False,
        )
        for d, (tokens, takes) in enumerate(zip(tokens_D, takes_D, strict=True))
    ]
    best = joined(each)
    return [kernels.weighted_logits(tokens_D * float(layer.num_experts), 1.0), best]


def _two_level(kernels: Kernels, layer: MoELayer, tokens: Array) -> PhaseCost:
    """Price the groups, then the experts of those kept, on the token's device or, with local
    routers, on the devices of the groups.
    """
    gate = layer.gate
    groups, kept = gate.num_expert_groups, gate.num_limited_groups
    per_group = layer.num_experts // groups
    coarse = [
        _scores(kernels, layer, tokens[:, None], groups),
        *_beside(kernels, layer, tokens * float(groups)),
        kernels.top_k(tokens, groups, kept),
    ]
    if gate.local_routers:
        fine_DG = _by_chance(np.full(1, tokens.sum()), groups, kept)
        fine_DG = np.pad(fine_DG[0], (0, -groups % len(tokens))).reshape(-1, len(tokens)).T
        here = fine_DG.sum(axis=1)
        select = kernels.top_k(
            here, per_group, min(layer.top_k // min(kept, layer.top_k), per_group)
        )
    else:
        fine_DG, here = _by_chance(tokens, groups, kept), tokens * kept
        select = kernels.top_k(tokens, kept * per_group, layer.top_k)
    return sequence(
        *coarse,
        kernels.align(here, groups),
        _scores(kernels, layer, fine_DG, per_group, routed=True),
        *_beside(kernels, layer, here * float(per_group)),
        select,
        kernels.launches(6.0 * (tokens > 0)),
    )


def _by_chance(tokens_D: Array, groups: int, kept: int) -> Array:
    """Return the rows of each group when every token keeps some groups at random: quantiles of the
    binomial distribution that sum to all rows.

    Args:
        tokens_D: ndarray of shape (D,): tokens of each device.
        groups: Number of groups, G.
        kept: Number of groups that a token keeps.

    Returns:
        ndarray of shape (D, G), int64, ascending.
    """
    rows = {int(tokens): _quantiles(int(tokens), groups, kept) for tokens in np.unique(tokens_D)}
    return np.stack([rows[int(tokens)] for tokens in tokens_D])


@lru_cache(maxsize=4096)
def _quantiles(tokens: int, groups: int, kept: int) -> Array:
    """Return the rows of each group for one number of tokens: ndarray of shape (G,)."""
    share, total = kept / groups, tokens * kept
    if kept == groups or not tokens:
        return np.full(groups, tokens, dtype=np.int64)
    # only counts within eight standard deviations have a probability that matters
    spread = 8.0 * math.sqrt(total / groups) + 8.0
    count = np.arange(
        max(int(total / groups - spread), 0), min(int(total / groups + spread), tokens) + 1
    )
    ways = [
        math.lgamma(tokens + 1) - math.lgamma(n + 1) - math.lgamma(tokens - n + 1)
        for n in count.tolist()
    ]
    below = np.cumsum(
        np.exp(ways + count * math.log(share) + (tokens - count) * math.log1p(-share))
    )
    found = count[
        np.minimum(np.searchsorted(below, (np.arange(groups) + 0.5) / groups), len(count) - 1)
    ]
    # what rounding left over goes to, or comes from, the fullest groups, so that no empty group is
    # touched
    left, at = total - int(found.sum()), groups - 1
    while left:
        step = int(np.clip(np.sign(left) * -(-abs(left) // groups), -found[at], tokens - found[at]))
        found[at] += step
        left -= step
        at = at - 1 if at else groups - 1
    return np.sort(found)


def _product_key(kernels: Kernels, layer: MoELayer, tokens_D: Array) -> PhaseCost:
    """Price queries, half scores, best halves and best pairs."""
    gate, keys = layer.gate, math.isqrt(layer.num_experts)
    found = -(-layer.top_k // gate.query_heads)
    halves = min(found, keys)
    queries_D = tokens_D * gate.query_heads
    pairs, merged = found > 1, found * gate.query_heads > layer.top_k
    phases = [
        _scores(
            kernels,
            layer,
            tokens_D[:, None],
            gate.query_heads * gate.query_size,
            output_bytes=BYTES_PER_ELEMENT[gate.precision],
        ),
        _scores(
            kernels,
            layer,
            np.stack([queries_D, queries_D], axis=-1),
            keys,
            depth=gate.query_size // 2,
        ),
        *_beside(kernels, layer, queries_D * 2.0 * keys),
        kernels.top_k(2 * queries_D, keys, halves, scored=False),
        kernels.launches((3.0 + pairs + merged) * (tokens_D > 0)),
    ]
    if pairs:  # the best pair of a head that finds one expert consists of both best halves
        phases += [
            kernels.pairs(queries_D, halves),
            kernels.top_k(queries_D, halves**2, found, scored=False),
        ]
    if merged:
        phases.append(kernels.top_k(tokens_D, found * gate.query_heads, layer.top_k, scored=False))
    return sequence(*phases)


def _scores(
    kernels: Kernels,
    layer: MoELayer,
    counts_DG: Array,
    columns: int,
    *,
    depth: int | None = None,
    output_bytes: float = _LOGIT_BYTES,
    routed: bool = False,
) -> PhaseCost:
    """Price the GEMM of tokens with keys: (count x depth) times (depth x columns) for each group.

    By default the depth is H and the results are float32. If ``routed``, tokens are gathered by
    group and logits scattered back, inside the kernel where a device's kernels do so.
    """
    element = BYTES_PER_ELEMENT[layer.gate.precision]
    tile = heuristic_tile(float(counts_DG.mean()), element)
    return kernels.grouped_gemm(
        Load.of(counts_DG, counts_DG.sum(axis=-1), tile.block_m),
        columns,
        depth or layer.hidden_size,
        GemmSpec(
            tile=tile,
            fmt=layer.gate.precision,
            weight_bytes=element,
            input_bytes=element,
            output_bytes=output_bytes,
            gather_inputs=routed,
            scatter_outputs=routed,
            logits=True,
        ),
    )


#: price that a kind of gate names -> function that prices one decision for each of the tokens
PRICES = {
    "flat": _all_logits,
    "group_limited": _all_logits,
    "two_level": _two_level,
    "product_key": _product_key,
    "low_rank": _all_logits,
}
