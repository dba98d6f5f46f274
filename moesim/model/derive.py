"""What designs are made of, derived from a whole model: one MoE layer, and the dense part.

A `MoELayer` describes the most frequent mixture of experts. What it cannot say exactly (shared
experts of a width of their own, experts in a narrower space, experts that compute nothing) is
rounded here, and a note says so; the `DensePart` takes up the difference, so that the parameters of
both together are those of the `ModelSpec`.
"""

from collections import Counter
from dataclasses import replace

from moesim.errors import ConfigError, require
from moesim.model.dense import DensePart
from moesim.model.feedforward import MoEFeedForward
from moesim.model.latent import LatentAttention
from moesim.model.layer import MoELayer
from moesim.model.mixers import GroupedAttention
from moesim.model.precision import Precision
from moesim.model.spec import ModelSpec
from moesim.model.weights import total
from moesim.units import GIB


def moe_of(spec: ModelSpec) -> MoEFeedForward:
    """Return the most frequent mixture of experts of a model.

    Raises:
        ConfigError: The model has none.
    """
    moe = spec.moe
    if moe is None:
        raise ConfigError("model: expected layers with experts, got none")
    return moe


def layer_of(spec: ModelSpec, precision: Precision) -> tuple[MoELayer, list[str]]:
    """Return the most frequent MoE layer of a model, and what was rounded for it.

    Args:
        spec: The model.
        precision: Number formats of the layer.

    Raises:
        ConfigError: The model has no experts.
    """
    moe, notes = moe_of(spec), []
    size = moe.latent_size or spec.hidden_size
    if moe.latent_size:
        notes.append(
            f"experts work in a space of {moe.latent_size}: tokens travel in it, gate and shared "
            "experts are priced in it"
        )
    top_k = max(round(moe.computed_experts), 1)
    if moe.num_zero_experts:
        notes.append(
            f"{moe.num_zero_experts} of {moe.num_experts + moe.num_zero_experts} experts compute "
            f"nothing: of top {moe.top_k}, {top_k} are priced, as if all were chosen equally often"
        )
    shared = _shared(spec, moe, size, notes)
    others = Counter(block.moe for block in spec.blocks if block.moe not in (None, moe))
    if others and any(other and _shape(other) != _shape(moe) for other in others):
        notes.append(
            f"{sum(others.values())} of {spec.num_moe_layers} MoE layers differ from the one priced"
        )
    return (
        MoELayer(
            hidden_size=size,
            expert_intermediate_size=moe.width,
            num_experts=moe.num_experts,
            top_k=top_k,
            num_shared_experts=shared,
            gated=moe.gated,
            gate=moe.gate,
            precision=precision,
        ),
        notes,
    )


def _shape(moe: MoEFeedForward) -> tuple[int, int, int, int, int]:
    return moe.num_experts, moe.top_k, moe.width, moe.num_shared_experts, moe.shared_width


def _shared(spec: ModelSpec, moe: MoEFeedForward, size: int, notes: list[str]) -> int:
    """Return the shared experts in units of a routed one."""
    whole = moe.num_shared_experts * moe.shared_width * spec.hidden_size
    unit = moe.width * size
    if whole % unit:
        number = round(whole / unit)
        notes.append(
            f"{moe.num_shared_experts} shared expert of width {moe.shared_width} counts as "
            f"{number} of {moe.width}"
        )
        return number
    return whole // unit


def dense_width_of(spec: ModelSpec, stated: int | None) -> tuple[int, list[str]]:
    """Return the width of a dense layer, or if there is none, the width that granularity is
    relative to, and what was assumed for it.

    Args:
        spec: The model.
        stated: Width that the source states for dense layers; None if it states none.
    """
    found = Counter(b.dense.width for b in spec.blocks if b.dense is not None)
    if found:
        return found.most_common(1)[0][0], []
    if stated is not None:
        return stated, []
    width = moe_of(spec).width
    if width >= 2 * spec.hidden_size:
        return width, []
    return 4 * spec.hidden_size, ["no width of a dense layer is stated: 4 x hidden_size"]


def dense_part_of(spec: ModelSpec, layer: MoELayer, width: int, weight_bytes: float) -> DensePart:
    """Return everything in the model but the routed experts.

    Args:
        spec: The model.
        layer: Its MoE layer, as `layer_of` returns it.
        width: Width of a dense layer, as `dense_width_of` returns it.
        weight_bytes: Bytes of a weight of attention and dense layers.

    Raises:
        ConfigError: The MoE layers have more weights than the model.
    """
    hidden, layers, moe_layers = spec.hidden_size, spec.num_layers, spec.num_moe_layers
    mixers = sum(total(block.mixer_weights(hidden)) for block in spec.blocks)
    attention = round(mixers / layers)
    in_moe = layer.routed_params + layer.shared_params + layer.gate_params
    embeddings = total(spec.embedding_weights)
    rest = spec.total_params - embeddings - attention * layers - moe_layers * in_moe
    if rest <= -layers:  # shared experts were rounded up: the weights too many come off again
        attention += rest // layers
        rest = spec.total_params - embeddings - attention * layers - moe_layers * in_moe
    usual = 3 * hidden * width * max(layers - moe_layers, 0)
    require(attention >= 0, "model.blocks", "MoE layers of about one size", f"{rest} weights left")
    dense = DensePart(
        num_layers=layers,
        num_moe_layers=moe_layers,
        hidden_size=hidden,
        vocab_size=spec.vocab_size,
        attention_params_per_layer=attention,
        kv_bytes_per_token_per_layer=(spec.kv_bytes_per_token + spec.index_bytes_per_token)
        / layers,
        dense_intermediate_size=width,
        dense_params=None if abs(rest - usual) < layers else max(rest, 0),
        tied_embeddings=spec.tied_embeddings,
        weight_bytes=weight_bytes,
    )
    idle = dense.active_params(layer) - spec.active_params
    if idle < max(layers, 1e-3 * spec.active_params):
        return dense
    return replace(dense, idle_params=idle)


def memory_notes(spec: ModelSpec) -> list[str]:
    """Return what the memory of a sequence leaves out or counts in full, in words."""
    notes = []
    mixers = [block.mixer for block in spec.blocks]
    full = (m for m in mixers if isinstance(m, GroupedAttention | LatentAttention))
    windows = [mixer.window for mixer in full if mixer.window is not None]
    if windows:
        notes.append(
            f"{len(windows)} layers see a window of {max(windows)} tokens: their cache is counted "
            "in full"
        )
    if spec.state_bytes_per_sequence:
        notes.append(
            f"a sequence keeps {spec.state_bytes_per_sequence / GIB:.4f} GiB of state beside its "
            "cache, which the check of memory leaves out"
        )
    return notes
