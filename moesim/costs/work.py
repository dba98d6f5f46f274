"""Count what one grouped GEMM has to do: tiles, iterations and elements, for experts of one width
or of several.

Shape legend: D devices or rows of a table, L local experts.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from moesim.costs.load import Load, Size
from moesim.costs.phase import PhaseCost, sequence
from moesim.costs.tiles import Tile

Array = np.ndarray
#: a depth that is not a multiple of 16 elements loses wide, aligned loads
_ALIGNED = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertSizes:
    """Sizes of the experts of one layer on one device, which decide on tiles.

    Attributes:
        hidden: Hidden size H.
        width: Expert width I on the device.
        num_up: Number of up projections: 2 for SwiGLU, otherwise 1.
        top_k: Experts that a token uses.
        fmt: Format in which the matrix units multiply.
        element_bytes: Bytes of one operand element.
    """

    hidden: int
    width: int
    num_up: int
    top_k: int
    fmt: str
    element_bytes: float


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class GemmSpec:
    """How a grouped GEMM is run: its tile, its formats, and where its operands lie.

    Attributes:
        tile: Configuration of its tiles; devices that run no GPU tiles ignore it.
        fmt: Format in which the matrix units multiply.
        weight_bytes: Bytes of one weight, scales included.
        input_bytes: Bytes of one input element.
        output_bytes: Bytes of one output element.
        warm_bytes_D: Bytes of weights that back-to-back calls reuse (a benchmark's warm L2); None
            if the cache is cold.
        block_scaled: Whether a scale is applied after every block of the depth (fitted: it costs
            cycles).
        weight_only: Whether weights are widened in the kernel.
        gather_inputs: Whether input rows lie at random places.
        scatter_outputs: Whether output rows go to random places.
        row_copies: Rows that are copies of one input row, which is read from memory once.
        logits: Whether the results are a gate's, of few columns and full depth; a library may have
            a kernel of its own for them.
    """

    tile: Tile
    fmt: str
    weight_bytes: float
    input_bytes: Size
    output_bytes: float = 2.0
    warm_bytes_D: Array | None = None
    block_scaled: bool = False
    weight_only: bool = False
    gather_inputs: bool = False
    scatter_outputs: bool = False
    row_copies: Size = 1.0
    logits: bool = False


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class GemmWork:
    """The work of one grouped GEMM, summed over the experts of a device.

    Attributes:
        tiles_D: Number of tiles of the result.
        iterations_D: Mean number of K-iterations of a tile.
        longest_D: Number of K-iterations of the longest tile.
        columns_D: Number of tiles across the widest expert, which an idle or masked row block
            launches.
        weights_D: Elements of the active experts' weights.
        inputs_D: Elements that are read for the rows.
        outputs_D: Elements that are written for the rows, and for masked rows, which are as wide as
            the widest expert.
        misaligned_D: Share of the iterations whose depth is not a multiple of 16 elements.
    """

    tiles_D: Size
    iterations_D: Size
    longest_D: Size
    columns_D: Size
    weights_D: Size
    inputs_D: Size
    outputs_D: Size
    misaligned_D: Size

    @classmethod
    def of(cls, load: Load, n: Size, k: Size, tile: Tile) -> "GemmWork":
        """Count the work of (count x k) times (k x n) for each expert.

        Args:
            load: Rows of each expert.
            n: Columns: a number, an ndarray of shape (D,), or one for each expert, of shape (D, L).
            k: Depth, of any of the same shapes.
            tile: Configuration of the tiles.
        """
        if np.ndim(n) == 2 or np.ndim(k) == 2:
            return cls._uneven(load, n, k, tile)
        columns = -(-n // tile.block_n)
        iterations = -(-k // tile.block_k)
        return cls(
            tiles_D=load.blocks_D * columns,
            iterations_D=iterations,
            longest_D=iterations,
            columns_D=columns,
            weights_D=load.active_D * (n * k),
            inputs_D=load.rows_D * k,
            outputs_D=(load.rows_D + load.masked_rows_D) * n,
            misaligned_D=np.where(np.asarray(k) % _ALIGNED != 0, 1.0, 0.0),
        )

    @classmethod
    def _uneven(cls, load: Load, n: Size, k: Size, tile: Tile) -> "GemmWork":
        counts = load.counts_DL
        assert counts is not None
        n_DL, k_DL = np.broadcast_to(n, counts.shape), np.broadcast_to(k, counts.shape)
        active = counts > 0
        assert ((n_DL > 0) & (k_DL > 0) | ~active).all(), "a pruned expert has rows"
        columns, iterations = -(-n_DL // tile.block_n), -(-k_DL // tile.block_k)
        tiles = -(-counts // tile.block_m) * columns
        steps = tiles * iterations
        tiles_D, steps_D = tiles.sum(axis=-1), steps.sum(axis=-1)
        return cls(
            tiles_D=tiles_D,
            iterations_D=steps_D / np.maximum(tiles_D, 1),
            longest_D=(active * iterations).max(axis=-1, initial=0),
            columns_D=columns.max(axis=-1, initial=0),
            weights_D=(active * n_DL * k_DL).sum(axis=-1),
            inputs_D=(counts * k_DL).sum(axis=-1),
            outputs_D=(counts * n_DL).sum(axis=-1)
            + load.masked_rows_D * n_DL.max(axis=-1, initial=0),
            misaligned_D=(steps * (k_DL % _ALIGNED != 0)).sum(axis=-1) / np.maximum(steps_D, 1),
        )


def by_width(
    load: Load, n: Size, k: Size, price: Callable[[Load, Size, Size], PhaseCost]
) -> PhaseCost:
    """Price one grouped GEMM for each width of expert, one after the other, for devices whose
    kernels take one size.

    Args:
        load: Rows of each expert.
        n: Columns, of shape (D, L) where experts differ.
        k: Depth, of shape (D, L) where experts differ.
        price: Function that prices the GEMM of experts of one size, given load, columns and depth.
    """
    counts = load.counts_DL
    if np.ndim(n) < 2 and np.ndim(k) < 2:
        return price(load, n, k)
    assert counts is not None
    n_DL, k_DL = np.broadcast_to(n, counts.shape), np.broadcast_to(k, counts.shape)
    sizes = np.unique(np.stack([n_DL[counts > 0], k_DL[counts > 0]]), axis=1).T.tolist()
    parts = []
    for columns, depth in sizes or [(1, 1)]:
        rows = counts * ((n_DL == columns) & (k_DL == depth))
        part = replace(
            load,
            counts_DL=rows,
            rows_D=rows.sum(axis=-1).astype(np.float64),
            active_D=(rows > 0).sum(axis=-1),
            widths_DL=None,
        )
        parts.append(price(part, columns, depth))
    return parts[0] if len(parts) == 1 else sequence(*parts)
