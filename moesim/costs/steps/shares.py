"""Say which part of a mixer's weights a device holds under tensor parallelism, and which matrices
one GEMM multiplies.

A matrix that reads the model's width is divided by its outputs, one that writes it by its inputs
(Megatron-LM, arXiv 1909.08053), so that an all-reduce follows. Ranks of latent attention, routers
and indexers are whole on every device. Matrices that read the same tokens are one GEMM, as serving
engines fuse q, k and v.
"""

from typing import NamedTuple

from moesim.model.mixers import GroupedAttention, Mixer
from moesim.model.weights import Weight

#: what every device holds whole, and what is divided by its inputs
_WHOLE = ("q_down", "kv_down", "kv", "router", "compress", "gate", "decay.down", "output_gate.down")
_BY_INPUTS = ("o", "out", "o_up")
#: inputs up to which a matrix is no GEMM but a few weights for each channel, such as a convolution
_CHANNELS = 16


class Gemm(NamedTuple):
    """One GEMM of a device: (tokens x k) times (k x n)."""

    n: float
    k: float


def products_of(mixer: Mixer, hidden_size: int, tp: int) -> list[Gemm]:
    """Return the GEMMs of a mixer on one of ``tp`` devices."""
    wide: dict[float, float] = {}
    for weight in mixer.weights(hidden_size):
        if weight.k > _CHANNELS and weight.n:
            n, k = _share(weight, mixer, tp)
            wide[k] = wide.get(k, 0.0) + n
    return [Gemm(n, k) for k, n in wide.items()]


def channel_params(mixer: Mixer, hidden_size: int, tp: int) -> float:
    """Return the weights of a device that belong to single channels."""
    return sum(w.params for w in mixer.weights(hidden_size) if w.k <= _CHANNELS) / tp


def kv_heads_of(mixer: GroupedAttention, tp: int) -> int:
    """Return the heads of keys and values that one of ``tp`` devices holds: at least one."""
    return max(mixer.num_kv_heads // tp, 1)


def _share(weight: Weight, mixer: Mixer, tp: int) -> Gemm:
    n = float(weight.n * (weight.copies if weight.active is None else weight.active))
    if weight.name in _WHOLE or weight.name.startswith("index."):
        return Gemm(n, float(weight.k))
    if weight.name in _BY_INPUTS:
        return Gemm(n, weight.k / tp)
    if weight.name in ("k", "v") and isinstance(mixer, GroupedAttention):
        return Gemm(n * kv_heads_of(mixer, tp) / mixer.num_kv_heads, float(weight.k))
    return Gemm(n / tp, float(weight.k))
