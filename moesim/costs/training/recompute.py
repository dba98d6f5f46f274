"""Say what a backward pass computes again.

``selective`` makes norms, activation functions and the up-projections of latent attention again,
as DeepSeek-V3 does (arXiv 2412.19437, section 3.2.3); flash attention makes its scores again in
any case. ``full`` makes whole layers again from their inputs (Korthikanti et al. 2022, arXiv
2205.05198).
"""

from moesim.costs.dense.elementwise import activation_bytes
from moesim.costs.steps.shares import Gemm
from moesim.costs.training.parts import Part
from moesim.costs.training.passes import DensePasses
from moesim.model.latent import LatentAttention
from moesim.model.mixers import Mixer
from moesim.model.spec import LayerKind

#: matrices that make queries, keys and values from their ranks
_UP = ("q_up", "kv_up")


def again(passes: DensePasses, kind: LayerKind, rows: float, expert_width: float) -> list[Part]:
    """Return what a selective recomputation does in one layer.

    Args:
        passes: Prices of dense parts.
        kind: The layer.
        rows: Rows that the experts of a device compute.
        expert_width: Width of an expert on the device.
    """
    found = []
    blocks = (*kind.mixers, kind.dense or kind.moe)
    found += [passes.norm("forward") for block in blocks if block is not None]
    if isinstance(kind.mixer, LatentAttention):
        found.append(
            passes.gemms("projections", "forward", _ups(kind.mixer, passes), passes.tokens)
        )
    if kind.dense is not None:
        width = kind.dense.width / passes.pricing.tp
        moved = activation_bytes(passes.tokens, width, gated=kind.dense.gated)
        found.append(passes.moved("dense", float(moved)))
    if kind.moe is not None:
        moved = activation_bytes(rows, expert_width, gated=kind.moe.gated)
        found.append(passes.moved("experts", float(moved)))
    return found


def _ups(mixer: Mixer, passes: DensePasses) -> list[Gemm]:
    hidden, tp = passes.pricing.hidden_size, passes.pricing.tp
    return [Gemm(w.n / tp, w.k) for w in mixer.weights(hidden) if w.name in _UP]
