"""The gate as a pipeline: what it takes to know where tokens go, before any of them leaves.

FLOPs per token: flat and group-limited 2 H E; two-level 2 H (G + M E / G) for G groups of which M are kept
(Shazeer et al. 2017, arXiv 1701.06538, appendix B). Weights read by a batch of T tokens: flat H E; two-level
H (G + E / G x groups touched), so a batch that touches all groups saves no weight bytes, only FLOPs and logits.
Product key with n queries of width Q: 2 n Q sqrt(E) for both sets of half-width keys, and 2 H n Q for the queries;
weights Q sqrt(E) and H n Q, float32 logits 8 n sqrt(E) bytes each way, and the sums of k'^2 pairs, k' = top_k / n
(Lample et al. 2019, arXiv 1907.05242, section 3.1; PEER, He 2024, arXiv 2407.04153).

Shape legend: D devices.
"""

import math

import numpy as np

from moesim.costs.load import Load
from moesim.costs.phase import PhaseCost, sequence
from moesim.costs.primitives import Kernels
from moesim.costs.tiles import heuristic_tile
from moesim.model import MoELayer
from moesim.precision import BYTES_PER_ELEMENT

Array = np.ndarray
_LOGIT_BYTES = 4.0


def price_gate(kernels: Kernels, layer: MoELayer, num_tokens_D: Array) -> PhaseCost:
    """Price the gate on every device.

    ``flat``: score GEMM, fused softmax and top-k. ``group_limited``: the same logits, then group scores (the two best
    of each group), the best groups, and top-k with the others masked: one more kernel over all logits.
    ``two_level``: GEMM over groups, top groups, tokens sorted by group, a grouped GEMM over the kept groups' experts
    (tokens gathered, logits scattered back), top-k over kept logits. ``product_key``: GEMM to queries, a GEMM of all
    heads' half queries with each set of keys, top-k of both, top-k of the pairs' sums; where top_k is no multiple of
    the heads, the best of all heads' finds.

    Args:
        kernels: Primitives of the device.
        layer: Sizes and the gate.
        num_tokens_D: ndarray of shape (D,): tokens each device scores.

    Returns:
        PhaseCost of shape (D,).
    """
    gate, hidden, experts = layer.gate, layer.hidden_size, layer.num_experts
    tokens = np.asarray(num_tokens_D, dtype=np.int64)
    if gate.kind == "product_key":
        return _product_key(kernels, layer, tokens)
    if gate.kind != "two_level":
        scores = _scores(kernels, layer, tokens[:, None], experts)
        selection = [kernels.top_k(tokens, experts, layer.top_k), kernels.launches(2.0 * (tokens > 0))]
        if gate.kind == "group_limited":
            selection += [kernels.top_k(tokens, experts, 2), kernels.launches(1.0 * (tokens > 0))]
        return sequence(scores, *selection)
    groups, kept = gate.num_expert_groups, gate.num_limited_groups
    per_group = experts // groups
    # tokens of a batch spread over the groups: T x kept in all, none more than T
    base, extra = np.divmod(tokens * kept, groups)
    fine_DG = base[:, None] + (np.arange(groups) < extra[:, None])
    row_bytes = hidden * BYTES_PER_ELEMENT[gate.precision]
    return sequence(
        _scores(kernels, layer, tokens[:, None], groups),
        kernels.top_k(tokens, groups, kept),
        kernels.align(tokens * kept, groups),
        kernels.gather(tokens * kept * row_bytes, row_bytes),
        _scores(kernels, layer, fine_DG, per_group, scatter=True),
        kernels.top_k(tokens, kept * per_group, layer.top_k),
        kernels.launches(6.0 * (tokens > 0)),
    )


def _product_key(kernels: Kernels, layer: MoELayer, tokens_D: Array) -> PhaseCost:
    """Queries, half scores, best halves, best pairs."""
    gate, keys = layer.gate, math.isqrt(layer.num_experts)
    found = -(-layer.top_k // gate.query_heads)
    halves = min(found, keys)
    queries_D = tokens_D * gate.query_heads
    pairs, merged = found > 1, found * gate.query_heads > layer.top_k
    phases = [
        _scores(kernels, layer, tokens_D[:, None], gate.query_heads * gate.query_size,
                output_bytes=BYTES_PER_ELEMENT[gate.precision]),
        _scores(kernels, layer, np.stack([queries_D, queries_D], axis=-1), keys, depth=gate.query_size // 2),
        kernels.top_k(2 * queries_D, keys, halves),
        kernels.launches((3.0 + pairs + merged) * (tokens_D > 0)),
    ]
    if pairs:  # of a head that finds one expert, the best pair is that of both bests
        phases.append(kernels.top_k(queries_D, halves**2, found))
    if merged:
        phases.append(kernels.top_k(tokens_D, found * gate.query_heads, layer.top_k))
    return sequence(*phases)


def _scores(kernels: Kernels, layer: MoELayer, counts_DG: Array, columns: int, *, depth: int | None = None,
            output_bytes: float = _LOGIT_BYTES, scatter: bool = False) -> PhaseCost:
    """The GEMM of tokens with keys: (count x depth) times (depth x columns) for each group; H deep, float32 out."""
    element = BYTES_PER_ELEMENT[layer.gate.precision]
    tile = heuristic_tile(float(counts_DG.mean()), element)
    return kernels.grouped_gemm(
        Load.of(counts_DG, counts_DG.sum(axis=-1), tile.block_m), columns, depth or layer.hidden_size, tile=tile,
        fmt=layer.gate.precision, weight_bytes=element, input_bytes=element, output_bytes=output_bytes,
        scatter_outputs=scatter,
    )
