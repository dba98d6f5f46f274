"""Count the memory of one device that serves a whole model: weights, and what is left for the KV
cache.

Every matrix counts as the device holds it (`moesim.costs.steps.shares`). A pipeline stage holds an
equal share of the layers; the first and the last also hold embedding and head, which are counted on
every stage. Activations of the largest step are set aside.

Experts of each form are spread evenly over devices; replicas are of hot ones. Where experts lie in
the memory of the host, the hot ones are resident first, and one layer's missing ones have buffers,
those of the next layer, too, if they are fetched ahead.
"""

from dataclasses import dataclass, replace

from moesim.costs.dense.decode import cache_bytes
from moesim.costs.dense.gemm import GemmFormat
from moesim.costs.steps.shares import kv_heads_of, products_of
from moesim.design.served import ServedModel
from moesim.errors import CapacityError
from moesim.hardware import Profile
from moesim.model.compression import expert_bytes
from moesim.model.feedforward import MoEFeedForward
from moesim.model.mixers import CACHE_BYTES, GroupedAttention, Mixer
from moesim.model.spec import LayerKind
from moesim.model.weights import total
from moesim.units import GIB

_ELEMENT_BYTES = 2.0
#: vectors of a token that are alive at once beside those of its experts: residual, normed, q, k, v
_VECTORS = 6.0


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceMemory:
    """The memory of one device.

    Attributes:
        usable_bytes: What a model may fill.
        experts_bytes: Slots of routed experts that stay on the device.
        dense_bytes: All other weights.
        buffer_bytes: Activations of the largest step, and experts that it fetches.
        kv_bytes_per_token: KV cache of a token of the device's attention rank.
        state_bytes: What a sequence keeps whatever its length.
        host_bytes: Slots of routed experts in the memory of the host.
    """

    usable_bytes: float
    experts_bytes: float
    dense_bytes: float
    buffer_bytes: float
    kv_bytes_per_token: float
    state_bytes: float
    host_bytes: float = 0.0

    @property
    def left_bytes(self) -> float:
        """The bytes left for caches and states; negative if the model does not fit."""
        used = self.experts_bytes + self.dense_bytes + self.buffer_bytes
        return self.usable_bytes - used

    def check(self, name: str, device: str) -> None:
        """Refuse a model that does not fit.

        Raises:
            CapacityError: The weights do not fit; the text says by how many GiB.
        """
        if self.left_bytes <= 0:
            raise CapacityError(
                f"{name} does not fit on {device}: a device holds experts of "
                f"{self.experts_bytes / GIB:.1f} GiB, other weights of {self.dense_bytes / GIB:.1f}"
                f" and buffers of {self.buffer_bytes / GIB:.1f} in {self.usable_bytes / GIB:.1f} "
                f"usable GiB, {-self.left_bytes / GIB:.1f} GiB over"
            )

    def kv_blocks(self, block_size: int, max_seqs: int = 0) -> int:
        """Return the KV blocks of an attention rank beside the states of ``max_seqs`` sequences."""
        left = self.left_bytes - max_seqs * self.state_bytes
        if not self.kv_bytes_per_token:
            # only states limit how many sequences there are
            return 1 << 30
        return max(int(left / (self.kv_bytes_per_token * block_size)), 0)


def memory_on(served: ServedModel, profile: Profile, *, step_tokens: float) -> DeviceMemory:
    """Return the memory of a device.

    Args:
        served: The model's design.
        profile: The device.
        step_tokens: Tokens of an attention rank in the largest step.
    """
    spec, layout = served.spec, served.layout
    dense = GemmFormat.named(served.dense_format).weight_bytes
    experts = others = kv = state = away = fetched = 0.0
    for kind, count in spec.kinds.items():
        layers = count / layout.pp
        if kind.moe is not None:
            held, missing = _experts(served, kind.moe)
            experts, away = experts + layers * held, away + layers * missing
            fetched = max(fetched, missing * _fetched_share(served, kind.moe, step_tokens))
        others += layers * _others(served, kind) * dense
        if kind.mixer is not None:
            kv += layers * _kv_bytes(kind.mixer, layout.tp, cache_bytes(served.kv_format))
            state += layers * kind.mixer.state_bytes_per_sequence / layout.tp
    embeddings = total(spec.embedding_weights) + total(spec.extra)
    others += embeddings / layout.tp * _ELEMENT_BYTES
    return DeviceMemory(
        usable_bytes=profile.usable_bytes,
        experts_bytes=experts,
        dense_bytes=others,
        buffer_bytes=_VECTORS * step_tokens * spec.hidden_size * _ELEMENT_BYTES + fetched,
        kv_bytes_per_token=kv,
        state_bytes=state,
        host_bytes=away,
    )


def _experts(served: ServedModel, moe: MoEFeedForward) -> tuple[float, float]:
    """Return the bytes of the expert slots of a layer on a device and in the memory of its host."""
    layer, form, ep = served.layer(moe), served.compression, served.layout.ep
    width = moe.width / served.layout.moe_tp
    hot_bytes = float(expert_bytes(layer, width, None))
    if served.offload.is_nothing and form.is_nothing:
        return (layer.num_experts + served.num_replicas) / ep * hot_bytes, 0.0
    narrow = replace(layer, precision=form.cold_precision(layer.precision))
    cold_bytes = float(expert_bytes(narrow, width, form.cold_rank_fraction))
    left = layer.num_experts * (1.0 - form.pruned_fraction)
    cold = left * form.cold_fraction / ep
    hot = (left + served.num_replicas) / ep - cold
    resident = served.offload.resident_fraction * (hot + cold)
    hot_there = min(resident, hot)
    held = hot_there * hot_bytes + (resident - hot_there) * cold_bytes
    return held, hot * hot_bytes + cold * cold_bytes - held


def _fetched_share(served: ServedModel, moe: MoEFeedForward, step_tokens: float) -> float:
    """Return how much of a layer's missing experts has a buffer: those that are active in the
    largest step, at most as many as if all experts were chosen alike.
    """
    left = moe.num_experts * (1.0 - served.compression.pruned_fraction)
    idle = max(1.0 - moe.top_k / left, 0.0) ** (step_tokens * served.layout.dp)
    return (1.0 - idle) * (2.0 if served.offload.fetches_ahead else 1.0)


def _others(served: ServedModel, kind: LayerKind) -> float:
    """Return the other weights of a layer on a device: a number, not bytes."""
    hidden, tp = served.spec.hidden_size, served.layout.tp
    found = float(total(kind.extra))
    if kind.mixer is not None:
        found += sum(n * k for n, k in products_of(kind.mixer, hidden, tp))
    if kind.dense is not None:
        found += kind.dense.params(hidden) / tp
    if kind.moe is not None:
        routed = total(kind.moe.expert_weights(hidden))
        # shared experts are whole where tokens are a device's own
        shared_tp = 1 if served.layout.exchanges_tokens else tp
        found += (total(kind.moe.weights(hidden)) - routed) / shared_tp
    return found


def _kv_bytes(mixer: Mixer, tp: int, element_bytes: float) -> float:
    """Return the bytes that a token adds to a layer's cache on a device."""
    scale = element_bytes / CACHE_BYTES
    kept = mixer.kv_bytes_per_token * scale + mixer.index_bytes_per_token
    if isinstance(mixer, GroupedAttention):
        return kept * kv_heads_of(mixer, tp) / mixer.num_kv_heads
    return kept
