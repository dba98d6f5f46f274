"""Choose tiles of 16-bit grouped GEMMs on Hopper by a rule, from the mean load and the matrices'
sizes.

The rule was read off what an H100 took for 4 layers of 16 to 4,096 tokens with some 40 tiles each,
and off trials of wide products, all in CUDA graphs and with a cold L2:

- A block of rows covers an expert's rows where it can, so that weights are read once: the power of
  two above the mean load and two of its deviations, 16 to 128.
- Few rows wait for weights alone. Narrow blocks with a deep step (256 elements of each row at once)
  keep most of them in flight: 16 x 64 x 256 read them at the speed of the memory.
- 32 and 64 rows do best with steps of 128 (seen of two products side by side only), and with
  pointers.
- 128 rows multiply with 256 columns at a step of 64, with 8 warps and 4 stages, and with
  descriptors.
- Where experts have several blocks of rows and a matrix more blocks of columns than a fifth of what
  runs at once, tiles of rows go through it in groups of 8: neighbors of one expert then find its
  columns in L2. With fewer blocks they find them there anyway.
"""

import math
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
#: rows of a tile at most: those of an expert with more are several tiles
MOST_ROWS = 128
#: blocks of columns from which tiles of rows go in groups, and how many go together
_MANY_BLOCKS, _GROUP = 24, 8


def row_block(rows_per_expert: float) -> int:
    """Return the number of rows of a tile for this mean load: a power of two that covers the rows
    of most experts, 16 to 128.
    """
    wanted = rows_per_expert + 2 * math.sqrt(rows_per_expert)
    return min(max(1 << max(math.ceil(wanted) - 1, 0).bit_length(), 16), MOST_ROWS)


def hopper_tiles(rows_per_expert: float, hidden_size: int, width: int) -> tuple[Tile, Tile]:
    """Return the tiles of the up and of the down projection, which share their rows.

    Args:
        rows_per_expert: Mean load of an expert.
        hidden_size: Hidden size H.
        width: Expert width I.

    Returns:
        Two tiles of `TILES`, in groups of rows where that pays.
    """
    up, down = TILES[row_block(rows_per_expert)]
    return fitted(up, width), fitted(down, hidden_size)


def fitted(tile: Tile, columns: int) -> Tile:
    """Return the tile in groups of rows where experts have several and the matrix has many blocks
    of columns.
    """
    blocks = -(-columns // tile.block_n) if tile.block_m == MOST_ROWS else 0
    return replace(tile, group_m=_GROUP if blocks >= _MANY_BLOCKS else 1)
