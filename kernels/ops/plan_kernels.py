"""Compute the tile plan on the device: the kernels behind `moesim_kernels.ops.plan`.

    rank[p]   = number of q < p in p's segment with id[q] == id[p]         # _rank_kernel
    prefix[s] = sum of counts[s'] over s' < s                              # _prefix_kernel
    offsets   = exclusive scan of totals and of tiles                      # _offsets_kernel
    sorted[offsets[id[p]] + prefix[segment(p), id[p]] + rank[p]] = p       # _scatter_kernel
    expert of tile i = last expert e with tile_offsets[e] <= i             # _tile_map_kernel

The ``_sparse_*`` kernels reach the same plan by comparing all pairs with each other:

    row[p] = number of q with id[q] < id[p], plus number of q < p with id[q] == id[p]

`work_tile` is the device function by which the grouped GEMMs read the plan.
"""

from moesim_kernels.ops.runtime import jit, tl


@jit
def work_tile(
    work,
    sorted_pairs_ptr,
    offsets_ptr,
    tile_expert_ptr,
    tile_row_ptr,
    num_tiles,
    num_blocks_n,
    BLOCK_M: tl.constexpr,
    GROUP_M: tl.constexpr,
):
    """Return piece ``work`` of a grouped GEMM: expert (-1: nothing to do), rows, which rows exist,
    the pairs of the rows, column block.

    Tiles run in groups of GROUP_M over all column blocks, so that neighboring programs share
    weights or tokens in L2.
    """
    first = work // (GROUP_M * num_blocks_n) * GROUP_M
    # The last group may be shorter than GROUP_M.
    height = tl.minimum(num_tiles - first, GROUP_M)
    inside = work % (GROUP_M * num_blocks_n)
    tile = first + inside % height
    expert = tl.load(tile_expert_ptr + tile)
    rows = tl.load(tile_row_ptr + tile) + tl.arange(0, BLOCK_M)
    # Idle tiles begin at row -1 and end at 0.
    exists = (rows >= 0) & (rows < tl.load(offsets_ptr + expert + 1, mask=expert >= 0, other=0))
    pairs = tl.load(sorted_pairs_ptr + rows, mask=exists, other=0)
    return expert.to(tl.int64), rows, exists, pairs, inside // height


@jit
def _rank_kernel(
    ids_ptr,
    rank_ptr,
    counts_ptr,
    num_pairs,
    num_experts,
    BLOCK: tl.constexpr,
    CHUNKS: tl.constexpr,
    COMPARED: tl.constexpr,
):
    segment = tl.program_id(0) // CHUNKS
    p = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    ids = tl.load(ids_ptr + p, mask=p < num_pairs, other=-1)
    # Comparing a block with every pair of its segment needs neither a sort nor atomics. Counts are
    # added up lane by lane and across lanes once, at the end.
    ranks = tl.zeros((BLOCK, COMPARED), tl.int32)
    totals = tl.zeros((BLOCK, COMPARED), tl.int32)
    for start in range(0, CHUNKS * BLOCK, COMPARED):
        q = segment * CHUNKS * BLOCK + start + tl.arange(0, COMPARED)
        others = tl.load(ids_ptr + q, mask=q < num_pairs, other=-2)
        same = ids[:, None] == others[None, :]
        totals += same.to(tl.int32)
        ranks += (same & (q[None, :] < p[:, None])).to(tl.int32)
    rank = tl.sum(ranks, axis=1)
    total = tl.sum(totals, axis=1)
    tl.store(rank_ptr + p, rank, mask=p < num_pairs)
    # The last pair of an expert in the segment is the only one that stores the count.
    last = (p < num_pairs) & (rank == total - 1)
    tl.store(counts_ptr + segment.to(tl.int64) * num_experts + ids, total, mask=last)


