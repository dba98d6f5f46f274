"""Price an optimizer: bytes of its states, and for Muon the products that make updates orthogonal.

Every parameter's gradient is read, its states are read and written, and its weight is written. Muon
takes five Newton-Schulz steps for each matrix of m x n (m the smaller), each with products of
2 m m n, 2 m m m and 2 m m n FLOPs (Jordan et al. 2024, "Muon: An optimizer for hidden layers"). The
devices that divide the states also divide the matrices (arXiv 2502.16982).
"""

from collections import Counter
from collections.abc import Iterable
from functools import lru_cache

from moesim.costs.dense.prices import DensePrices
from moesim.costs.steps.mixers import DensePricing
from moesim.costs.training.memory import Params, state_bytes_per_param
from moesim.design.training.model import TrainedModel
from moesim.model.spec import LayerKind

_STEPS = 5
_WEIGHT_BYTES = 2.0
#: inputs below which a matrix is a few weights for each channel
_CHANNELS = 16
_GRADIENT = {"float32": 4.0, "bfloat16": 2.0}


def optimizer_s(
    trained: TrainedModel, pricing: DensePricing, params: Params, groups: tuple[int, int]
) -> float:
    """Return the seconds of the optimizer on a device, without the products of Muon.

    Args:
        trained: The design.
        pricing: Prices of the device.
        params: Parameters of the device before they are divided.
        groups: Number of devices that the states of dense parameters, and of experts are divided
            over.
    """
    per_param = _GRADIENT[trained.plan.gradient_format] + _WEIGHT_BYTES
    moved = 0.0
    for count, group, table in (
        (params.dense - params.tables, groups[0], False),
        (params.tables, groups[0], True),
        (params.experts, groups[1], False),
    ):
        each = per_param + 2.0 * state_bytes_per_param(trained, table=table)
        moved += count / group * each
    return float(pricing.prices.stream_s(moved, 1))


def muon_s(
    trained: TrainedModel,
    pricing: DensePricing,
    layers: Iterable[LayerKind],
    groups: tuple[int, int],
) -> float:
    """Return the seconds of Muon's products on a device; 0 for another optimizer.

    Args:
        trained: The design.
        pricing: Prices of the device.
        layers: Its layers.
        groups: Number of devices that share the matrices of dense parts, and of experts.
    """
    if trained.plan.optimizer != "muon":
        return 0.0
    hidden, layout, total = trained.spec.hidden_size, trained.layout, 0.0
    for kind, count in Counter(layers).items():
        routed = kind.moe.expert_weights(hidden) if kind.moe else ()
        names = {weight.name for weight in routed}
        for weight in kind.weights(hidden):
            if min(weight.n, weight.k) <= _CHANNELS:
                continue
            share = groups[1] * layout.devices_per_exchange if weight.name in names else groups[0]
            # tensor-parallel devices gather a matrix and divide the products
            split = layout.tp if weight.name not in names else 1
            sizes = sorted((weight.n, weight.k))
            one = _matrix_s(pricing.prices, *sizes)
            total += count * weight.copies * one / (share * split)
    return total


@lru_cache(maxsize=1024)
def _matrix_s(prices: DensePrices, small: int, large: int) -> float:
    wide = prices.gemm_s(small, small, large, "bfloat16")
    square = prices.gemm_s(small, small, small, "bfloat16")
    back = prices.gemm_s(small, large, small, "bfloat16")
    return _STEPS * float(wide + square + back)
