"""Price a training step of one MoE layer on one kind of device from the primitives of its kernels.

Whole models price gates and optimizers with the dense parts (`moesim.costs.training.passes`), whose
calibrations are those of GPUs. Here every part comes from the primitives of the device itself, so
that a measured CPU is priced, too: the routed experts by `moesim.costs.training.experts`, the gate
by its own GEMMs, and a fused AdamW as measured on a CPU, elsewhere by its bytes.

Shape legend: D devices, L slots of a device.
"""

from dataclasses import dataclass

import numpy as np

from moesim.costs.devices.primitives import Kernels
from moesim.costs.devices.serial import ADAMW_NUMBERS, adamw_features
from moesim.costs.load import Load
from moesim.costs.phase import PhaseCost, sequence
from moesim.costs.phases.gate import price_gate
from moesim.costs.training.experts import PAD, expert_parts
from moesim.costs.work import ExpertSizes, GemmSpec
from moesim.hardware import Profile
from moesim.model import MoELayer
from moesim.model.precision import BYTES_PER_ELEMENT

Array = np.ndarray


#: passes over the scores that the backward of a softmax makes
_SOFTMAX_PASSES = 2.0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TrainingLayerCosts:
    """What a training step of a layer demands, each of shape (D,).

    Attributes:
        gate: Pass -> the gate: ``forward``, ``dgrad`` and ``wgrad``.
        experts: Pass -> the routed experts.
        optimizer: AdamW over the parameters of each device.
    """

    gate: dict[str, PhaseCost]
    experts: dict[str, PhaseCost]
    optimizer: PhaseCost


def price_training_layer(
    kernels: Kernels,
    profile: Profile,
    layer: MoELayer,
    counts_DL: Array,
    tokens: tuple[Array, Array],
) -> TrainingLayerCosts:
    """Price the passes of one step of a layer whose experts all have one width.

    Args:
        kernels: Primitives of the devices.
        profile: The kind of the devices.
        layer: The layer; its weights, gradients and states have one format.
        counts_DL: ndarray of shape (D, L): rows of every slot.
        tokens: Tokens of each device before they travel, and distinct tokens on each device: two
            ndarrays of shape (D,).
    """
    size = BYTES_PER_ELEMENT[layer.precision.activations]
    # a CPU pads no depths
    pad = 1 if profile.execution == "serial" else PAD
    # gradients are written, not added to a sum
    routed = expert_parts(kernels, layer, 1, counts_DL, np.asarray(tokens[1]), size / 2.0, pad=pad)
    tokens_S = np.asarray(tokens[0], dtype=np.int64)
    experts, hidden = layer.num_experts, layer.hidden_size
    held_D = np.full(len(counts_DL), float(counts_DL.shape[1] * layer.params_per_expert))
    return TrainingLayerCosts(
        gate={
            "forward": price_gate(kernels, layer, tokens_S),
            "dgrad": sequence(
                kernels.weighted_logits(1.0 * tokens_S * experts, _SOFTMAX_PASSES),
                _gate_product(kernels, layer, tokens_S, hidden, experts),
            ),
            "wgrad": _gate_product(
                kernels, layer, np.full_like(tokens_S, experts), hidden, tokens_S
            ),
        },
        experts={which: part.cost for which, part in routed.items()},
        optimizer=_adamw(profile, layer.precision.activations, held_D + layer.gate_params),
    )


def _adamw(profile: Profile, fmt: str, params_D: Array) -> PhaseCost:
    """Price AdamW over the parameters of each device: as measured on a CPU, otherwise its bytes."""
    size, zero_D = BYTES_PER_ELEMENT[fmt], np.zeros_like(params_D)
    table = profile.serial.get(f"adamw_{fmt}")
    if table is None:
        seconds_D = params_D * (ADAMW_NUMBERS * size / profile.hbm_bandwidth_bytes_per_s)
        return PhaseCost(compute_s_D=zero_D, memory_s_D=seconds_D, latency_s_D=zero_D)
    terms = adamw_features(params_D, size, profile.l2_bytes)
    seconds_D = zero_D + sum(table.get(key, 0.0) * value for key, value in terms.items())
    return PhaseCost(compute_s_D=seconds_D, memory_s_D=zero_D, latency_s_D=zero_D)


def _gate_product(
    kernels: Kernels, layer: MoELayer, rows_D: Array, columns: int, depth: int | Array
) -> PhaseCost:
    """Price a product of the gate's backward, (rows x depth) times (depth x columns)."""
    counts_DL = np.asarray(rows_D, dtype=np.int64)[:, None]
    size = BYTES_PER_ELEMENT[layer.precision.activations]
    deepest = int(np.max(depth))
    sizes = ExpertSizes(
        hidden=deepest,
        width=columns,
        num_up=1,
        top_k=1,
        fmt=layer.precision.activations,
        element_bytes=size,
    )
    tile = kernels.expert_tiles(counts_DL, sizes)[0]
    load = Load.of(counts_DL, counts_DL[:, 0], tile.block_m)
    spec = GemmSpec(tile=tile, fmt=layer.precision.activations, weight_bytes=size, input_bytes=size)
    product = kernels.grouped_gemm(load, columns, deepest, spec)
    return sequence(product, kernels.launches(1.0 * (counts_DL[:, 0] > 0)))
