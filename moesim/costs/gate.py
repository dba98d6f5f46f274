"""The gate as a pipeline: what it takes to know where tokens go, before any of them leaves.

FLOPs per token: flat and group-limited 2 H E; two-level 2 H (G + M E / G) for G groups of which M are kept
(Shazeer et al. 2017, arXiv 1701.06538, appendix B). Weights read by a batch of T tokens: flat H E; two-level
H (G + E / G x groups touched), so a batch that touches all groups saves no weight bytes, only FLOPs and logits.

Shape legend: D devices.
"""

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
    (tokens gathered), top-k over kept logits.

    Args:
        kernels: Primitives of the device.
        layer: Sizes and the gate.
        num_tokens_D: ndarray of shape (D,): tokens each device scores.

    Returns:
        PhaseCost of shape (D,).
    """
    gate, hidden, experts = layer.gate, layer.hidden_size, layer.num_experts
    tokens = np.asarray(num_tokens_D, dtype=np.int64)
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
        _scores(kernels, layer, fine_DG, per_group),
        kernels.top_k(tokens, kept * per_group, layer.top_k),
        kernels.launches(6.0 * (tokens > 0)),
    )


def _scores(kernels: Kernels, layer: MoELayer, counts_DG: Array, columns: int) -> PhaseCost:
    """The GEMM of tokens with keys: (count x H) times (H x columns) for each group, float32 logits out."""
    element = BYTES_PER_ELEMENT[layer.gate.precision]
    tile = heuristic_tile(float(counts_DG.mean()), element)
    return kernels.grouped_gemm(
        Load.of(counts_DG, counts_DG.sum(axis=-1), tile.block_m), columns, layer.hidden_size, tile=tile,
        fmt=layer.gate.precision, weight_bytes=element, input_bytes=element, output_bytes=_LOGIT_BYTES,
    )