@jit
def _prefix_kernel(
    counts_ptr, totals_ptr, num_segments, num_experts, BLOCK_S: tl.constexpr, BLOCK_E: tl.constexpr
):
    e = tl.program_id(0) * BLOCK_E + tl.arange(0, BLOCK_E)
    total = tl.zeros((BLOCK_E,), tl.int32)
    for start in range(0, num_segments, BLOCK_S):
        s = start + tl.arange(0, BLOCK_S)
        at = counts_ptr + s[:, None].to(tl.int64) * num_experts + e[None, :]
        mask = (s[:, None] < num_segments) & (e[None, :] < num_experts)
        counts = tl.load(at, mask=mask, other=0)
        # Exclusive sums replace the counts in place, so that the scatter reads one table only.
        tl.store(at, total[None, :] + tl.cumsum(counts, axis=0) - counts, mask=mask)
        total += tl.sum(counts, axis=0)
    tl.store(totals_ptr + e, total, mask=e < num_experts)


@jit
def _offsets_kernel(
    totals_ptr,
    offsets_ptr,
    tile_offsets_ptr,
    num_experts,
    BLOCK_M: tl.constexpr,
    BLOCK: tl.constexpr,
):
    rows_before = tl.zeros((BLOCK,), tl.int32)
    tiles_before = tl.zeros((BLOCK,), tl.int32)
    for start in range(0, num_experts, BLOCK):
        e = start + tl.arange(0, BLOCK)
        rows = tl.load(totals_ptr + e, mask=e < num_experts, other=0)
        tiles = (rows + BLOCK_M - 1) // BLOCK_M
        # Stored one entry later: entry 0 stays 0, and the sums become exclusive.
        tl.store(offsets_ptr + 1 + e, rows_before + tl.cumsum(rows, axis=0), mask=e < num_experts)
        tl.store(
            tile_offsets_ptr + 1 + e, tiles_before + tl.cumsum(tiles, axis=0), mask=e < num_experts
        )
        rows_before += tl.sum(rows, axis=0)
        tiles_before += tl.sum(tiles, axis=0)


