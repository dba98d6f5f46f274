"""State the sizes and formats of the experts on a device."""

from dataclasses import dataclass

from moesim.costs.load import Size
from moesim.costs.work import ExpertSizes
from moesim.model import MoELayer
from moesim.model.precision import BYTES_PER_ELEMENT


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ExpertShape:
    """Sizes of the experts on a device; in a table of measurements every size has one value per
    row.

    Attributes:
        hidden: Hidden size H.
        width: Expert width on this device: the layer's width over its tensor parallelism. Where
            experts differ, it is the widest, and the `Load` holds the width of each.
        num_up: Number of up projections: 2 for SwiGLU, otherwise 1.
        num_experts: Number of experts of the layer, on all devices.
        top_k: Number of experts that a token uses.
        fmt: Format of the GEMMs.
        weight_bytes: Bytes of one weight, scales included.
        input_bytes: Bytes of one input element, scales included.
        block_scaled: Whether a scale is applied after every block of the depth.
        weight_only: Whether the kernel widens the weights before it multiplies.
        rank: Rank of the two thin matrices that each matrix is the product of; None for whole
            matrices.
    """

    hidden: Size
    width: Size
    num_up: Size
    top_k: Size
    num_experts: Size = 1
    fmt: str
    weight_bytes: float
    input_bytes: float
    block_scaled: bool = False
    weight_only: bool = False
    rank: Size | None = None

    @property
    def sizes(self) -> ExpertSizes:
        """What tiles are chosen by; the sizes must be numbers."""
        return ExpertSizes(
            hidden=int(self.hidden),
            width=int(self.width),
            num_up=int(self.num_up),
            top_k=int(self.top_k),
            fmt=self.fmt,
            element_bytes=BYTES_PER_ELEMENT[self.fmt],
        )

    @classmethod
    def of(cls, layer: MoELayer, tp: int) -> "ExpertShape":
        """Return the shape on one of ``tp`` devices that share each expert's width."""
        precision = layer.precision
        return cls(
            hidden=layer.hidden_size,
            width=-(-layer.widest // tp),
            num_up=2 if layer.gated else 1,
            top_k=layer.top_k,
            num_experts=layer.num_experts,
            fmt=precision.activations,
            weight_bytes=precision.weight_bytes,
            input_bytes=precision.token_bytes("activations", layer.hidden_size) / layer.hidden_size,
            block_scaled=precision.block_scaled,
            weight_only=precision.weight_only,
        )
