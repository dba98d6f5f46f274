"""Build the tile plan: (token, expert) pairs sorted by expert and cut into row tiles, on the
device.

    expert_of_pair_P = ids_TK.flatten()                 # pair p = t x K + j
    sorted_pairs     = stable_argsort(expert_of_pair_P)
    offsets_E1       = exclusive_sum(count of pairs of each expert)
    tiles            = [(e, row) for e in experts for row in offsets[e]:offsets[e + 1]:block_m]

Nothing here waits for the GPU: the number of tiles depends on the routing and stays on the device.
Grids are sized by `tile_bound`, and programs past the last tile return at once. Pair p = t x K + j
is the j-th expert of token t. The counting sort is stable (pairs of one expert keep their order)
and uses no atomics, so every run gives the same plan. Up to 4,096 experts it is the sort of
`moesim_kernels.ops.counting_sort`. For more, whose counts do not fit a program:

1. rank: count, by comparing expert ids, the earlier pairs of the same expert within a segment of
   pairs. The last pair of each expert also knows the expert's count in the segment;
2. prefix: exclusive sums of the counts over the segments, and the total of each expert;
3. offsets: exclusive sums of rows and of tiles over the experts;
4. scatter: pair p goes to row (offset of its expert + segment prefix + rank);
5. tile map: each tile finds its expert by bisection of the tile offsets.

With far more experts than pairs (decoding, many tiny experts), that work would be spent on tables
of idle experts. In that case pairs are compared with each other instead: the row of a pair is the
number of pairs with a lower expert plus the number of earlier pairs of the same expert, and every
pair whose rank is a multiple of the rows of a tile starts a tile. The resulting plan is
bit-identical. The kernels are in `moesim_kernels.ops.plan_kernels`.
"""

from dataclasses import dataclass

import torch
from moesim_kernels.ops.counting_sort import COMPARED, MOST_EXPERTS, Segments, sorted_plan
from moesim_kernels.ops.launches import launch
from moesim_kernels.ops.plan_kernels import (
    _offsets_kernel,
    _prefix_kernel,
    _rank_kernel,
    _scatter_kernel,
    _sparse_offsets_kernel,
    _sparse_rank_kernel,
    _sparse_tiles_kernel,
    _tile_map_kernel,
)
from moesim_kernels.ops.runtime import cdiv, next_power_of_2, require_triton
from moesim_kernels.tiles.tiles import Tile, tile_bound, tile_config, tiles_per_expert

__all__ = [
    "Plan",
    "Tile",
    "make_plan",
    "make_plan_reference",
    "tile_bound",
    "tile_config",
    "tiles_per_expert",
]

