"""Hold the tiles that training's 16-bit grouped GEMMs take on Hopper, one pair for each number of
rows: kernels that keep pre-activations or read transposed weights need more registers than those
`moesim_kernels.tiles.choice` chooses tiles for, and these tiles leave them.

Few rows wait for weights alone, and narrow blocks with a deep step keep most of them in flight; 128
rows multiply with 256 columns at a step of 64, with 8 warps and 4 stages (own measurement on an
H100, CUDA graphs with a cold L2).
"""

from dataclasses import replace

from moesim_kernels.tiles.tiles import Tile

#: block_m -> tiles of the up projection, whose block_n counts gate columns and as many up columns,
#: and of the down one
TILES = {
    16: (
        Tile(block_m=16, block_n=32, block_k=256, num_warps=4, num_stages=4, group_m=1),
        Tile(block_m=16, block_n=64, block_k=256, num_warps=4, num_stages=3, group_m=1),
    ),
    32: (
        Tile(block_m=32, block_n=128, block_k=128, num_warps=4, num_stages=3, group_m=1),
        Tile(block_m=32, block_n=128, block_k=128, num_warps=4, num_stages=4, group_m=1),
    ),
    64: (
        Tile(block_m=64, block_n=64, block_k=128, num_warps=8, num_stages=3, group_m=1),
        Tile(block_m=64, block_n=128, block_k=128, num_warps=8, num_stages=4, group_m=1),
    ),
    128: (
        Tile(block_m=128, block_n=128, block_k=64, num_warps=8, num_stages=4, group_m=1),
        Tile(block_m=128, block_n=256, block_k=64, num_warps=8, num_stages=4, group_m=1),
    ),
}
#: blocks of columns from which tiles of rows go in groups, and how many go together
_MANY_BLOCKS, _GROUP = 24, 8


def fitted(tile: Tile, columns: int) -> Tile:
    """Return the tile in groups of rows where experts have several and the matrix has many blocks
    of columns.
    """
    blocks = -(-columns // tile.block_n) if tile.block_m == max(TILES) else 0
    return replace(tile, group_m=_GROUP if blocks >= _MANY_BLOCKS else 1)
