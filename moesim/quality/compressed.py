"""Estimate what compressing the experts of a trained model costs in loss.

Figures exist for a format or a pruning of *all* experts. Cold experts serve fewer tokens than
their number says, so a share of them is taken to cost that share of the figure, in an interval from
nothing (they are hardly used) to twice that share (errors of layers add up). Nobody has measured
these mixtures here: all but the formats of all experts count as unknown.
"""

import math

from moesim.model import MoELayer
from moesim.model.compression import Compression, low_rank
from moesim.quality.deltas import DELTAS, Delta
from moesim.quality.gates import together

#: format of weights -> row of `DELTAS`
WEIGHTS = {
    "float8_e4m3": "float8",
    "int8": "int8",
    "int4": "int4",
    "mxfp4": "block_float4",
    "nvfp4": "block_float4",
}
#: nats for each share of the weights of all experts that low rank removes: assumed as large as
#: removing experts by pruning, whose worst known case is `_WORST_PRUNING`
_WORST_PRUNING = math.log(13.0)


def pruned_delta(share: float) -> Delta:
    """Return the cost of experts that are left out.

    Pruning 5 % of the 512 experts of one model after training multiplied its perplexity by 13;
    training without them costs nothing, and experts of a model of few experts can be chosen so that
    little is lost (NAEE, arXiv 2402.14800: accuracy only). The interval spans all, in proportion up
    to these 5 %.

    Args:
        share: Share of all experts.
    """
    part = min(share / 0.05, 1.0)
    return Delta(part * _WORST_PRUNING / 2, 0.0, part * _WORST_PRUNING, "pruned experts")


def compression_delta(layer: MoELayer, form: Compression) -> Delta:
    """Return the cost of a compression beyond that of the layer's own choices."""
    found = []
    if form.pruned_fraction:
        found.append(pruned_delta(form.pruned_fraction))
    if form.cold_format in WEIGHTS:
        whole = DELTAS[WEIGHTS[form.cold_format]]
        found.append(whole if form.cold_fraction == 1 else _part(whole, form.cold_fraction))
    if form.cold_rank_fraction is not None:
        width = round(layer.mean_width)
        rank = low_rank(form.cold_rank_fraction, layer.hidden_size, width)
        kept = rank * (layer.hidden_size + width) / (layer.hidden_size * width)
        removed = form.cold_fraction * min(max(1.0 - kept, 0.0), 1.0)
        nats = removed * _WORST_PRUNING
        found.append(Delta(nats / 2, 0.0, nats, "low-rank experts"))
    return together(found)


def _part(whole: Delta, share: float) -> Delta:
    nats = share * whole.nats
    return Delta(
        nats, 0.0, 2 * share * whole.high, "a narrower format of cold experts", whole.source
    )
