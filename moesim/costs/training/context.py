"""Price what devices of one rank exchange: tokens before and after tensor-parallel parts, and keys
and values between devices that share a sequence.

Tokens between tensor-parallel parts are divided along the sequence, so that an all-gather comes
before such a part and a reduce-scatter after it, forward and backward (Korthikanti et al. 2022,
arXiv 2205.05198). Keys and values travel around a ring under the attention (Liu et al. 2023, arXiv
2310.01889); what takes longer than the attention is exposed. Backward, their gradients travel,
too.
"""

from moesim.costs.steps.collectives import Joint, price_collective
from moesim.costs.steps.shares import kv_heads_of
from moesim.costs.training.parts import Part, blocking
from moesim.costs.training.passes import DensePasses, Which
from moesim.hardware import Cluster
from moesim.model.latent import LatentAttention
from moesim.model.mixers import GroupedAttention, Mixer

_ELEMENT_BYTES = 2.0


def joined(passes: DensePasses, cluster: Cluster, kind: Joint) -> list[Part]:
    """Return the exchange of a micro-batch's tokens between tensor-parallel devices; nothing
    without.
    """
    pricing = passes.pricing
    if pricing.tp == 1:
        return []
    cost = price_collective(
        pricing.prices, cluster, kind, pricing.tp, passes.tokens, pricing.hidden_size
    )
    return [Part(name=kind, cost=cost)]


def ring(
    passes: DensePasses, cluster: Cluster, mixer: Mixer, which: Which, attention: Part
) -> list[Part]:
    """Return the exposed exchange of keys and values between devices that share a sequence.

    Args:
        passes: Prices, and the number of those devices.
        cluster: The hardware.
        mixer: The attention.
        which: The pass.
        attention: The attention that it travels under.
    """
    if passes.cp == 1 or which == "wgrad":
        return []
    tp = passes.pricing.tp
    near = tp * passes.cp <= cluster.devices_per_domain
    rate = cluster.link_bytes_per_s if near else cluster.nic_bytes_per_s
    size = passes.tokens * _kv_elements(mixer, tp) * _ELEMENT_BYTES
    turns = passes.cp - 1
    times = 1.0 if which == "forward" else 2.0
    seconds = turns * (cluster.hop_s + times * size / rate)
    exposed = max(seconds - float(attention.cost.solo_s_D().max()), 0.0)
    return [Part(name="context", cost=blocking(exposed))]


def _kv_elements(mixer: Mixer, tp: int) -> float:
    """Return the elements of keys and values of a token on one of ``tp`` devices."""
    if isinstance(mixer, GroupedAttention):
        size = mixer.head_size + (mixer.value_size or mixer.head_size)
        return kv_heads_of(mixer, tp) * float(size)
    if isinstance(mixer, LatentAttention):
        size = mixer.head_size + mixer.rope_size + mixer.value_size
        return mixer.num_heads / tp * float(size)
    return mixer.kv_bytes_per_token / _ELEMENT_BYTES
