"""Describe what the experts of a device have to compute: the histogram, and the sums that prices
need.

Shape legend: D devices (or rows of a table of measurements), L local experts.
"""

from dataclasses import dataclass

import numpy as np

from moesim.costs.tiles import num_blocks

Array = np.ndarray
#: a number, or an array with one for each device or row
Size = int | float | np.ndarray


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Load:
    """An expert histogram and its sums.

    Attributes:
        rows_D: Rows that all local experts compute together.
        active_D: Number of local experts with at least one row.
        blocks_D: Number of row blocks: the sum over experts of ceil(rows / block_m).
        masked_rows_D: Choices of present tokens whose expert is on another device; the kernel
            carries them along.
        idle_blocks_D: Row blocks that are launched because the grid is sized for the worst case,
            and return at once.
        counts_DL: ndarray of shape (D, L): rows of each expert; None in a table whose rows have
            different L.
        widths_DL: ndarray of shape (D, L): width of each expert on its device, 0 where there is
            none; None if all experts have the same width.
    """

    rows_D: Array
    active_D: Array
    blocks_D: Array
    masked_rows_D: Array
    idle_blocks_D: Array
    counts_DL: Array | None = None
    widths_DL: Array | None = None

    @classmethod
    def of(
        cls, counts_DL: Array, slots_D: Array, block_m: int, widths_DL: Array | None = None
    ) -> "Load":
        """Return the sums of a histogram for a tile of ``block_m`` rows.

        Args:
            counts_DL: ndarray of shape (D, L): rows of each local expert.
            slots_D: ndarray of shape (D,): choices of all tokens present, local or not.
            block_m: Rows of a tile.
            widths_DL: ndarray of shape (D, L): width of each local expert, where they differ.
        """
        rows = counts_DL.sum(axis=-1)
        blocks = num_blocks(counts_DL, block_m)
        masked = np.maximum(slots_D - rows, 0.0)
        return cls(
            rows_D=rows.astype(np.float64),
            active_D=(counts_DL > 0).sum(axis=-1),
            blocks_D=blocks,
            masked_rows_D=masked,
            counts_DL=counts_DL,
            widths_DL=widths_DL,
            idle_blocks_D=idle_blocks(blocks, rows + masked, masked, counts_DL.shape[-1], block_m),
        )

    def slot_widths_D(self, width: Size) -> Array:
        """Return rows times their expert's width, masked rows at the widest: ndarray of shape (D,).

        Args:
            width: Width of every expert, used where the load has no widths of its own.
        """
        if self.widths_DL is None:
            return np.asarray((self.rows_D + self.masked_rows_D) * width)
        assert self.counts_DL is not None
        return (self.counts_DL * self.widths_DL).sum(
            axis=-1
        ) + self.masked_rows_D * self.widths_DL.max(axis=-1)

    def active_widths_D(self, width: Size) -> Array:
        """Return the widths of the active experts together: ndarray of shape (D,).

        Args:
            width: Width of every expert, used where the load has no widths of its own.
        """
        if self.widths_DL is None:
            return np.asarray(self.active_D * width)
        assert self.counts_DL is not None
        return ((self.counts_DL > 0) * self.widths_DL).sum(axis=-1)


def idle_blocks(
    blocks_D: Array, slots_D: Array, masked_D: Array, num_experts: Size, block_m: Size
) -> Array:
    """Return the row blocks of the worst-case grid that hold nothing: ndarray of shape (D,).

    The grid has room for slots + E (block_m - 1) rows, or one block per slot if there are fewer
    slots than experts (the bound of vLLM's and sglang's moe_align_block_size).
    """
    room = np.where(
        slots_D < num_experts, slots_D, -(-(slots_D + num_experts * (block_m - 1)) // block_m)
    )
    return np.maximum(room - blocks_D - np.ceil(masked_D / block_m), 0.0)
