"""Choose tiles by the model the simulator charges: the tile model of these kernels, fitted to what
an H100 took.

`moesim.costs.devices.tile_choice` prices every tile that the kernels are compiled with; here it is
asked for a layer of known sizes on a GPU that has a profile.
"""

import numpy as np
from moesim_kernels.tiles.tiles import Tile

from moesim.costs.calibration import load_calibration
from moesim.costs.devices.tile_choice import architecture, best_pairs
from moesim.costs.devices.tile_model import TileModel
from moesim.costs.libraries import OWN_KERNELS
from moesim.costs.work import ExpertSizes
from moesim.hardware import Profile

#: format of a profile by operand bits
FORMATS = {8: "float8_e4m3", 16: "bfloat16", 32: "float32"}


def tile_model(profile: Profile) -> TileModel:
    """Return the tile model of a GPU.

    Raises:
        ConfigError: The calibration's file is missing or malformed.
    """
    return TileModel(profile=profile, calibration=load_calibration(OWN_KERNELS, profile))


def expert_sizes(hidden_size: int, width: int, top_k: int, operand_bits: int) -> ExpertSizes:
    """Return the sizes of a layer's experts with SwiGLU, as prices know them."""
    return ExpertSizes(
        hidden=hidden_size,
        width=width,
        num_up=2,
        top_k=top_k,
        fmt=FORMATS[operand_bits],
        element_bytes=operand_bits / 8,
    )


def best_tiles(
    counts_E: np.ndarray, sizes: ExpertSizes, profile: Profile, most: int = 1
) -> list[tuple[Tile, Tile]]:
    """Return the pairs of tiles of the up and of the down projection with the least total time, the
    fastest first; both of a pair have the same number of rows.

    Args:
        counts_E: Number of rows of each expert, shape (E,).
        sizes: Sizes of the experts.
        profile: Profile of the GPU.
        most: How many pairs to return.

    Raises:
        ConfigError: The profile has no rate for the format.
    """
    return best_pairs(tile_model(profile), counts_E, sizes, architecture(profile), most)