@jit
def _scatter_kernel(
    ids_ptr,
    rank_ptr,
    prefix_ptr,
    offsets_ptr,
    sorted_pairs_ptr,
    num_pairs,
    num_experts,
    SEGMENT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    p = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = p < num_pairs
    ids = tl.load(ids_ptr + p, mask=mask, other=0)
    # The three parts of a row: first row of the expert, earlier segments, rank in the segment.
    row = tl.load(offsets_ptr + ids, mask=mask, other=0) + tl.load(rank_ptr + p, mask=mask, other=0)
    row += tl.load(prefix_ptr + (p // SEGMENT).to(tl.int64) * num_experts + ids, mask=mask, other=0)
    tl.store(sorted_pairs_ptr + row, p, mask=mask)


@jit
def _tile_map_kernel(
    offsets_ptr,
    tile_offsets_ptr,
    tile_expert_ptr,
    tile_row_ptr,
    max_tiles,
    num_experts,
    STEPS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK: tl.constexpr,
):
    tile = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    used = tile < tl.load(tile_offsets_ptr + num_experts)
    # Bisection: the last expert whose first tile is not behind this tile. Experts without rows have
    # equal offsets and are skipped.
    low = tl.zeros((BLOCK,), tl.int32)
    high = tl.zeros((BLOCK,), tl.int32) + num_experts
    for _ in range(STEPS):
        middle = (low + high) // 2
        right = tl.load(tile_offsets_ptr + middle) <= tile
        low = tl.where(right, middle, low)
        high = tl.where(right, high, middle)
    row = tl.load(offsets_ptr + low) + (tile - tl.load(tile_offsets_ptr + low)) * BLOCK_M
    tl.store(tile_expert_ptr + tile, tl.where(used, low, -1), mask=tile < max_tiles)
    tl.store(tile_row_ptr + tile, tl.where(used, row, -1), mask=tile < max_tiles)


@jit
def _sparse_rank_kernel(
    ids_ptr,
    rank_ptr,
    row_ptr,
    sorted_pairs_ptr,
    sorted_ids_ptr,
    num_pairs,
    BLOCK: tl.constexpr,
    COMPARED: tl.constexpr,
):
    p = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    ids = tl.load(ids_ptr + p, mask=p < num_pairs, other=-1)
    ranks = tl.zeros((BLOCK, COMPARED), tl.int32)
    lowers = tl.zeros((BLOCK, COMPARED), tl.int32)
    for start in range(0, num_pairs, COMPARED):
        q = start + tl.arange(0, COMPARED)
        # Lanes past the end get the largest id, so that they count as neither equal nor lower.
        others = tl.load(ids_ptr + q, mask=q < num_pairs, other=2147483647)
        same = ids[:, None] == others[None, :]
        ranks += (same & (q[None, :] < p[:, None])).to(tl.int32)
        lowers += (others[None, :] < ids[:, None]).to(tl.int32)
    rank = tl.sum(ranks, axis=1)
    lower = tl.sum(lowers, axis=1)
    tl.store(rank_ptr + p, rank, mask=p < num_pairs)
    tl.store(row_ptr + p, lower + rank, mask=p < num_pairs)
    tl.store(sorted_pairs_ptr + lower + rank, p, mask=p < num_pairs)
    tl.store(sorted_ids_ptr + lower + rank, ids, mask=p < num_pairs)


@jit
def _sparse_tiles_kernel(
    ids_ptr,
    rank_ptr,
    row_ptr,
    tile_expert_ptr,
    tile_row_ptr,
    num_tiles_ptr,
    num_pairs,
    BLOCK_M: tl.constexpr,
    BLOCK: tl.constexpr,
):
    p = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    row = tl.load(row_ptr + p, mask=p < num_pairs, other=0)
    # A pair whose rank is a multiple of the tile's rows is the first row of a tile.
    starts = (p < num_pairs) & (tl.load(rank_ptr + p, mask=p < num_pairs, other=1) % BLOCK_M == 0)
    before = tl.zeros((BLOCK,), tl.int32)
    total = 0
    for start in range(0, num_pairs, BLOCK):
        q = start + tl.arange(0, BLOCK)
        other_starts = (q < num_pairs) & (
            tl.load(rank_ptr + q, mask=q < num_pairs, other=1) % BLOCK_M == 0
        )
        # Tiles are numbered in row order, so a tile's index is the number of starts above it.
        other_row = tl.load(row_ptr + q, mask=q < num_pairs, other=0)
        before += tl.sum(
            (other_starts[None, :] & (other_row[None, :] < row[:, None])).to(tl.int32), axis=1
        )
        total += tl.sum(other_starts.to(tl.int32), axis=0)
    tl.store(tile_expert_ptr + before, tl.load(ids_ptr + p, mask=starts, other=0), mask=starts)
    tl.store(tile_row_ptr + before, row, mask=starts)
    # All programs compute the same total; one of them stores it.
    if tl.program_id(0) == 0:
        tl.store(num_tiles_ptr, total)


@jit
def _sparse_offsets_kernel(
    sorted_ids_ptr, offsets_ptr, num_pairs, num_experts, STEPS: tl.constexpr, BLOCK: tl.constexpr
):
    e = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    # Bisection: the number of sorted ids below e is the first row of expert e.
    low = tl.zeros((BLOCK,), tl.int32)
    high = tl.zeros((BLOCK,), tl.int32) + num_pairs
    for _ in range(STEPS):
        middle = (low + high) // 2
        lower = (low < high) & (
            tl.load(sorted_ids_ptr + middle, mask=middle < num_pairs, other=2147483647) < e
        )
        low = tl.where(lower, middle + 1, low)
        high = tl.where(lower, high, middle)
    tl.store(offsets_ptr + e, low, mask=e <= num_experts)