# Pairs that a program of the rank kernel handles, and the most blocks in a segment.
_RANK_BLOCK = 128
_RANK_CHUNKS = 8
#: the pairwise plan is used if experts >= _SPARSE_RATIO x pairs and pairs <= _SPARSE_PAIRS
_SPARSE_RATIO, _SPARSE_PAIRS = 4, 2**14
_TENSORS = ("sorted_pairs", "expert_offsets_E1", "tile_expert", "tile_row", "num_tiles")


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A plan of where every pair is computed. All tensors are int32 on the device of the routing.

    Attributes:
        sorted_pairs: Pairs in the order of their experts, stable; shape (P,).
        expert_offsets_E1: First row of each expert in ``sorted_pairs``, followed by P; shape (E +
            1,).
        tile_expert: Expert of each tile, -1 past the last one; shape (tile bound,).
        tile_row: First row of each tile in ``sorted_pairs``, -1 past the last one; shape (tile
            bound,).
        num_tiles: Number of tiles in use; shape (1,).
        block_m: Number of rows in a tile.
        top_k: Number of experts each token uses.
    """

    sorted_pairs: torch.Tensor
    expert_offsets_E1: torch.Tensor
    tile_expert: torch.Tensor
    tile_row: torch.Tensor
    num_tiles: torch.Tensor
    block_m: int
    top_k: int

    @property
    def num_rows(self) -> int:
        """The number of pairs P."""
        return self.sorted_pairs.shape[0]

    @property
    def num_experts(self) -> int:
        """The number of experts E."""
        return self.expert_offsets_E1.shape[0] - 1

    @property
    def max_tiles(self) -> int:
        """The static bound on the number of tiles, from which grids are sized."""
        return self.tile_expert.shape[0]


def is_sparse(num_pairs: int, num_experts: int) -> bool:
    """Return whether a plan is made by comparing pairs with each other."""
    return num_experts >= _SPARSE_RATIO * num_pairs and num_pairs <= _SPARSE_PAIRS


def _check(ids_TK: torch.Tensor, num_experts: int, block_m: int) -> None:
    if ids_TK.ndim != 2 or ids_TK.dtype != torch.int32 or ids_TK.shape[1] < 1:
        raise ValueError(
            f"ids_TK: expected int32 of shape (T, K >= 1), got {ids_TK.dtype} {tuple(ids_TK.shape)}"
        )
    if num_experts < 1 or block_m < 1 or block_m & (block_m - 1):
        raise ValueError(
            f"expected num_experts >= 1 and block_m a power of two, got {num_experts}, {block_m}"
        )
    if ids_TK.numel() >= 2**31 - 2**20:
        raise ValueError(f"ids_TK: expected fewer than 2**31 - 2**20 pairs, got {ids_TK.numel()}")


def check_ids(ids_TK: torch.Tensor, num_experts: int) -> None:
    """Refuse ids of experts that do not exist; this waits for the device.

    Raises:
        ValueError: An id is outside 0..E-1.
    """
    if ids_TK.numel():
        low, high = (int(value) for value in ids_TK.aminmax())
        if low < 0 or high >= num_experts:
            # Only a routing that is refused pays for finding where it is wrong.
            bad_P = ((ids_TK < 0) | (ids_TK >= num_experts)).flatten().int()
            pair = int(bad_P.argmax())
            raise ValueError(
                f"ids_TK: expected ids from 0 to {num_experts - 1}, got "
                f"{int(ids_TK.flatten()[pair])} for token {pair // ids_TK.shape[1]}"
            )


def make_plan(
    ids_TK: torch.Tensor,
    num_experts: int,
    block_m: int,
    routed: Segments | None = None,
    watch: torch.Tensor | None = None,
    weights_TK: torch.Tensor | None = None,
) -> Plan:
    """Plan the grouped GEMMs of one routing, without waiting for the device.

    Args:
        ids_TK: Expert ids, int32 of shape (T, K), contiguous; each must lie in 0..E-1 (on a GPU
            looked at with a ``watch`` only, since the host would have to wait for the device).
        num_experts: Number of experts E.
        block_m: Number of rows in a tile, a power of two.
        routed: What the router counted of these ids, which saves counting them; None otherwise.
        watch: Memory where the first token with an id out of range is noted
            (`moesim_kernels.ops.watch`); None for no watch. For more than 4,096 experts ids are
            checked at once, which waits for the device.
        weights_TK: Router weights, float32 of the shape of ``ids_TK``, that are watched, too.

    Returns:
        The plan, on the device of ``ids_TK``.

    Raises:
        ValueError: A shape, format, or size is wrong; on a CPU also if an id is out of range.
        RuntimeError: Triton cannot launch kernels here.
    """
    _check(ids_TK, num_experts, block_m)
    require_triton(ids_TK)
    if ids_TK.device.type == "cpu" or (watch is not None and num_experts > MOST_EXPERTS):
        check_ids(ids_TK, num_experts)
    num_pairs, max_tiles = ids_TK.numel(), tile_bound(ids_TK.numel(), num_experts, block_m)
    if num_pairs and num_experts <= MOST_EXPERTS:
        made = sorted_plan(ids_TK, num_experts, block_m, routed, watch, weights_TK)
        return Plan(
            **dict(zip(_TENSORS, made, strict=True)), block_m=block_m, top_k=ids_TK.shape[1]
        )
    # Short inputs get shorter segments, so that the rank kernel does not compare empty blocks.
    num_chunks = cdiv(num_pairs, _RANK_BLOCK)
    chunks = min(_RANK_CHUNKS, next_power_of_2(max(num_chunks, 1)))
    num_segments = cdiv(num_chunks, chunks)

    def ints(*shape: int) -> torch.Tensor:
        return torch.empty(shape, dtype=torch.int32, device=ids_TK.device)

    if num_pairs and is_sparse(num_pairs, num_experts):
        return _sparse_plan(ids_TK, num_experts, block_m)
    rank_P, sorted_pairs, tile_expert, tile_row = (
        ints(num_pairs),
        ints(num_pairs),
        ints(max_tiles),
        ints(max_tiles),
    )
    # Zeroed, since an expert without pairs in a segment stores no count, entry 0 of the offsets is
    # never stored, and a plan without pairs runs no kernel.
    counts_SE, totals_E = ints(num_segments, num_experts).zero_(), ints(num_experts).zero_()
    offsets_E1, tile_offsets_E1 = ints(num_experts + 1).zero_(), ints(num_experts + 1).zero_()
    plan = Plan(
        sorted_pairs=sorted_pairs,
        expert_offsets_E1=offsets_E1,
        tile_expert=tile_expert,
        tile_row=tile_row,
        # The last tile offset is the number of tiles, so no kernel has to write it separately.
        num_tiles=tile_offsets_E1[num_experts:],
        block_m=block_m,
        top_k=ids_TK.shape[1],
    )
    if num_pairs == 0:
        return plan
    # Step 1: ranks within a segment and counts of each segment.
    launch(
        _rank_kernel,
        (num_chunks,),
        ids_TK,
        rank_P,
        counts_SE,
        num_pairs,
        num_experts,
        BLOCK=_RANK_BLOCK,
        CHUNKS=chunks,
        COMPARED=COMPARED,
        num_warps=8,
    )
    block_s, block_e = (
        min(64, next_power_of_2(num_segments)),
        min(64, next_power_of_2(num_experts)),
    )
    # Step 2: the counts become their exclusive sums over the segments, in place.
    launch(
        _prefix_kernel,
        (cdiv(num_experts, block_e),),
        counts_SE,
        totals_E,
        num_segments,
        num_experts,
        BLOCK_S=block_s,
        BLOCK_E=block_e,
    )
    # Step 3: one program scans all experts, since the scan is sequential.
    launch(
        _offsets_kernel,
        (1,),
        totals_E,
        offsets_E1,
        tile_offsets_E1,
        num_experts,
        BLOCK_M=block_m,
        BLOCK=min(4096, next_power_of_2(num_experts)),
    )
    # Step 4: every pair writes itself to its row.
    launch(
        _scatter_kernel,
        (cdiv(num_pairs, 1024),),
        ids_TK,
        rank_P,
        counts_SE,
        offsets_E1,
        sorted_pairs,
        num_pairs,
        num_experts,
        SEGMENT=_RANK_BLOCK * chunks,
        BLOCK=1024,
    )
    # Step 5: the bisection needs one step per bit of the number of experts.
    launch(
        _tile_map_kernel,
        (cdiv(max_tiles, 1024),),
        offsets_E1,
        tile_offsets_E1,
        tile_expert,
        tile_row,
        max_tiles,
        num_experts,
        STEPS=num_experts.bit_length(),
        BLOCK_M=block_m,
        BLOCK=1024,
    )
    return plan


def _sparse_plan(ids_TK: torch.Tensor, num_experts: int, block_m: int) -> Plan:
    num_pairs, max_tiles = ids_TK.numel(), tile_bound(ids_TK.numel(), num_experts, block_m)

    def ints(size: int) -> torch.Tensor:
        return torch.empty(size, dtype=torch.int32, device=ids_TK.device)

    rank_P, row_P, sorted_ids, sorted_pairs = (ints(num_pairs) for _ in range(4))
    tile_expert, tile_row, offsets_E1, num_tiles = (
        ints(max_tiles),
        ints(max_tiles),
        ints(num_experts + 1),
        ints(1),
    )
    # Only tiles in use are stored, so that the others must be marked as idle beforehand.
    tile_expert.fill_(-1)
    tile_row.fill_(-1)
    grid = (cdiv(num_pairs, _RANK_BLOCK),)
    # Every pair is compared with all others; the ratio test keeps this small.
    launch(
        _sparse_rank_kernel,
        grid,
        ids_TK,
        rank_P,
        row_P,
        sorted_pairs,
        sorted_ids,
        num_pairs,
        BLOCK=_RANK_BLOCK,
        COMPARED=COMPARED,
        num_warps=8,
    )
    launch(
        _sparse_tiles_kernel,
        grid,
        ids_TK,
        rank_P,
        row_P,
        tile_expert,
        tile_row,
        num_tiles,
        num_pairs,
        BLOCK_M=block_m,
        BLOCK=_RANK_BLOCK,
        num_warps=8,
    )
    # Offsets of all experts, by bisection of the sorted ids.
    launch(
        _sparse_offsets_kernel,
        (cdiv(num_experts + 1, 1024),),
        sorted_ids,
        offsets_E1,
        num_pairs,
        num_experts,
        STEPS=num_pairs.bit_length(),
        BLOCK=1024,
    )
    return Plan(
        sorted_pairs=sorted_pairs,
        expert_offsets_E1=offsets_E1,
        tile_expert=tile_expert,
        tile_row=tile_row,
        num_tiles=num_tiles,
        block_m=block_m,
        top_k=ids_TK.shape[1],
    )


def make_plan_reference(ids_TK: torch.Tensor, num_experts: int, block_m: int) -> Plan:
    """Make the plan in torch: same arguments, results, and ValueErrors; this waits for the
    device.
    """
    _check(ids_TK, num_experts, block_m)
    check_ids(ids_TK, num_experts)
    counts_E = torch.bincount(ids_TK.flatten(), minlength=num_experts)
    tiles_E = (counts_E + block_m - 1) // block_m
    offsets_E1 = torch.nn.functional.pad(counts_E.cumsum(0), (1, 0))
    tile_offsets_E1 = torch.nn.functional.pad(tiles_E.cumsum(0), (1, 0))
    expert_M = torch.repeat_interleave(tiles_E)
    row_M = (
        offsets_E1[expert_M]
        + (torch.arange(len(expert_M), device=ids_TK.device) - tile_offsets_E1[expert_M]) * block_m
    )
    # The kernels return a table of static size, so the unused tail is padded with -1.
    unused = (0, tile_bound(ids_TK.numel(), num_experts, block_m) - len(expert_M))
    return Plan(
        sorted_pairs=ids_TK.flatten().argsort(stable=True).int(),
        expert_offsets_E1=offsets_E1.int(),
        tile_expert=torch.nn.functional.pad(expert_M, unused, value=-1).int(),
        tile_row=torch.nn.functional.pad(row_M, unused, value=-1).int(),
        num_tiles=tile_offsets_E1[num_experts:].int(),
        block_m=block_m,
        top_k=ids_TK.shape[1],
    )
