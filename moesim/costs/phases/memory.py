"""Count the bytes that a device must hold; they are checked before a simulation,
never simulated.
"""

from dataclasses import dataclass

import numpy as np

from moesim.errors import CapacityError
from moesim.model import DensePart, MoELayer
from moesim.model.precision import BYTES_PER_ELEMENT
from moesim.units import GIB

_BUFFER_BYTES = 2.0
#: a number, or an array with one for each device
Amount = float | np.ndarray


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryNeed:
    """The bytes of one device, or of several devices as arrays of shape (D,).

    Attributes:
        experts_bytes: Bytes of the expert slots of all MoE layers.
        dense_bytes: Bytes of what every device holds: embeddings, attention, dense layers, gates
            and shared experts, in the model's own quantization.
        kv_bytes: Bytes of the KV cache.
        buffer_bytes: Bytes of received tokens and intermediate activations of one layer.
    """

    experts_bytes: Amount
    dense_bytes: float
    kv_bytes: float
    buffer_bytes: Amount

    @property
    def total_bytes(self) -> Amount:
        """The sum of all parts."""
        return self.experts_bytes + self.dense_bytes + self.kv_bytes + self.buffer_bytes

    def of_device(self, device: int) -> "MemoryNeed":
        """Return the bytes of one of several devices."""
        return MemoryNeed(
            experts_bytes=float(np.asarray(self.experts_bytes)[device]),
            dense_bytes=self.dense_bytes,
            kv_bytes=self.kv_bytes,
            buffer_bytes=float(np.asarray(self.buffer_bytes)[device]),
        )


def memory_need(
    layer: MoELayer,
    dense_part: DensePart,
    *,
    held_width: Amount,
    kv_tokens: int,
    rows: Amount,
    row_widths: Amount,
    tokens: Amount,
) -> MemoryNeed:
    """Return the memory of one device, or of several devices at once.

    Args:
        layer: The MoE layer, one of ``dense_part.num_moe_layers``.
        dense_part: The rest of the model, which every device holds whole (data-parallel attention).
        held_width: Sum of the widths of the experts in the device's slots, or of its share of each;
            a pruned expert has width 0.
        kv_tokens: Tokens in the KV cache.
        rows: Rows that the device computes in one layer.
        row_widths: Sum over those rows of the width of their expert on this device.
        tokens: Tokens that the device receives.
    """
    layers = dense_part.num_moe_layers
    per_layer_bytes = layer.gate_params * BYTES_PER_ELEMENT[layer.gate.precision]
    per_layer_bytes += layer.shared_params * layer.precision.weight_bytes
    return MemoryNeed(
        experts_bytes=layers * held_width * layer.bytes_per_width,
        dense_bytes=dense_part.num_bytes + layers * per_layer_bytes,
        kv_bytes=kv_tokens * dense_part.num_layers * dense_part.kv_bytes_per_token_per_layer,
        buffer_bytes=(
            2.0 * tokens * layer.hidden_size
            + layer.num_matrices * row_widths
            + rows * layer.hidden_size
        )
        * _BUFFER_BYTES,
    )


def check_memory(need: MemoryNeed, usable_bytes: float, device: int | None) -> None:
    """Refuse a model that does not fit.

    Args:
        need: What a device must hold.
        usable_bytes: What it may hold.
        device: Index of the device; None for the mean of all, and the least it can be.

    Raises:
        CapacityError: The model does not fit; the message names the device and how many GiB it is
            over.
    """
    over = need.total_bytes - usable_bytes
    if over > 0:
        who = "a device needs on average at least" if device is None else f"device {device} needs"
        raise CapacityError(
            f"model does not fit: {who} {need.total_bytes / GIB:.1f} GiB of "
            f"{usable_bytes / GIB:.1f} usable, {over / GIB:.1f} GiB over "
            f"(experts {need.experts_bytes / GIB:.1f}, dense part {need.dense_bytes / GIB:.1f}, "
            f"KV cache {need.kv_bytes / GIB:.1f}, buffers {need.buffer_bytes / GIB:.1f})"
        )
