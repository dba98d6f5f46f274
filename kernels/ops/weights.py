"""Hold the weights of one MoE layer: of its gate, its routed experts, and its shared experts."""

import math
from dataclasses import dataclass

import torch
from moesim_kernels.cpu.gate import GATES
from moesim_kernels.ops.fp8 import quantise_blocks_reference
from moesim_kernels.ops.operands import SCALE_BLOCK, Operand
from moesim_kernels.ops.runtime import fp8_dtype

from moesim.errors import ConfigError, require
from moesim.model import Gate, MoELayer, Precision

_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


def torch_dtype(name: str) -> torch.dtype:
    """Return the torch format of this name.

    Raises:
        ConfigError: The kernels do not compute in this format.
    """
    if name not in _DTYPES:
        raise ConfigError(
            f"precision: expected one of {', '.join(_DTYPES)} for the Triton kernels, got {name!r}"
        )
    return _DTYPES[name]


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerWeights:
    """Weights of one layer's gate and experts.

    Attributes:
        fine_EH: Keys of the experts, in the gate's format, shape (E, H).
        coarse_GH: Keys of the groups of a two-level gate, shape (G, H); None for other gates.
        query_QH: Projection of a product-key gate (whose fine_EH is empty), shape (heads x
            query_size, H); otherwise None.
        keys_2Sq: Keys of a product-key gate, shape (2, sqrt(E), query_size / 2); otherwise None.
        shared_gate_up: Gate rows followed by up rows of all n shared experts as one wide expert,
            shape (1, 2 n I, H); None without shared experts.
        shared_down: Down projection of the shared experts, shape (1, H, n I); None without shared
            experts.
        w_gate_up: Gate rows followed by up rows of every expert, shape (E, 2I, H).
        w_down: Down projections, shape (E, H, I).
        bias_E: Bias that selection adds to the experts' scores, float32 of shape (E,); None for a
            gate without bias.

    The four weights of the experts are plain tensors, or all `BlockScaled`; in the latter case
    tokens and activations are quantized on the way.
    """

    fine_EH: torch.Tensor
    coarse_GH: torch.Tensor | None
    w_gate_up: Operand
    w_down: Operand
    query_QH: torch.Tensor | None = None
    keys_2Sq: torch.Tensor | None = None
    shared_gate_up: Operand | None = None
    shared_down: Operand | None = None
    bias_E: torch.Tensor | None = None

    @classmethod
    def random(
        cls,
        layer: MoELayer,
        seed: int,
        dtype: torch.dtype | None = None,
        device: torch.device | str = "cpu",
    ) -> "LayerWeights":
        """Draw normal weights that keep activations near 1: standard deviation 1 / sqrt(inputs); a
        bias is all zeros.

        Args:
            layer: Layer that gives sizes, gate, and formats.
            seed: Seed of a generator on ``device``; it gives the same numbers on every machine with
                the same kind of device.
            dtype: Number format of the experts; by default the layer's, including block-scaled
                8-bit floats.
            device: Device that holds the weights.

        Raises:
            ConfigError: The kernels do not compute this layer: it is ungated, has a capacity limit
                or experts of different widths, has a two-level or product-key gate with sigmoid,
                has heads that do not divide top_k, or uses a format they lack.
        """
        check_layer(layer)
        # Block-scaled weights are drawn in float32 and quantized once all are drawn.
        scaled = dtype is None and is_block_scaled(layer.precision)
        dtype = dtype or (torch.float32 if scaled else torch_dtype(layer.precision.weights))
        gate_dtype, generator = (
            torch_dtype(layer.gate.precision),
            torch.Generator(device).manual_seed(seed),
        )

        # The last dimension is the inner one, so its size gives the standard deviation.
        def normal(*shape: int, dtype: torch.dtype) -> torch.Tensor:
            return torch.empty(shape, dtype=dtype, device=device).normal_(
                0.0, shape[-1] ** -0.5, generator=generator
            )

        drawn = {
            name: None
            if shape is None
            else normal(*shape, dtype=dtype if name in EXPERTS else gate_dtype)
            for name, shape in shapes(layer).items()
        }
        if scaled:
            drawn |= {
                name: quantise_blocks_reference(drawn[name], fp8_dtype())
                for name in EXPERTS
                if drawn[name] is not None
            }
        # Drawn from no generator, so that a bias does not change the other weights.
        bias_E = (
            torch.zeros(layer.num_experts, device=device)
            if layer.gate.balancing == "bias"
            else None
        )
        return cls(**drawn, bias_E=bias_E)


