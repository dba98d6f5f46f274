"""Collect the loss differences of a layer's choices apart from its size: gate, formats, capacity,
shared experts, widths, pruning.
"""

from functools import lru_cache

from moesim.model import MoELayer
from moesim.model.precision import Precision
from moesim.quality.compressed import pruned_delta
from moesim.quality.deltas import DELTAS, Delta, capacity_delta
from moesim.quality.gates import gate_deltas, together

_WEIGHTS = {"int8": "int8", "int4": "int4", "mxfp4": "block_float4", "nvfp4": "block_float4"}


def layer_deltas(layer: MoELayer) -> list[Delta]:
    """Return the differences of a layer, one per choice that is not the default."""
    deltas = gate_deltas(layer.gate) + _precision(layer.precision)
    if layer.num_shared_experts:
        deltas.append(DELTAS["shared_experts"])
    if not layer.gated:
        deltas.append(DELTAS["not_gated"])
    if layer.widths_key is not None and len(set(layer.widths_key) - {0}) > 1:
        deltas.append(DELTAS["widths"])
    if layer.has_pruned:
        deltas.append(pruned_delta(1.0 - layer.num_left / layer.num_experts))
    if layer.capacity_factor is not None:
        deltas.append(
            capacity_delta(layer.capacity_factor, layer.top_k, reroute=layer.overflow == "reroute")
        )
    return deltas


def _precision(precision: Precision) -> list[Delta]:
    if precision.weights in _WEIGHTS:
        return [DELTAS[_WEIGHTS[precision.weights]]]
    eight_bit = "float8_e4m3" in (
        precision.weights,
        precision.activations,
        precision.dispatch,
        precision.combine,
    )
    return [DELTAS["float8"]] if eight_bit else []


def layer_delta(layer: MoELayer) -> Delta:
    """Return the sum of all differences of a layer; ``unknown`` names those without a figure."""
    # a cache would keep up to millions of individual widths alive
    return together(layer_deltas(layer)) if layer.uneven else _cached(layer)


@lru_cache(maxsize=4096)
def _cached(layer: MoELayer) -> Delta:
    return together(layer_deltas(layer))
