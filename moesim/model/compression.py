"""How the routed experts of a trained layer are compressed: narrower formats, low rank, pruning.

Experts are ranked by the tokens they can expect. The least loaded may be *pruned*: they are never
chosen, and the gate's scores of the others are normalized again (NAEE, arXiv 2402.14800). Of those
that are left, the least loaded are *cold*: they may be stored in a narrower format (MC-MoE,
arXiv 2410.06270; MoQE, arXiv 2310.02410) or as products of two thin matrices (low rank). The hot
ones keep the layer's format and shape.
"""

from dataclasses import dataclass, replace

import numpy as np

from moesim.errors import require
from moesim.model.layer import MoELayer
from moesim.model.precision import BYTES_PER_ELEMENT, Precision


@dataclass(frozen=True, slots=True, kw_only=True)
class Compression:
    """Which routed experts are compressed, and how.

    Attributes:
        cold_fraction: Share of the unpruned experts that is cold, the least loaded ones.
        cold_format: Format of the weights of cold experts; None keeps the layer's.
        cold_rank_fraction: Rank of the two factors of each matrix of a cold expert, as a share of
            its smaller side; None keeps whole matrices. A matrix shrinks if the share is below
            the larger side over the sum of both sides.
        pruned_fraction: Share of all experts that is removed, the least loaded ones.

    Raises:
        ConfigError: A share is out of its range, a format is unknown, or experts are cold without
            being compressed (or the other way round).
    """

    cold_fraction: float = 0.0
    cold_format: str | None = None
    cold_rank_fraction: float | None = None
    pruned_fraction: float = 0.0

    def __post_init__(self) -> None:
        require(
            0 <= self.cold_fraction <= 1,
            "compression.cold_fraction",
            "a share from 0 to 1",
            self.cold_fraction,
        )
        require(
            0 <= self.pruned_fraction < 1,
            "compression.pruned_fraction",
            "a share from 0 to below 1",
            self.pruned_fraction,
        )
        require(
            self.cold_format is None or self.cold_format in BYTES_PER_ELEMENT,
            "compression.cold_format",
            f"one of {', '.join(BYTES_PER_ELEMENT)}",
            self.cold_format,
        )
        require(
            self.cold_rank_fraction is None or 0 < self.cold_rank_fraction <= 1,
            "compression.cold_rank_fraction",
            "a share above 0 and up to 1",
            self.cold_rank_fraction,
        )
        compressed = self.cold_format is not None or self.cold_rank_fraction is not None
        require(
            compressed == (self.cold_fraction > 0),
            "compression.cold_fraction",
            "a share > 0 together with cold_format or cold_rank_fraction, or none of them",
            self.cold_fraction,
        )

    @property
    def is_nothing(self) -> bool:
        """Whether no expert is compressed or pruned."""
        return self.cold_fraction == 0 and self.pruned_fraction == 0

    def narrows(self, precision: Precision) -> bool:
        """Return whether the format of cold experts, if they have one, is narrower than others'."""
        fmt = self.cold_format
        return fmt is None or BYTES_PER_ELEMENT[fmt] < BYTES_PER_ELEMENT[precision.weights]

    def cold_precision(self, precision: Precision) -> Precision:
        """Return the formats of a cold expert in a layer of other formats.

        Tokens keep their formats; narrower weights are widened inside the kernel.

        Raises:
            ConfigError: The format of cold weights is not narrower than that of the layer's.
        """
        if self.cold_format is None:
            return precision
        require(
            self.narrows(precision),
            "compression.cold_format",
            f"a format narrower than the layer's {precision.weights}",
            self.cold_format,
        )
        return replace(precision, weights=self.cold_format)


def low_rank(rank_fraction: float, hidden: int, width: int) -> int:
    """Return the rank of the factors of a matrix of ``hidden`` x ``width``, at least 1."""
    return max(round(rank_fraction * min(hidden, width)), 1)


def expert_bytes(
    layer: MoELayer, width: np.ndarray | float, rank_fraction: float | None
) -> np.ndarray:
    """Return the bytes of the weights of experts on a device, scales included.

    Args:
        layer: The layer, with the formats of these experts.
        width: Width of each expert on its device; 0 has no bytes. Of two factors, the devices that
            share an expert hold the one without a width whole.
        rank_fraction: Rank of the factors of their matrices, see `Compression`; None for whole
            matrices.

    Returns:
        ndarray of the shape of ``width``.
    """
    width = np.asarray(width, dtype=np.float64)
    elements = layer.hidden_size * width
    if rank_fraction is not None:
        rank = low_rank(rank_fraction, layer.hidden_size, layer.widest)
        elements = np.where(width > 0, rank * (layer.hidden_size + width), 0.0)
    return np.asarray(elements * (layer.num_matrices * layer.precision.weight_bytes))