#: names of the weights that have the experts' format
EXPERTS = ("w_gate_up", "w_down", "shared_gate_up", "shared_down")


def is_block_scaled(precision: Precision) -> bool:
    """Return whether the experts multiply 8-bit numbers with a scale for each block.

    Raises:
        ConfigError: The 8-bit weights are not in the kernels' convention: tokens are wider, or
            blocks have another size.
    """
    if precision.weights != "float8_e4m3":
        return False
    if precision.activations != "float8_e4m3" or precision.scale_block != SCALE_BLOCK:
        raise ConfigError(
            "precision: expected activations float8_e4m3 and scale_block "
            f"{SCALE_BLOCK} beside weights float8_e4m3 for the Triton kernels, got activations "
            f"{precision.activations} and scale_block {precision.scale_block}"
        )
    return True


def shapes(layer: MoELayer) -> dict[str, tuple[int, ...] | None]:
    """Return the shape of each of a layer's weights, None for weights it does not have."""
    # A product-key gate has no key for each expert; only a two-level gate has keys of groups.
    experts, hidden, width = layer.num_experts, layer.hidden_size, layer.shared_width
    two_level, product_key = (layer.gate.kind == kind for kind in ("two_level", "product_key"))
    # Shared experts are computed as one expert that is as wide as all of them.
    shared = layer.num_shared_experts * width
    return {
        "fine_EH": (0 if product_key else experts, hidden),
        "coarse_GH": (layer.gate.num_expert_groups, hidden) if two_level else None,
        "w_gate_up": (experts, 2 * width, hidden),
        "w_down": (experts, hidden, width),
        "query_QH": (layer.gate.query_heads * layer.gate.query_size, hidden)
        if product_key
        else None,
        "keys_2Sq": (2, math.isqrt(experts), layer.gate.query_size // 2) if product_key else None,
        "shared_gate_up": (1, 2 * shared, hidden) if shared else None,
        "shared_down": (1, hidden, shared) if shared else None,
    }


def check_layer(layer: MoELayer) -> None:
    """Refuse layers the kernels do not compute.

    Raises:
        ConfigError: The layer is ungated, has a capacity limit or experts of different widths, has
            a two-level or product-key gate with sigmoid, or has heads that do not divide top_k.
    """
    if not layer.gated or layer.capacity_factor is not None:
        raise ConfigError(
            "layer: expected gated = true and no capacity_factor for the Triton kernels, got "
            f"gated = {layer.gated}, capacity_factor = {layer.capacity_factor}"
        )
    if not isinstance(layer.expert_intermediate_size, int):
        raise ConfigError(
            "layer.expert_intermediate_size: expected one width for the Triton kernels, got several"
        )
    check_gate(layer.gate, layer.top_k)


def check_gate(gate: Gate, top_k: int) -> None:
    """Refuse gates the kernels do not compute.

    Raises:
        ConfigError: The kernels have no such kind, a two-level or product-key gate uses sigmoid, or
            its heads do not divide top_k.
    """
    require(gate.kind in GATES, "gate.kind", f"{', '.join(GATES)} to compute", gate.kind)
    if gate.kind in ("two_level", "product_key") and gate.score != "softmax":
        raise ConfigError(
            f"gate.score: expected softmax for a {gate.kind.replace('_', '-')} gate, got "
            f"{gate.score!r}"
        )
    if gate.kind == "product_key" and top_k % gate.query_heads:
        raise ConfigError(
            f"gate.query_heads: expected a divisor of top_k = {top_k} for the Triton kernels, "
            f"got {gate.query_heads}"
        )


def check_selection(gate: Gate) -> None:
    """Refuse ways of choosing that the kernels do not compute.

    Raises:
        ConfigError: The gate uses expert choice, hashes, Sinkhorn, local routers, or shared
            decisions; or it uses noise, a bias, or a temperature although a token does not see the
            logits of all experts.
    """
    if (
        gate.selection not in ("top_k", "noisy_top_k")
        or gate.local_routers
        or gate.share_tokens > 1
    ):
        raise ConfigError(
            "gate: expected top_k or noisy_top_k of every token for the Triton kernels, got "
            f"{str(gate)!r}; pass its choices as `routing`"
        )
    # In the composed gates a token does not see all experts' logits.
    plain = gate.selection == "top_k" and gate.balancing != "bias" and gate.temperature == 1.0
    if gate.kind in ("two_level", "product_key") and not plain:
        raise ConfigError(
            f"gate: expected no noise, bias or temperature for a {gate.kind.replace('_', '-')} "
            f"gate, got {str(gate)!r}"
        )
