"""State how libraries run the experts whose kernels are separate: what devices that price them
share.
"""

from typing import ClassVar

import numpy as np

from moesim.costs.load import Load
from moesim.costs.phase import PhaseCost
from moesim.costs.shape import ExpertShape
from moesim.costs.tiles import Tile, heuristic_tile
from moesim.costs.work import ExpertSizes


class SeparateKernels:
    """A library that launches every step of the experts as a kernel, with one tile for both
    GEMMs.
    """

    __slots__ = ()

    #: align (2), both GEMMs, activation, zero fill, weighted sum; k = 1 has nothing to sum
    expert_kernels: ClassVar[tuple[int, int]] = (7, 6)
    activation_apart: ClassVar[bool] = True

    def expert_tiles(self, counts_DL: np.ndarray, sizes: ExpertSizes) -> tuple[Tile, Tile]:
        """Return the tile that a tuned kernel would use for the mean load of an active expert."""
        active = max(int((counts_DL > 0).sum()), 1)
        tile = heuristic_tile(float(counts_DL.sum()) / active, sizes.element_bytes)
        return tile, tile

    def experts(self, shape: ExpertShape, load: Load, num_tokens_D: np.ndarray) -> PhaseCost | None:
        """Return None: the experts are priced kernel by kernel."""
        return None

    def tile_name(self, shape: ExpertShape, counts_DL: np.ndarray) -> str:
        """Return the tile of the up projection, in words."""
        return str(self.expert_tiles(counts_DL, shape.sizes)[0])
